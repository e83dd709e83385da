"""The tables [[churn]] of an experiment: a dataclass for each event, and for each model that draws events."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Count
from p2pfl.churn.events import Event
from p2pfl.churn.models import MODELS, ChurnSetting
from p2pfl.churn.rules import check, check_one
from p2pfl.config.unions import Tagged, members, refusal
from p2pfl.errors import ConfigError

Node = Annotated[int, Field(ge=0)]
Nodes = Annotated[tuple[Node, ...], LIST]
Groups = Annotated[tuple[Nodes, ...], LIST]
Links = Annotated[tuple[Annotated[tuple[Node, Node], LIST], ...], LIST]
Mean = Annotated[float, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
State = Literal["lost", "kept"]
Going = Literal["crash", "leave"]


def _either(table: object, said: str, first: str, second: str) -> None:
    """Raises a fault of the table unless exactly one of two fields is given."""
    if (getattr(table, first) is None) == (getattr(table, second) is None):
        raise refusal(f"{said} needs either {first} or {second}, and not both")


# --- events: what happens at the beginning of a round


@dataclass(frozen=True, config=STRICT)
class NodeEvent:
    """A node is gone, or is there for the first time."""

    event: Literal["crash", "leave", "join"]
    node: Node
    round: Count

    def events(self) -> list[Event]:
        """Return the events that this table means."""
        return [Event(self.event, self.node, self.round)]


@dataclass(frozen=True, config=STRICT)
class RejoinEvent:
    """A node is back."""

    event: Literal["rejoin"]
    node: Node
    round: Count
    state: State | None = None  # lost

    def events(self) -> list[Event]:
        """Return the events that this table means."""
        return [Event(self.event, self.node, self.round, self.state or "lost")]


@dataclass(frozen=True, config=STRICT)
class FreezeEvent:
    """A node stands still."""

    event: Literal["freeze"]
    node: Node
    round: Count
    rounds: Count  # for so many

    def events(self) -> list[Event]:
        """Return the events that this table means."""
        return [Event(self.event, self.node, self.round, rounds=self.rounds)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LagEvent:
    """Messages of a node, or of several, are late."""

    event: Literal["lag"]
    node: Node | None = None
    round: Count
    nodes: Nodes | None = None
    rounds: Count  # for so many
    seconds: Positive  # a message is late by so much

    @model_validator(mode="after")
    def _which(self) -> Self:
        _either(self, "event='lag'", "node", "nodes")
        return self

    def events(self) -> list[Event]:
        """Return the events that this table means: one for each node."""
        nodes = self.nodes if self.node is None else (self.node,)
        return [Event(self.event, n, self.round, rounds=self.rounds, seconds=self.seconds) for n in nodes or ()]


@dataclass(frozen=True, config=STRICT)
class PartitionEvent:
    """Messages arrive within a group only."""

    event: Literal["partition"]
    round: Count
    groups: Groups  # of nodes; the rest form one more

    def events(self) -> list[Event]:
        """Return the events that this table means."""
        return [Event(self.event, -1, self.round, groups=self.groups)]


@dataclass(frozen=True, config=STRICT)
class HealEvent:
    """Messages arrive everywhere again."""

    event: Literal["heal"]
    round: Count

    def events(self) -> list[Event]:
        """Return the events that this table means."""
        return [Event(self.event, -1, self.round)]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class LinkLossEvent:
    """Messages along some links are lost at random."""

    event: Literal["link_loss"]
    round: Count
    nodes: Nodes | None = None  # all links of these
    rounds: Count  # for so many
    links: Links | None = None  # pairs of nodes, for both directions
    loss: Share  # probability of a message to be lost

    @model_validator(mode="after")
    def _which(self) -> Self:
        _either(self, "event='link_loss'", "links", "nodes")
        return self

    def events(self) -> list[Event]:
        """Return the events that this table means."""
        nodes, links = self.nodes or (), self.links or ()
        return [Event(self.event, -1, self.round, rounds=self.rounds, nodes=nodes, links=links, loss=self.loss)]


# --- models: what draws such events


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Exponential:
    """Sessions and gaps of exponential length."""

    model: Literal["exponential"]
    state: State | None = None  # of who comes back; lost
    nodes: Nodes | None = None  # those that it moves; all
    up: Mean  # mean rounds of a session
    down: Mean  # mean rounds between two
    start: Count | None = None  # sessions begin with this round; 1
    end: Count | None = None  # all are back in this round
    kind: Going | None = None  # how nodes go; crash


@dataclass(frozen=True, config=STRICT, kw_only=True)
class HeavyTailed:
    """Sessions of Weibull or Pareto length, exponential gaps."""

    model: Literal["weibull", "pareto"]
    state: State | None = None
    nodes: Nodes | None = None
    up: Mean
    down: Mean
    shape: Positive  # of the sessions' distribution
    start: Count | None = None
    end: Count | None = None
    kind: Going | None = None


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Diurnal:
    """Nodes that go and come with the time of day."""

    model: Literal["diurnal"]
    state: State | None = None
    nodes: Nodes | None = None
    start: Count | None = None
    end: Count | None = None
    kind: Going | None = None
    period: Count  # rounds of a day
    share: Share  # there at the low


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Trace:
    """Sessions recorded in a file."""

    model: Literal["trace"]
    state: State | None = None
    nodes: Nodes | None = None
    end: Count | None = None
    kind: Going | None = None
    path: str  # looked for beside the experiment file, then in the current directory
    seconds_per_round: Positive


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Correlated:
    """Sites whose nodes are up and down together."""

    model: Literal["correlated"]
    state: State | None = None
    up: Mean
    down: Mean
    start: Count | None = None
    end: Count | None = None
    kind: Going | None = None
    sites: Groups


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FlashCrowd:
    """Nodes that join at once."""

    round: Count
    model: Literal["flash_crowd"]
    nodes: Nodes | None = None
    share: Share | None = None  # that join

    @model_validator(mode="after")
    def _which(self) -> Self:
        _either(self, "model='flash_crowd'", "nodes", "share")
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class RollingRestart:
    """One node after the other is away."""

    model: Literal["rolling_restart"]
    state: State | None = None
    nodes: Nodes | None = None
    down: Mean  # so many rounds
    start: Count | None = None
    kind: Going | None = None
    every: Count  # rounds between one node and the next


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Adversarial:
    """The node whose loss hurts most is struck."""

    round: Count
    model: Literal["adversarial"]
    state: State | None = None
    down: Mean | None = None  # so many rounds
    kind: Going | None = None
    target: Literal["hub", "cut_vertex", "holder"]  # whom
    class_label: str | None = None  # the class that "holder" has most rows of


NodeOrNetwork = NodeEvent | RejoinEvent | FreezeEvent | LagEvent | PartitionEvent | HealEvent | LinkLossEvent
Drawn = Exponential | HeavyTailed | Diurnal | Trace | Correlated | FlashCrowd | RollingRestart | Adversarial
Churn = NodeOrNetwork | Drawn
"""[[churn]]: what happens at the beginning of a round, or a model that draws many such events."""
ChurnTable = Annotated[
    Churn, Tagged(("event", "model"), missing="needs either event or model, and not both; give one of them")
]
KINDS = members(Churn)
"""The dataclasses of [[churn]]."""


def expand(tables: Sequence[Churn], setting: ChurnSetting) -> tuple[Event, ...]:
    """The events of all tables, checked. Raises ConfigError."""
    result: list[Event] = []
    for index, table in enumerate(tables):
        where = f"churn[{index}]"
        events = _drawn(table, setting, index, where) if isinstance(table, Drawn) else table.events()
        for event in events:
            check_one(event, where, setting.nodes, setting.rounds)
        result += events
    check(result, setting.nodes, setting.rounds)
    return tuple(result)


def _drawn(table: Drawn, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    """The events of a model."""
    given: dict[str, Any] = {name: value for name, value in dataclasses.asdict(table).items() if value is not None}
    if given.get("round", 1) > setting.rounds:
        raise ConfigError(f"{where}.round={given['round']}: must be within 1 to rounds={setting.rounds}")
    return MODELS[table.model](given, setting, index, where)
