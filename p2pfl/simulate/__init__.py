"""Drivers that run all nodes in one process, on a schedule and a delivery instead of a network."""
