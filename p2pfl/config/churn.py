"""The tables [[churn]] of an experiment: an event each, or a model that draws events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from p2pfl.churn.events import Event
from p2pfl.churn.models import MODELS, ChurnSetting
from p2pfl.churn.rules import check, check_one
from p2pfl.errors import ConfigError

_LIST = Field(strict=False)  # a list of Python is as good as a tuple; what is in it stays strict
Count = Annotated[int, Field(ge=1, lt=2**31)]
Node = Annotated[int, Field(ge=0)]
Nodes = Annotated[tuple[Node, ...], _LIST]
Groups = Annotated[tuple[Nodes, ...], _LIST]
Links = Annotated[tuple[Annotated[tuple[Node, Node], _LIST], ...], _LIST]
Mean = Annotated[float, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class ChurnEvent:
    """[[churn]]: what happens at the beginning of a round, or a model that draws many such events."""

    event: Literal["crash", "leave", "rejoin", "join", "freeze", "lag", "partition", "heal", "link_loss"] | None = None
    node: Node | None = None
    round: Count | None = None
    model: (
        Literal[
            "exponential", "weibull", "pareto", "diurnal", "trace", "correlated", "flash_crowd", "rolling_restart",
            "adversarial",
        ]
        | None
    ) = None  # fmt: skip
    state: Literal["lost", "kept"] | None = None  # of who comes back; lost
    nodes: Nodes | None = None  # several at once; of a model: those that it moves, unless all
    rounds: Count | None = None  # freeze, lag, link_loss: for so many
    seconds: Positive | None = None  # lag: a message is late by so much
    groups: Groups | None = None  # partition: of nodes; the rest form one more
    links: Links | None = None  # link_loss: pairs of nodes, for both directions
    loss: Annotated[float, Field(gt=0, le=1)] | None = None  # link_loss: probability of a message to be lost
    up: Mean | None = None  # mean rounds of a session
    down: Mean | None = None  # mean rounds between two; of a restart or a stroke: so many
    shape: Positive | None = None  # weibull, pareto: of the sessions' distribution
    start: Count | None = None  # of a model: sessions begin with this round; 1
    end: Count | None = None  # of a model: all are back in this round
    kind: Literal["crash", "leave"] | None = None  # of a model: how nodes go; crash
    period: Count | None = None  # diurnal: rounds of a day
    share: Annotated[float, Field(gt=0, le=1)] | None = None  # diurnal: there at the low; flash_crowd: that join
    path: str | None = None  # trace: looked for beside the experiment file, then in the current directory
    seconds_per_round: Positive | None = None  # trace
    sites: Groups | None = None  # correlated: nodes that are up and down together
    every: Count | None = None  # rolling_restart: rounds between one node and the next
    target: Literal["hub", "cut_vertex", "holder"] | None = None  # adversarial: whom
    class_label: str | None = None  # adversarial: the class that "holder" has most rows of

    def fields(self) -> dict[str, Any]:
        """The fields that are set, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


class Fields(NamedTuple):
    """What a kind of table holds, besides `event` or `model`."""

    must: tuple[str, ...]
    may: tuple[str, ...] = ()
    one: tuple[str, ...] = ()  # exactly one of these


_OUTAGES = ("state", "nodes", "start", "end", "kind")
FIELDS: Mapping[str, Fields] = MappingProxyType(
    {
        "crash": Fields(("node", "round")),
        "leave": Fields(("node", "round")),
        "rejoin": Fields(("node", "round"), ("state",)),
        "join": Fields(("node", "round")),
        "freeze": Fields(("node", "round", "rounds")),
        "lag": Fields(("round", "rounds", "seconds"), one=("node", "nodes")),
        "partition": Fields(("round", "groups")),
        "heal": Fields(("round",)),
        "link_loss": Fields(("round", "rounds", "loss"), one=("links", "nodes")),
        "exponential": Fields(("up", "down"), _OUTAGES),
        "weibull": Fields(("up", "down", "shape"), _OUTAGES),
        "pareto": Fields(("up", "down", "shape"), _OUTAGES),
        "diurnal": Fields(("period", "share"), _OUTAGES),
        "trace": Fields(("path", "seconds_per_round"), ("state", "nodes", "end", "kind")),
        "correlated": Fields(("sites", "up", "down"), ("state", "start", "end", "kind")),
        "flash_crowd": Fields(("round",), one=("nodes", "share")),
        "rolling_restart": Fields(("every", "down"), ("state", "nodes", "start", "kind")),
        "adversarial": Fields(("target", "round"), ("down", "state", "kind", "class_label")),
    }
)
"""What each event and each model needs and may be given; any other field is refused."""


def expand(tables: Sequence[ChurnEvent], setting: ChurnSetting) -> tuple[Event, ...]:
    """The events of all tables, checked. Raises ConfigError."""
    found: list[Event] = []
    for index, table in enumerate(each.fields() for each in tables):
        where = f"churn[{index}]"
        _fits(table, where)
        if "model" in table:
            if "round" in table and table["round"] > setting.rounds:
                raise ConfigError(f"{where}.round={table['round']}: must be within 1 to rounds={setting.rounds}")
            events = MODELS[table["model"]](table, setting, index, where)
        else:
            events = _events(table)
        for event in events:
            check_one(event, where, setting.nodes, setting.rounds)
        found += events
    check(found, setting.nodes, setting.rounds)
    return tuple(found)


def _fits(table: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError when a field is missing or would be without effect."""
    kinds = [name for name in ("event", "model") if name in table]
    if len(kinds) != 1:
        raise ConfigError(f"{where}: needs either event or model, and not both; give one of them")
    kind = kinds[0]
    name = table[kind]
    known, said = FIELDS[name], f"{kind}={name!r}"
    for field in known.must:
        if field not in table:
            raise ConfigError(f"{where}.{field}: missing; {said} needs it")
    if known.one and sum(field in table for field in known.one) != 1:
        raise ConfigError(f"{where}: {said} needs either {' or '.join(known.one)}, and not both")
    accepted = {kind, *known.must, *known.may, *known.one}
    for field, value in table.items():
        if field not in accepted:
            uses = ", ".join([*known.must, *known.one, *known.may])
            raise ConfigError(f"{where}.{field}={value!r}: {said} does not use it; it uses: {uses}")


def _events(table: Mapping[str, Any]) -> list[Event]:
    """Of a table with an event: as many as it names nodes."""
    kind, first = table["event"], table["round"]
    more: dict[str, Any] = {}
    for name in ("state", "rounds", "seconds", "loss"):
        if name in table:
            more[name] = table[name]
    for name in ("groups", "links"):
        if name in table:
            more[name] = tuple(tuple(each) for each in table[name])
    if kind == "link_loss":
        return [Event(kind, -1, first, nodes=tuple(table.get("nodes", ())), **more)]
    ids = table["nodes"] if "nodes" in table else [table.get("node", -1)]
    return [Event(kind, node, first, **more) for node in ids]
