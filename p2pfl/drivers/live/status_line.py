"""The line by which a node tells, now and then, how it goes: a pure function of what is known, and when it is due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

EVERY = 10.0
"""Seconds between two lines while nothing changes."""

SOONEST = 1.0
"""Seconds between two lines at least, however much changes."""

LONG = 3.0
"""Seconds that a neighbour must be waited for, or a direction be dead, before it is worth a word."""

SHOWN = 8
"""Nodes that are listed one by one; of more, how many there are."""


class Situation(NamedTuple):
    """What a node knows of itself and the others at one moment. Directions are those of LONG seconds and more."""

    round: int
    rounds: int
    there: int  # members, this node among them
    expected: int
    missing: tuple[int, ...] = ()  # expected nodes that are no members
    score: tuple[str, float] | None = None  # its name, and the latest of this node's model
    awaited: tuple[int, ...] = ()  # neighbours that the round waits for, for long
    unreached: tuple[tuple[int, str], ...] = ()  # (node, address): it is heard, and nothing can be sent to it
    unheard: tuple[tuple[int, str], ...] = ()  # (node, address): it takes what is sent, and is not heard
    address: str = ""  # of this node, as the others know it
    peers: tuple[str, ...] = ()  # addresses of members that it was given
    strange: tuple[str, ...] = ()  # addresses, of `peers` and of members, where nobody that is there is known to be
    why: Mapping[str, str] = MappingProxyType({})  # why nobody is reached at an address, as far as it is known
    uncallable: str = ""  # the federation file, where no other member of it can be called


def line(now: Situation) -> str:
    """Return the line for a person."""
    parts = [f"round {now.round} of {now.rounds}", f"{now.there} of {now.expected} nodes there"]
    if now.score is not None:
        parts.append(f"{now.score[0]} {now.score[1]:.3f}")
    if now.there == 1 and now.expected > 1:
        asked = [_with_reason(address, now.why) for address in dict.fromkeys((*now.peers, *now.strange))]
        if now.uncallable:
            parts.append(
                "no other node is there, and none can be called: if the others have revoked this one, nobody can tell "
                f"it; their {now.uncallable}, put in the place of this one's, does"
            )
        else:
            parts.append(f"no other node answers at {', '.join(asked[:SHOWN]) or 'any address: peers is empty'}")
        if now.why.get(now.address):
            parts.append(f"nor is this node reached at its own address {_with_reason(now.address, now.why)}")
    elif now.missing:
        parts.append(f"not there: {_nodes(now.missing)}")
    if now.there > 1:
        parts += [
            f"nobody at {_with_reason(address, now.why)}" for address in now.strange[:SHOWN] if now.why.get(address)
        ]
    if awaited := [node for node in now.awaited if node not in now.missing]:
        parts.append(f"waiting for {_nodes(awaited)}")
    parts += [
        f"node {node} reaches us, we don't reach it at {address}: {now.why.get(address) or 'firewall?'}"
        for node, address in now.unreached[:SHOWN]
    ]
    parts += [
        f"we reach node {node} at {address}, nothing comes from it: does it reach us at {now.address}?"
        for node, address in now.unheard[:SHOWN]
    ]
    return "; ".join(parts)


def _with_reason(address: str, why: Mapping[str, str]) -> str:
    return f"{address} ({why[address]})" if why.get(address) else address


def _nodes(nodes: Sequence[int]) -> str:
    return f"node {', '.join(map(str, nodes))}" if len(nodes) <= SHOWN else f"{len(nodes)} nodes"


def directions(
    addresses: Mapping[int, str],
    heard: Mapping[int, float],
    blocked: Mapping[int, float],
    answering: Sequence[int],
    now: float,
) -> tuple[tuple[tuple[int, str], ...], tuple[tuple[int, str], ...]]:
    """Return the neighbours (node, address) that are heard and not reached, and those that are reached and not heard.

    `addresses`: of the neighbours that are members. `heard`: when each was last heard. `blocked`: since when nothing
    could be sent to it, of those of which that is so. `answering`: neighbours that would be heard if they could, as
    they are asked: of any other, silence means nothing.
    """
    unreached, unheard = [], []
    for node, address in sorted(addresses.items()):
        quiet = now - heard.get(node, -LONG) >= LONG
        if node in blocked:
            if now - blocked[node] >= LONG and not quiet:
                unreached.append((node, address))
        elif quiet and node in answering:
            unheard.append((node, address))
    return tuple(unreached), tuple(unheard)


class StatusLine:
    """Decides when a line is due. `next` is to be called often."""

    def __init__(self) -> None:
        self._told: Situation | None = None
        self._at = 0.0
        self._since: dict[int, float] = {}  # since when a neighbour has been waited for

    def long(self, awaited: Sequence[int], now: float) -> tuple[int, ...]:
        """Return those who have been waited for in every call for LONG seconds."""
        self._since = {node: self._since.get(node, now) for node in awaited}
        return tuple(node for node, since in sorted(self._since.items()) if now - since >= LONG)

    def next(self, situation: Situation, now: float) -> str | None:
        """Return the line to be told now, if one is: the time has come, or something has become better or worse."""
        told, quiet = self._told, now - self._at
        if told is not None and (quiet < SOONEST or (quiet < EVERY and _same(situation, told))):
            return None
        self._told, self._at = situation, now
        return line(situation)


def _same(one: Situation, other: Situation) -> bool:
    """Nothing is better or worse: rounds and scores go on as they should."""
    return one == other._replace(round=one.round, score=one.score)
