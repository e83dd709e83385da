"""`p2pfl check RUN ...`: the books of all nodes of a federation together, whoever started them, and what is missing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from p2pfl.errors import ConfigError
from p2pfl.node import records, result
from p2pfl.node.result import NodeResult
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import about, flow, ledger, summary
from p2pfl.runs.about import About
from p2pfl.runs.flow import FlowOfSites
from p2pfl.runs.verdict import RunVerdict, verdict

BALANCED = 1e-6
"""Mean residual up to which the books balance: rounding of float32 stays far below it."""

_RECORDS = ("result.json", "trace.jsonl", "metrics.jsonl")


class NodeEnd(NamedTuple):
    """How one node ended, by its records."""

    node: int
    how: str  # for a person
    round: int  # the last it took part in
    booked: int
    voided: int
    skipped: int  # rounds between the first and the last of a life that it has no record of
    forwarded: dict[str, int] | None = None  # bytes, by "FROM to TO"
    encrypted: bool | None = None  # its links; None where it left no result


class Checked(NamedTuple):
    """The books of a federation."""

    ends: tuple[NodeEnd, ...]
    missing: tuple[int, ...]  # nodes whose records are not here
    summary: Summary
    verdict: RunVerdict
    flow: FlowOfSites  # of the sites of all nodes

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        names = ("mean_residual", "residue", "residue_drift", "exchanges_booked", "exchanges_voided",
                 "messages_dropped", "lost", "lost_unplanned", "left", "diverged")  # fmt: skip
        table = self.summary.as_dict()
        return {
            "nodes": {str(end.node): end._asdict() for end in self.ends},
            "missing": [*self.missing],
            **{name: table[name] for name in names},
            "rounds_skipped": sum(end.skipped for end in self.ends),
            "incomplete": [*self.verdict.reasons],
            "flow": self.flow,
        }

    def lines(self) -> list[str]:
        """For a person."""
        books, skipped = self.summary, sum(end.skipped for end in self.ends)
        told = [
            f"node {end.node}: {end.how}; {end.booked} exchanges booked, {end.voided} voided, "
            f"{end.skipped} rounds skipped{_forwarded(end)}"
            for end in self.ends
        ]
        told += [f"node {node}: its records are missing" for node in self.missing]
        balance = "nothing to balance: it is not exchanges that keep the mean"
        if books.mean_residual is not None:
            balance = f"mean residual {books.mean_residual:.3g}, residue {books.residue}"
            balance += f" (drift {books.residue_drift:.3g})" if books.residue else ""
        elif books.keeps_mean == "exchange" and books.residue:
            balance = f"residue {books.residue}: by how much the mean has moved is not known, since sums were mixed"
        dropped = ", ".join(f"{reason} {count}" for reason, count in (books.messages_dropped or {}).items())
        return [
            *flow.lines(self.flow),
            *told,
            balance,
            f"{books.exchanges_booked} exchanges booked, {books.exchanges_voided} ends voided, "
            f"{skipped} rounds skipped; messages dropped: {dropped or 'none'}",
            *_kept(self.ends),
        ]


def check(paths: Sequence[Path]) -> Checked:
    """Balance the books of all nodes whose records are in `paths`: directories of nodes, or of whole runs.

    Raises ConfigError for directories that hold no records, or those of several federations.
    """
    places = _places(paths)
    facts = _facts(paths, places)
    results = {node: result.read(path) for node, path in places.items()}
    ended = {node: each for node, each in results.items() if each is not None}
    rows = {node: records.read(path / "metrics.jsonl") for node, path in places.items()}
    lives = {(node, each.life) for node, each in ended.items()}
    books = ledger.balance(dict(places), lives, facts.parameters, facts.link, facts.keeps_mean, sums=facts.sums)
    lost = _lost(results, rows)
    nodes = {*range(facts.nodes), *_joined(places)} | places.keys()
    missing = tuple(sorted(nodes - places.keys()))
    metrics = [row for each in rows.values() for row in each]
    ends = tuple(_end(node, results[node], rows[node]) for node in places)
    whole = replace(
        Summary(name=facts.name, nodes=len(nodes), rounds=facts.rounds, keeps_mean=facts.keeps_mean),
        **summary.outcome(metrics, ended, facts.link),
        **books._asdict(),
        lost=tuple(sorted(lost)),
        lost_unplanned={str(node): how for node, how in lost.items() if node not in facts.planned_losses},
        left=tuple(node for node, each in ended.items() if each.left and node not in lost),
        rounds_skipped=_unplanned(paths, ends),
        rounds_alone={str(node): each.alone for node, each in ended.items() if each.alone},
        diverged=_diverged(paths, ended),
        incomplete=(
            *_unbalanced(books),
            *_apart(rows, facts),
            *(f"the records of node {node} are missing" for node in missing),
        ),
    )
    return Checked(ends, missing, whole, verdict(whole), _flow(places))


def _joined(places: Mapping[int, Path]) -> set[int]:
    """Nodes that have become members while others were at work, also beyond those that the experiment plans."""
    events = (row for place in places.values() for row in records.read(place / "events.jsonl"))
    return {row["node"] for row in events if row["event"] == "added"}


def _flow(places: Mapping[int, Path]) -> FlowOfSites:
    """The rows of the sites of all nodes; a node whose data name no site is called by its number."""
    result: FlowOfSites = {}
    for node, place in places.items():
        for site, rows in flow.read(place).items():
            name = site or f"node {node}"
            result[f"{name} (node {node})" if name in result else name] = rows
    return result


def _diverged(paths: Sequence[Path], ended: Mapping[int, NodeResult]) -> Mapping[str, int]:
    """Return who has diverged: by the nodes' own word what is not finite, by a run's all that it has found."""
    own = {str(node): each.diverged for node, each in ended.items() if each.diverged}
    for path in paths:
        if (path / "summary.json").is_file():
            own |= Summary.of(json.loads((path / "summary.json").read_text("utf-8"))).diverged
    return own


def _unplanned(paths: Sequence[Path], ends: Sequence[NodeEnd]) -> Mapping[str, int]:
    """Return the rounds that each node has skipped; of a run, without those that it was to stand still in."""
    for path in paths:
        if (path / "summary.json").is_file():
            return Summary.of(json.loads((path / "summary.json").read_text("utf-8"))).rounds_skipped
    return {str(end.node): end.skipped for end in ends if end.skipped}


def _unbalanced(books: ledger.Ledger) -> list[str]:
    residual = books.mean_residual
    if residual is None or residual <= BALANCED:
        return []
    return [f"the books do not balance: mean residual {residual:.3g}, where rounding leaves less than {BALANCED:g}"]


def _apart(rows: Mapping[int, Sequence[dict[str, Any]]], facts: About) -> list[str]:
    """Nodes that have trained and mixed with nobody, where their algorithm mixes."""
    if facts.link == "none" or facts.nodes < 2:
        return []
    alone = [node for node, each in rows.items() if each and not any(map(records.exchanges, each))]
    return [
        f"node {node} has trained {sum(map(records.span, rows[node]))} rounds alone: it has mixed with nobody"
        for node in alone
    ]


def _lost(results: Mapping[int, NodeResult | None], rows: Mapping[int, Sequence[dict[str, Any]]]) -> dict[int, str]:
    lost = {}
    for node, ended in results.items():
        if ended is None:
            last = rows[node][-1]["round"] if rows[node] else 0
            lost[node] = f"left no result: it died after round {last}, or is still at work"
        elif ended.error:
            lost[node] = f"failed: {ended.error}"
    return lost


def _end(node: int, ended: NodeResult | None, rows: Sequence[dict[str, Any]]) -> NodeEnd:
    skipped = sum(
        after["round"] - before["round"] - records.span(after)
        for before, after in itertools.pairwise(rows)
        if before["life"] == after["life"]
    )
    last = rows[-1]["round"] if rows else 0
    if ended is None:
        how = f"no result: it died after round {last}, or is still at work"
        return NodeEnd(node, how, last, sum(map(records.exchanges, rows)), 0, skipped)
    if ended.error:
        how = f"failed in round {ended.round}: {ended.error}"
    else:
        how = f"{'left in' if ended.left else 'ended after'} round {ended.round}"
        how += f" ({ended.stopped_by})" if ended.left and ended.stopped_by else ""
    return NodeEnd(
        node, how, ended.round, ended.booked, ended.voided, skipped, ended.forwarded, ended.encrypted
    )  # fmt: skip


def _forwarded(end: NodeEnd) -> str:
    if not end.forwarded:
        return ""
    between = ", ".join(f"node {way} {count / 1e6:.3g} MB" for way, count in sorted(end.forwarded.items()))
    return f"; forwarded, sealed: {between}"


def _kept(ends: Sequence[NodeEnd]) -> list[str]:
    """Say how links were kept, of the nodes that say so."""
    plain = [str(end.node) for end in ends if end.encrypted is False]
    if not any(end.encrypted is not None for end in ends):
        return []
    if not plain:
        return ["links were encrypted, and members proved their keys"]
    return [f"links were not encrypted: node {', '.join(plain)}"]


# --- whose records are where


def _places(paths: Sequence[Path]) -> dict[int, Path]:
    """The directory of each node's records."""
    places: dict[int, Path] = {}
    for path in paths:
        if (path / "nodes").is_dir():
            more = summary.directories(path)
        elif any((path / name).is_file() for name in _RECORDS):
            more = {_node(path): path}
        else:
            raise ConfigError(
                f"{path}: holds no records; give the directory of a run, or those of all its nodes "
                "(with result.json, trace.jsonl, metrics.jsonl)"
            )
        for node, place in more.items():
            if node in places:
                raise ConfigError(f"{place}: is of node {node}, as {places[node]}; give one directory for each node")
            places[node] = place
    return dict(sorted(places.items()))


def _node(path: Path) -> int:
    """Whose records a directory holds."""
    if (told := about.read(path)) is not None:
        return told.node
    if (ended := result.read(path)) is not None:
        return ended.node
    for row in records.read(path / "metrics.jsonl"):
        return int(row["node"])
    raise ConfigError(f"{path}: does not say whose records it holds; give directories that have about.json")


def _facts(paths: Sequence[Path], places: Mapping[int, Path]) -> About:
    """What all nodes have in common: as they say themselves, else as the summary of a run has it."""
    told = {node: each for node, path in places.items() if (each := about.read(path)) is not None}
    if told:
        first, *rest = told
        for node in rest:
            if told[node]._replace(node=first) != told[first]:
                raise ConfigError(
                    f"{places[node]}: is of another federation than {places[first]}; give the directories of one"
                )
        return told[first]
    for path in paths:
        file = path / "summary.json"
        if file.is_file():
            s = Summary.of(json.loads(file.read_text("utf-8")))
            if s.nodes is not None and s.rounds is not None and s.parameters is not None:
                link = "exchange" if s.keeps_mean == "exchange" else "push"
                gone = tuple(node for node in s.lost if str(node) not in s.lost_unplanned)
                return About(-1, s.name, s.nodes, s.rounds, s.parameters, link, s.keeps_mean, s.score, "", gone)
    raise ConfigError(
        f"{paths[0]}: holds neither about.json, which nodes write, nor the summary.json of a run: how large the "
        "federation is and how it keeps the mean is not known"
    )
