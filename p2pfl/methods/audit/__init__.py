"""What a neighbour gets: attacks on what a node is sent. They have what a neighbour has, and no more (`Overheard`)."""

from p2pfl.methods.audit.heard import Overheard, PublicFacts
from p2pfl.methods.audit.inversion import Inverted, LocalChange, Search, class_images, closed_form, invert, labels
from p2pfl.methods.audit.knowledge import Knowledge, Solved, exact, knowledge, solve, solve_steady, steady
from p2pfl.methods.audit.membership import Detection, by_loss, by_shadows, fitted, told
from p2pfl.methods.audit.rank import LayerRank, RankIndex, rank_index

__all__ = [
    "Detection",
    "Inverted",
    "Knowledge",
    "LayerRank",
    "LocalChange",
    "Overheard",
    "PublicFacts",
    "RankIndex",
    "Search",
    "Solved",
    "by_loss",
    "by_shadows",
    "class_images",
    "closed_form",
    "exact",
    "fitted",
    "invert",
    "knowledge",
    "labels",
    "rank_index",
    "solve",
    "solve_steady",
    "steady",
    "told",
]
