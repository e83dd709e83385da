"""Reporting: the terminal, the page, the figures."""
