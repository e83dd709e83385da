"""How a node stands, for whoever operates it: one value, made by the node, and read by who has asked.

What comes in as an answer may be anybody's: it is bounded, of these fields and types alone, and no terminal obeys it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from p2pfl.errors import RemoteError
from p2pfl.protocol.agreement import pack, printable, unpack
from p2pfl.protocol.questions import CAP

FORMAT = 1
"""Of the answer; another one is another version's."""

MEMBERS = 1024
"""Members that are told one by one; of more, how many there are."""

SELF, SILENT = "self", "silent"
"""States of the node itself among the members, and of one that is there and does not answer it; the others have those
of the membership."""

THERE = (SELF, "alive", "suspect", SILENT)
"""States of those that are members."""

_KEY, _PLACE = "key", "place"
"""Why a question is refused."""

_REFUSED = {
    _KEY: "it tells how it stands to members of its federation alone, who show their key",
    _PLACE: "its links have no keys, and such a node tells how it stands on its own machine alone: ask there",
}

_BOUNDED = ConfigDict(strict=True, extra="ignore")

Whole = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=200), AfterValidator(printable)]


@dataclass(frozen=True, config=_BOUNDED)
class ReportedMember:
    """A member as the node sees it; one that is gone stays on the list."""

    node: Whole
    name: Text  # "": not known
    state: Text  # SELF, SILENT, alive, suspect, dead, left
    round: Whole  # the last one heard of
    address: Text


@dataclass(frozen=True, config=_BOUNDED)
class LateNode:
    """A node that is waited for, or was until it did not answer any more."""

    node: Whole
    seconds: Seconds  # for so long by now


@dataclass(frozen=True, config=_BOUNDED)
class StatusReport:
    """How a node stands at one moment. What one node alone can't know is not here: see `p2pfl check`."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    node: Whole
    name: Text  # "": not known
    experiment: Text
    federation: Text  # digest of what all nodes have in common
    version: Text  # of p2pfl
    protocols: tuple[Whole, Whole]  # of models and of the membership
    encrypted: bool  # its links are
    uptime: Seconds  # since it has been listening
    life: Whole
    stage: Text  # of protocol/peer.py
    round: Whole
    rounds: Whole
    seconds_left: Seconds | None  # as long as the last rounds took; None: it does not get on
    waiting: bool  # it trains no further round before others are there
    leaving: Text  # why it is about to end; "": it is not
    members: Annotated[tuple[ReportedMember, ...], Field(max_length=4 * MEMBERS)]
    more_members: Whole  # that are not told one by one
    missing: Annotated[tuple[Whole, ...], Field(max_length=4 * MEMBERS)]  # that should be there
    late: Annotated[tuple[LateNode, ...], Field(max_length=4 * MEMBERS)]
    booked: Whole  # exchanges so far, and pushes that came in
    voided: Whole  # ends of exchanges that were given up
    open: Whole  # exchanges that are neither
    bytes_sent: Whole
    bytes_received: Whole
    bytes_forwarded: Whole  # sealed, between members that can't reach each other
    dropped: Annotated[dict[Text, Whole], Field(max_length=256)]  # messages by reason
    score_name: Text
    score: Number | None  # of its model, as last measured
    loss: Number | None  # mean over the local steps of the latest round
    rounds_alone: Whole  # that it trained without half of those that should have been there
    records_dropped: Whole  # lines of its records that could not be written

    @property
    def alone(self) -> bool:
        """Nobody else is there, and somebody should be."""
        return bool(self.missing) and not any(each.state in THERE[1:] for each in self.members)


_REPORT = TypeAdapter(StatusReport)


def finite(number: float | None) -> float | None:
    """Return a number where there is one: JSON has no word for what is not finite."""
    return None if number is None or not math.isfinite(number) else float(number)


def encode(report: StatusReport) -> bytes:
    """Return it as it travels: of many members as many as the answer may hold."""
    while len(packed := pack(json.dumps(dataclasses.asdict(report)))) > CAP:
        told = report.members[: len(report.members) // 2]
        more = report.more_members + len(report.members) - len(told)
        report = dataclasses.replace(
            report, members=told, more_members=more, missing=report.missing[: len(told)], late=report.late[: len(told)]
        )
    return packed


def first(members: Iterable[ReportedMember]) -> tuple[tuple[ReportedMember, ...], int]:
    """Return the members that are told one by one, those that are there before those that are gone; and how many more.

    In the order of their numbers.
    """
    ranked = sorted(members, key=lambda each: (each.state in ("dead", "left"), each.node))
    return tuple(sorted(ranked[:MEMBERS], key=lambda each: each.node)), max(0, len(ranked) - MEMBERS)


def refusal(keyed: bool) -> bytes:
    """Return what a stranger is answered: nothing but why. `keyed`: the node's links have keys."""
    return pack(json.dumps({"refused": _KEY if keyed else _PLACE}))


def decode(answer: bytes) -> StatusReport:
    """Return what was answered. RemoteError: it is refused, or nothing that an honest node answers."""
    if len(answer) > CAP:
        raise RemoteError("size", f"{len(answer)} bytes of an answer; at most {CAP}")
    try:
        table: Any = json.loads(unpack(answer))
    except (ValueError, RecursionError) as error:
        raise RemoteError("handshake", f"an answer that can't be read: {error}"[:200]) from error
    if not isinstance(table, dict):
        raise RemoteError("handshake", "an answer that is none")
    if (why := table.get("refused")) is not None:
        raise RemoteError("refused", _REFUSED.get(why, "without a reason") if isinstance(why, str) else "")
    if table.get("format") != FORMAT:
        raise RemoteError("version", "what answers has another version of p2pfl; install the same version here")
    try:
        return _REPORT.validate_json(json.dumps(table))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        at = ", ".join(str(each["loc"][0]) for each in faults[:3] if each["loc"])
        raise RemoteError("handshake", f"an answer that no node gives ({at or 'no JSON'})") from error
