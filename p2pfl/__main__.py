"""`python -m p2pfl`."""

from p2pfl.cli import main

main(prog_name="p2pfl")
