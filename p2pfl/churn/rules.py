"""Check events: refuse those that can't happen, alone or in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from p2pfl.churn.events import EVENTS, OF_NODES, STATES, Event
from p2pfl.churn.timeline import active
from p2pfl.errors import ConfigError, nearest


def check(events: Sequence[Event], nodes: int, rounds: int) -> None:
    """Refuse events that can't happen.

    Args:
        events: in any order; a round's take effect when it begins.
        nodes: their number n.
        rounds: of the run.

    Raises:
        ConfigError: unknown kinds, nodes or rounds, a wrong order, nobody left.

    Example:
        >>> from p2pfl import churn
        >>> events = [churn.Event("crash", node=1, round=2)]
        >>> churn.check(events, nodes=1, rounds=3)
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: churn[0].node=1: ...
    """
    for i, event in enumerate(events):
        check_one(event, f"churn[{i}]", nodes, rounds)
    for node in sorted({event.node for event in events if event.node >= 0}):
        _in_order(node, [event for event in events if event.node == node and event.event != "lag"])
    _network([event for event in events if event.event in ("partition", "heal")])
    empty = np.flatnonzero(~active(events, nodes, rounds).any(axis=1))
    if empty.size:
        raise ConfigError(f"churn: nobody is there in round {empty[0] + 1}; leave at least one node")


def check_one(event: Event, where: str, nodes: int, rounds: int) -> None:
    """Raises ConfigError, with `where` at its head, for a single event that can't happen."""
    kind = event.event
    if kind not in EVENTS:
        raise ConfigError(f"{where}.event={kind!r}: {nearest(kind, EVENTS)}")
    if kind in OF_NODES:
        check_node(event.node, f"{where}.node", nodes)
    if not 1 <= event.round <= rounds:
        raise ConfigError(f"{where}.round={event.round}: must be within 1 to rounds={rounds}")
    if kind == "join" and event.round == 1:
        raise ConfigError(f"{where}.round=1: who joins at round 1 is there from the start; leave the event out")
    if kind == "rejoin" and event.state not in STATES:
        raise ConfigError(f"{where}.state={event.state!r}: {nearest(event.state, STATES)}")
    if kind in ("freeze", "lag", "link_loss") and event.rounds < 1:
        raise ConfigError(f"{where}.rounds={event.rounds}: must be >= 1")
    if kind == "lag" and not event.seconds > 0:
        raise ConfigError(f"{where}.seconds={event.seconds}: must be > 0")
    if kind == "partition":
        _groups(event.groups, f"{where}.groups", nodes)
    if kind == "link_loss":
        _links(event, where, nodes)


def check_node(node: int, where: str, nodes: int) -> None:
    """Raises ConfigError when there is no such node."""
    if not 0 <= node < nodes:
        raise ConfigError(f"{where}={node}: there are nodes 0 to {nodes - 1}")


def check_distinct(given: Sequence[Sequence[int]], where: str, nodes: int) -> None:
    """Raises ConfigError when a node stands twice in lists of nodes, or a list is empty."""
    for i, group in enumerate(given):
        if not group:
            raise ConfigError(f"{where}[{i}]=[]: must name nodes; leave it out")
        for node in group:
            check_node(node, f"{where}[{i}]", nodes)
    twice = [node for node, count in Counter(node for group in given for node in group).items() if count > 1]
    if twice:
        raise ConfigError(f"{where}: node {twice[0]} stands twice; name it once")


def _groups(groups: Sequence[Sequence[int]], where: str, nodes: int) -> None:
    check_distinct(groups, where, nodes)
    if not groups or len(groups[0]) == nodes:
        said = [list(group) for group in groups]
        raise ConfigError(f"{where}={said}: parts nobody from nobody; name a group that does not hold all nodes")


def _links(event: Event, where: str, nodes: int) -> None:
    if not 0 < event.loss <= 1:
        raise ConfigError(f"{where}.loss={event.loss}: must be > 0 and <= 1")
    if bool(event.links) == bool(event.nodes):
        raise ConfigError(f"{where}: link_loss needs either links or nodes, and not both")
    check_distinct([event.nodes] if event.nodes else [], f"{where}.nodes", nodes)
    for i, (a, b) in enumerate(event.links):
        for node in (a, b):
            check_node(node, f"{where}.links[{i}]", nodes)
        if a == b:
            raise ConfigError(f"{where}.links[{i}]=[{a}, {b}]: a link joins two nodes; name another one")


def _in_order(node: int, events: Sequence[Event]) -> None:
    gone, last, frozen, first = False, 0, 0, True
    for event in sorted(events, key=lambda e: e.round):
        kind, what = event.event, f"churn: node {node} can't {event.event} at round {event.round}"
        if event.round == last:
            raise ConfigError(f"churn: node {node} has two events at round {event.round}; one round holds one")
        if kind == "join" and not first:
            raise ConfigError(f"{what}: it was there before; use rejoin")
        if kind != "join" and (kind == "rejoin") != gone:
            raise ConfigError(f"{what}: it is {'still there' if kind == 'rejoin' else 'already gone'}")
        if event.round < frozen:
            raise ConfigError(f"{what}: it is frozen until round {frozen}; choose a later round")
        gone, last, first = kind in ("crash", "leave"), event.round, False
        frozen = event.round + event.rounds if kind == "freeze" else 0


def _network(events: Sequence[Event]) -> None:
    parted, last = False, 0
    for event in sorted(events, key=lambda e: e.round):
        if event.round == last:
            raise ConfigError(f"churn: the network has two events at round {event.round}; one round holds one")
        if event.event == "heal" and not parted:
            raise ConfigError(f"churn: heal at round {event.round}: nothing is parted there; leave it out")
        parted, last = event.event == "partition", event.round
