"""Events: things that happen to nodes and to the network between them.

An event stands for the beginning of its round: a node that crashes at round 20 has finished round 19 and dies before it
trains in round 20; one that rejoins at round 40 takes part from round 40 on.
"""

from __future__ import annotations

from typing import NamedTuple

EVENTS = ("crash", "leave", "rejoin", "join", "freeze", "lag", "partition", "heal", "link_loss")
OF_NODES = ("crash", "leave", "rejoin", "join", "freeze", "lag")
"""Events that happen to a node; the others happen to the network, and their node is -1."""
STATES = ("lost", "kept")


class Event(NamedTuple):
    """Something that happens at the beginning of a round. Fields that an event has no use for keep their defaults.

    "crash", "leave": the node is gone. "rejoin": it is back, with nothing but its data (`state` "lost") or as it was
    ("kept"). "join": it is there for the first time. "freeze": it stands still for `rounds`, and stays a member. "lag":
    its messages are late by `seconds` for `rounds`. "partition": messages arrive only within a group of `groups`, or
    within the rest; "heal": they do everywhere again. "link_loss": a message along `links` (either way), or along any
    link of `nodes`, is lost with probability `loss` for `rounds`.
    """

    event: str
    node: int
    round: int
    state: str = "lost"
    rounds: int = 0
    seconds: float = 0.0
    groups: tuple[tuple[int, ...], ...] = ()
    nodes: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] = ()
    loss: float = 0.0
