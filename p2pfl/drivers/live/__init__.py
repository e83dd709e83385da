"""The live driver: real processes, ZeroMQ sockets, a clock, files."""
