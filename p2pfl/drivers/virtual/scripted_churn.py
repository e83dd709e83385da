"""Planned churn in a virtual world: who crashes, leaves, stands still and comes back when.

Events stand for the beginning of their round. Rounds are the nodes' own: a node dies when it would begin the round, and
one that returns or joins is started when the first of the others begins the round before, so that it can be there in
time; how long it then takes to be a member and to get a model is up to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2pfl.churn import Event, expected
from p2pfl.drivers.virtual.node import VirtualNode
from p2pfl.drivers.virtual.world import World
from p2pfl.protocol.neighbor import BARRIER

_PATIENCE = 4
"""A frozen node is thawed after so many of the longest waits for each of its rounds, if nobody goes on without it."""


class Begin(Protocol):
    """Begins a life of a node that takes part from round `join_round` on; 0: from the start."""

    def __call__(self, node: int, join_round: int, kept: bool) -> None:
        """`kept`: with the state of the life before."""


class Script:
    """Carries out events; `fate` is to be asked before a node begins a round."""

    def __init__(self, world: World, events: Sequence[Event], nodes: int, begin: Begin) -> None:
        self._world, self._begin, self._expected = world, begin, expected(events, nodes)
        own = [event for event in events if event.node >= 0 and event.event != "lag"]
        self._to_come = {i: sorted((e for e in own if e.node == i), key=lambda e: e.round) for i in range(nodes)}
        self._frozen: list[tuple[int, VirtualNode]] = []  # until this round, whom
        self._first = 0.0  # when the first round began
        world.ends.append(lambda node: self._look())

    def start(self) -> None:
        """Begin the lives of all who are there from the start."""
        for node in self._expected:
            self._begin(node, 0, False)

    def fate(self, node: int, round: int) -> str | None:
        """Return what becomes of a node that is about to begin a round: "crash", "leave", or nothing."""
        if round > self._world.began:
            self._first = self._first if self._world.began else self._world.now
            self._world.began = round
            self._world.at(0.0, self._look)
        events = self._to_come.get(node)  # of one that nobody has planned there are none
        if not events or events[0].round > round or events[0].event in ("rejoin", "join"):
            return None
        event = events.pop(0)
        if event.event == "freeze":
            self._freeze(self._world.nodes[node], round, event.rounds)
            return None
        return event.event

    def end(self) -> None:
        """Let nothing more befall anybody: who stands still goes on, and nobody comes."""
        for events in self._to_come.values():
            events.clear()
        for until, frozen in list(self._frozen):
            self._thaw(until, frozen)

    def _look(self) -> None:
        """Call back, or let go on, whoever is due now that somebody has begun a round, or has gone."""
        due = self._world.began + 1
        for node, events in self._to_come.items():
            there = node in self._world.nodes and self._world.nodes[node].up
            if events and events[0].event in ("rejoin", "join") and events[0].round <= due and not there:
                event = events.pop(0)
                self._begin(node, event.round, event.state == "kept")
        for until, frozen in list(self._frozen):
            if until < due:
                self._thaw(until, frozen)

    def _freeze(self, node: VirtualNode, round: int, rounds: int) -> None:
        """Until another begins the round in which it shall go on; or, where all wait for it, as long as that takes."""
        node.freeze()
        self._frozen.append((round + rounds, node))
        seconds = (self._world.now - self._first) / max(round - 1, 1) or node.given.seconds(round)
        if node.facts.sync != BARRIER:
            timing = node.facts.timing
            stretch = node.facts.payload_bytes / timing.bandwidth
            seconds = _PATIENCE * max(seconds, timing.deadline_max + stretch)
        self._world.at(rounds * seconds, self._thaw, round + rounds, node)

    def _thaw(self, until: int, node: VirtualNode) -> None:
        if (until, node) in self._frozen:
            node.thaw()
            self._frozen.remove((until, node))
