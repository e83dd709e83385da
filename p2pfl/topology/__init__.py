"""The graph that nodes gossip along: by name or from a file, with its weights, as the schedule that drivers use.

Every function is pure: every node computes the same graph by itself, without anyone in charge. `graphs`: static graphs.
`weights`: mixing weights, and the schedule of a static graph. `dynamic`: graphs that change from round to round.
`named`: all of them by name. `files`: graphs in files. `schedules`: making and reading schedules. `sampled`: what
algorithms draw from a graph. `spectral`: what a graph is worth, in figures and words; `eigen`: eigenvalues.
"""

from p2pfl.topology.files import load
from p2pfl.topology.heal import attached, restricted
from p2pfl.topology.named import GRAPHS, Argument, Family, build, expected_rho, plan
from p2pfl.topology.schedules import from_rounds, matrix, neighbors, pairs, reverse, row, stable, sums, symmetric, union
from p2pfl.topology.spectral import advice, describe
from p2pfl.topology.weights import WEIGHTS, metropolis, schedule

__all__ = [
    "GRAPHS",
    "WEIGHTS",
    "Argument",
    "Family",
    "advice",
    "attached",
    "build",
    "describe",
    "expected_rho",
    "from_rounds",
    "load",
    "matrix",
    "metropolis",
    "neighbors",
    "pairs",
    "plan",
    "restricted",
    "reverse",
    "row",
    "schedule",
    "stable",
    "sums",
    "symmetric",
    "union",
]
