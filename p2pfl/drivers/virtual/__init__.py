"""The driver of virtual time: the same protocol on a network and a clock that are values; nothing waits."""
