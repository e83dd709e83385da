"""Gossiped statistics: what the nodes find out about all their data together, without showing a row of it.

`sums`: what a site adds up over its own rows, and what such sums say. `color`: those of colours. `gossip`: an
algorithm whose nodes average the sums before they train. `known`: a learner that uses the result. `averaging`: how many
rounds that takes, and averaging for programs that want nothing else.
"""

from p2pfl.methods.statistics.averaging import average, rounds
from p2pfl.methods.statistics.gossip import gossip
from p2pfl.methods.statistics.known import learned, normalized
from p2pfl.methods.statistics.sums import GATHERED, estimated, gathered, harmonised, notes, stacked

__all__ = [
    "GATHERED",
    "average",
    "estimated",
    "gathered",
    "gossip",
    "harmonised",
    "learned",
    "normalized",
    "notes",
    "rounds",
    "stacked",
]
