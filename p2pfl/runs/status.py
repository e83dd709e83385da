"""`p2pfl status ADDRESS|NODE.toml`: ask a node that runs how it stands, and say so to a person or a program.

A program may ask every few seconds: what takes a second to import is imported where it is needed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from p2pfl.config import toml
from p2pfl.drivers.live import addresses, curve, reach
from p2pfl.drivers.live.curve import Keys
from p2pfl.errors import ConfigError, Exit, RemoteError
from p2pfl.node import status
from p2pfl.node.status import SELF, SILENT, THERE, ReportedMember, StatusReport
from p2pfl.protocol.questions import STATUS, question
from p2pfl.trust import assembly, keyring, keys, store

_LATE = 1.0
"""Seconds that somebody must have been waited for, to be called late: each round waits for all a moment."""

_SHOWN, _WIDE = 32, 24
"""Members that a person is shown one by one, and characters of a name."""


class NodeAnswer(NamedTuple):
    """What has come of asking."""

    address: str
    report: StatusReport | None  # None: it did not answer ...
    why: str = ""  # ... for this reason

    @property
    def code(self) -> Exit:
        """Whether the node is well."""
        return Exit.NOT_WHOLE if self.reasons else Exit.DONE

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not, each a line for a person."""
        report = self.report
        if report is None:
            return (f"{self.address}: {self.why}",)
        reasons = [f"node {report.node} is about to end: {report.leaving}"] if report.leaving else []
        if report.alone:
            reasons.append(f"node {report.node} is alone: of {1 + len(report.missing)} nodes no other is there")
        elif report.missing:
            reasons.append(f"not there: node {_listed(report.missing)}")
        if silent := tuple(each.node for each in report.members if each.state == SILENT):
            reasons.append(f"silent, so that nobody waits any more: node {_listed(silent)}")
        if report.waiting:
            reasons.append("it trains no further round before others are there")
        return tuple(reasons)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        table = {} if self.report is None else dataclasses.asdict(self.report)
        return {"address": self.address, "exit_code": int(self.code), "reasons": [*self.reasons], **table}


class AskingMember(NamedTuple):
    """The files by which somebody asks as a member of a federation."""

    key: Path
    federation: Path


def ask(where: str, who: AskingMember | None = None) -> NodeAnswer:
    """Ask the node at an address, or that of a node file. Takes seconds. Raises ConfigError.

    `who`: asks, where the node's links have keys; a node file says it itself.
    """
    address, own = whom(where, who)
    try:
        return NodeAnswer(address, status.decode(reach.answered(address, question(STATUS), own)))
    except RemoteError as error:
        return NodeAnswer(address, None, error.detail)


def whom(where: str, who: AskingMember | None) -> tuple[str, Keys | None]:
    """Return the address that is meant, and the keys of a connection to it. Raises ConfigError.

    An address that the federation file does not name is taken for one of the node whose key it is.

    >>> whom("hospital-a.example.org:5700", None), whom("tcp://[::1]:5700", None)
    (('tcp://hospital-a.example.org:5700', None), ('tcp://[::1]:5700', None))
    """
    path = Path(where)
    if path.suffix == ".toml" or path.is_file():
        from p2pfl.config import experiment as config
        from p2pfl.runs import keyed

        if not config.is_node(path):
            raise ConfigError(f"{where}: is no node file: it names no experiment; give that of a node, or its address")
        if who is not None:
            raise ConfigError(f"--key, --federation: {where} says itself who asks; leave them out")
        given, ring = keyed.completed(path, config.load_node(path))
        return _inside(given.listen), None if ring is None else curve.keys(ring, ring.node)
    address = _address(where)
    if who is None:
        return address, None
    document = store.read(who.federation)
    ring = keyring.of_document(document, keys.read(who.key))
    places = {site.address: site.node for site in assembly.read(document).head.sites.values()}
    return address, curve.keys(ring, places.get(address, ring.node))


def _address(where: str) -> str:
    address = where if "://" in where else f"tcp://{where}"
    if not re.search(toml.ADDRESS, address) or not 1 <= addresses.parsed(address).port <= 65535:
        raise ConfigError(
            f"{where}: is neither a file nor an address; give NODE.toml, or HOST:PORT as in 127.0.0.1:5700, where the "
            "node takes models"
        )
    return address


def _inside(listen: str) -> str:
    """Return how a node is reached on its own machine."""
    place = addresses.parsed(listen)
    if not place.anywhere:
        return listen
    return f"tcp://[::1]:{place.port}" if ":" in place.host else f"tcp://127.0.0.1:{place.port}"


def lines(answer: NodeAnswer, now: datetime) -> Iterator[str]:
    """Yield what a person is told, in lines that fit a terminal."""
    from p2pfl.reporting.terminal import duration, size

    report = answer.report
    if report is None:
        return
    started = (now - timedelta(seconds=report.uptime)).astimezone(UTC)
    named = f" ({report.name})" if report.name else ""
    yield f"node {report.node}{named} of {report.experiment} at {answer.address}"
    yield _row("since", f"{started:%Y-%m-%d %H:%M:%S} UTC, for {duration(report.uptime)}")
    yield _row("version", f"p2pfl {report.version}, protocols {report.protocols[0]} and {report.protocols[1]}")
    yield _row("federation", report.federation)
    yield _row("links", "encrypted" if report.encrypted else "not encrypted")
    left = report.seconds_left
    yield _row("round", _round(report, "" if left is None or report.round >= report.rounds else duration(left)))
    yield _row("score", _score(report))
    yield _row("exchanges", f"{report.booked:,} booked, {report.voided:,} voided, {report.open} open")
    forwarded = f", {size(report.bytes_forwarded)} forwarded for others" if report.bytes_forwarded else ""
    yield _row("traffic", f"{size(report.bytes_sent)} sent, {size(report.bytes_received)} received{forwarded}")
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.dropped.items()))
    yield _row("dropped", dropped or "nothing")
    if report.records_dropped:
        yield _row("records", f"{report.records_dropped:,} lines could not be written")
    late = [f"node {each.node} for {duration(each.seconds)}" for each in report.late if each.seconds >= _LATE]
    yield _row("late", ", ".join(late) or "nobody")
    yield from _members(report)


def _row(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _round(report: StatusReport, left: str) -> str:
    text = f"{report.round:,} of {report.rounds:,}, {report.stage}" + (f"; {left} left" if left else "")
    return text + (f"; {report.rounds_alone:,} of them without half of the others" if report.rounds_alone else "")


def _score(report: StatusReport) -> str:
    known = [
        f"{name} {value:.4g}" for name, value in ((report.score_name, report.score), ("loss", report.loss))
        if value is not None
    ]  # fmt: skip
    return ", ".join(known) or "nothing measured yet"


def _members(report: StatusReport) -> Iterator[str]:
    there = sum(each.state in THERE for each in report.members) + report.more_members
    gone = f"; not there: node {_listed(report.missing)}" if report.missing else ""
    yield _row("members", f"{there} there{gone}")
    width = max(4, *(len(_name(each)) for each in report.members[:_SHOWN])) if report.members else 4
    yield f"  {'node':<{width}}  {'state':<9}{'round':>9}  address"
    for each in report.members[:_SHOWN]:
        state = {SELF: "this node"}.get(each.state, each.state)
        yield f"  {_name(each):<{width}}  {state:<9}{each.round:>9,}  {each.address}"
    if more := len(report.members[_SHOWN:]) + report.more_members:
        yield f"  and {more} more"


def _name(member: ReportedMember) -> str:
    return f"{member.node} {member.name}".rstrip()[:_WIDE]


def _listed(nodes: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, nodes[:_SHOWN]))
    return shown if len(nodes) <= _SHOWN else f"{shown} and {len(nodes) - _SHOWN} more"
