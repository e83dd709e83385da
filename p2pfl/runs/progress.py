"""Follow the records of nodes while they write them, and tell a person what happens."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from p2pfl.node.said import Said, level_of
from p2pfl.reporting.run_data import Score
from p2pfl.reporting.terminal import NodeStatus, Status


class _Tail:
    """Reads what has been appended to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Watch:
    """Progress of the nodes of a run, read from their records.

    `evaluate_every`: rounds between two evaluations, where `evaluated` is asked for them; 0: it is not. `unscored`:
    nodes that have no part in the scores that are shown.
    """

    def __init__(
        self,
        rounds: int,
        directories: Mapping[int, Path],
        score: Score,
        evaluate_every: int = 0,
        unscored: Collection[int] = (),
    ) -> None:
        self._unscored = unscored
        self._rounds, self.score, self._every = rounds, score, evaluate_every
        self._evaluated: dict[int, dict[int, dict[str, Any]]] = {}  # round -> node -> record, until it is asked for
        self._told = 0  # the last round that it was asked for
        self._metrics = {node: _Tail(path / "metrics.jsonl") for node, path in directories.items()}
        self._events = {node: _Tail(path / "events.jsonl") for node, path in directories.items()}
        self.rounds_of = dict.fromkeys(directories, 0)
        self._scores: dict[int, float | None] = dict.fromkeys(directories)
        self._moved: dict[int, float] = dict.fromkeys(directories, 0.0)  # when it last finished a round, our clock
        self._times: dict[int, list[tuple[float, int]]] = {node: [] for node in directories}
        self._took: dict[int, float] = dict.fromkeys(directories, 0.0)
        self._bytes = 0
        self._silent: dict[int, set[int]] = {}
        self._membership: dict[int, str] = {}  # "added" or "removed": what was last said of a node
        self._first: tuple[float, int] | None = None
        self.waiting: set[int] = set()  # nodes that have lost more than half of the others
        self._fresh: set[int] = set()
        self._diverged: set[int] = set()

    def read(self) -> list[str]:
        """Take in what is new; returns what to tell a person."""
        told: list[str] = []
        for node, tail in self._metrics.items():
            for row in tail.read():
                self.rounds_of[node] = row["round"]
                if self._due(row["round"]):  # of a round that a node has trained again the later life counts
                    self._evaluated.setdefault(row["round"], {})[node] = row
                after, own = row[f"{self.score.key}_after_mixing"], row[f"{self.score.key}_own"]
                if after is not None or own is not None:
                    self._scores[node] = own if after is None else after
                self._bytes += row["bytes_sent"]
                self._took[node] = row["seconds"]
                self._times[node].append((row["time"], row["round"]))
                self._fresh.add(node)
                if row["train_loss"] is None and node not in self._diverged:
                    self._diverged.add(node)
                    text = f"node {node} has diverged: its training loss is not finite (round {row['round']})"
                    told.append(Said(text, "diverged", logging.ERROR, node, row["round"]))
        return told + [
            Said(text, row["event"], level_of(row["event"]), row["node"], row["round"])
            for node, tail in self._events.items() for row in tail.read() for text in self._said(node, row)
        ]  # fmt: skip

    def _due(self, round: int) -> bool:
        """Return whether a round is evaluated, and has not been asked for."""
        return bool(self._every) and round > self._told and (round % self._every == 0 or round == self._rounds)

    def evaluated(self, waited_for: Collection[int]) -> Iterator[tuple[int, dict[int, dict[str, Any]]]]:
        """Take the evaluated rounds that all of these nodes have finished, each once, in order: (round, records)."""
        finished = min((self.rounds_of[node] for node in waited_for), default=self._rounds)
        while self._evaluated and (round := min(self._evaluated)) <= finished:
            self._told = round
            yield round, self._evaluated.pop(round)

    def _said(self, by: int, row: dict[str, Any]) -> list[str]:
        event, about, round = row["event"], row["node"], row["round"]
        if event == "detected":
            silent = self._silent.setdefault(about, set())
            silent.add(by)
            return (
                [f"node {about} is silent; node {by} continues without it (round {round})"] if len(silent) == 1 else []
            )
        if event == "recovered" and self._silent.pop(about, None):
            return [f"node {about} answers again (round {round})"]
        if event == "joined":
            self._silent.pop(about, None)
            return [f"node {about} is back at round {round}, {row['detail']}"]
        if event in ("removed", "added"):  # many say so; it is news once
            if self._membership.get(about) == event:
                return []
            self._membership[about] = event
            became = "is a member now" if event == "added" else "is no longer a member"
            return [f"node {about} {became}; the graph is planned again (round {round})"]
        if event == "reborn":
            return [f"node {about} was declared dead but lives; it continues as a new life (round {round})"]
        if event in ("waiting", "gathered", "returned"):
            if event == "waiting":
                self.waiting.add(about)
            else:
                self.waiting.discard(about)
            doing = {"waiting": "waits", "gathered": "goes on", "returned": "goes back"}[event]
            return [f"node {about} {doing}: {row['detail']} (round {round})"]
        if event in ("paused", "absent"):
            return [f"node {by}, round {round}: {event} {'' if about == by else f'node {about} '}{row['detail']}"]
        return []

    def at(self, node: int, time: float) -> int:
        """The round a node had finished at a time."""
        return max((round for when, round in self._times[node] if when <= time), default=0)

    def standing_still(self, nodes: Sequence[int], now: float, seconds: float) -> list[int]:
        """Nodes that have finished no round for so long, or for so many of their rounds."""
        return [node for node in nodes if now - self._moved[node] > seconds * max(1.0, self._took[node])]

    def silent(self, nodes: Sequence[int], now: float, seconds: float) -> list[int]:
        """Nodes that have finished no round for so long, or for so many rounds of the slowest node."""
        longest = seconds * max(1.0, *self._took.values())
        return [node for node in nodes if now - self._moved[node] > longest]

    def status(self, states: Mapping[int, str], now: float) -> Status:
        """For the view. `now`: this process's clock."""
        for node in self._moved:
            if node in self._fresh or not self._moved[node]:
                self._moved[node] = now
        self._fresh.clear()
        nodes = tuple(
            NodeStatus(node, state, self.rounds_of[node], self._scores[node]) for node, state in states.items()
        )
        known = [node for node in nodes if node.state in ("alive", "finished") and node.node not in self._unscored]
        there = [node.score for node in known if node.score is not None]
        round = max(self.rounds_of.values())
        if self._first is None and round:
            self._first = (now, round)
        left = None
        if self._first and round > self._first[1]:
            left = (now - self._first[0]) / (round - self._first[1]) * (self._rounds - round)
        mean, worst = (fmean(there), min(there)) if there else (None, None)
        return Status(round, self._rounds, nodes, mean, worst, self._bytes, left, self.score)
