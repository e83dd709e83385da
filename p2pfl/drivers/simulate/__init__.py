"""The simulator: one process, no network.

`loop`: the plain loop that every other way is tested against. `engine`: all nodes at once, over all devices, whole
stretches of rounds in one compiled program (`compiled`, `layout`, `autotune`). `replay`: a live run, computed again.
"""
