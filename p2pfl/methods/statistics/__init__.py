"""Gossiped statistics: what the nodes find out about all their data together, without showing a row of it.

`sums`: what a site adds up over its own rows, and what such sums say. `color`: those of colours. `gossip`: an
algorithm whose nodes average the sums before they train. `masked_sums`: one whose nodes add them up without seeing
those of any site, by `chacha`. `known`: a learner that uses the result. `averaging`: how many rounds that takes, and
averaging for programs that want nothing else.
"""

from p2pfl.methods.statistics.averaging import average, hops, rounds
from p2pfl.methods.statistics.gossip import gossip
from p2pfl.methods.statistics.known import learned, normalized
from p2pfl.methods.statistics.masked_sums import facts, masked, words
from p2pfl.methods.statistics.sums import GATHERED, estimated, gathered, harmonised, notes, stacked

__all__ = [
    "GATHERED",
    "average",
    "estimated",
    "facts",
    "gathered",
    "gossip",
    "harmonised",
    "hops",
    "learned",
    "masked",
    "normalized",
    "notes",
    "rounds",
    "stacked",
    "words",
]
