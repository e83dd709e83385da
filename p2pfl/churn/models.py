"""Models of churn: each draws events as a pure function of the seed.

Most of them decide who is up at the beginning of which round, an array [rounds, nodes]; events are where that changes.
At least two nodes stay up: whoever would leave fewer there stays until another one is back, lower ids first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from p2pfl import random_bits
from p2pfl.churn.events import Event
from p2pfl.churn.rules import check_distinct
from p2pfl.errors import ConfigError, nearest

LEAST = 2
"""Nodes that a model leaves up."""
Table = Mapping[str, Any]


class ChurnSetting(NamedTuple):
    """The facts that a churn model may look at."""

    nodes: int
    rounds: int
    seed: int
    graph: nx.Graph  # who may ever talk to whom
    labels: Sequence[Mapping[str, int]] | None = None  # of each node: class -> training rows; None: not known (yet)


Model = Callable[[Table, ChurnSetting, int, str], list[Event]]
"""(table, setting, its place among the tables, where it stands) -> events. Raises ConfigError."""


# --- who is up when, as events


def events_of(up: np.ndarray, kind: str = "crash", state: str = "lost") -> list[Event]:
    """The events of up [rounds, nodes], once `spared`. Who is not up at first joins; `kind`: "crash" or "leave"."""
    up = spared(up)
    found = []
    for node in np.flatnonzero(~up.all(axis=0)).tolist():
        there = np.flatnonzero(up[:, node])
        if not there.size:
            found.append(Event("leave", node, 1))
            continue
        first = int(there[0])
        if first:
            found.append(Event("join", node, first + 1))
        for r in (np.flatnonzero(np.diff(up[first:, node])) + first + 1).tolist():
            found.append(Event("rejoin", node, r + 1, state) if up[r, node] else Event(kind, node, r + 1))
    return found


def spared(up: np.ndarray) -> np.ndarray:
    """The same with at least two nodes up in every round."""
    up, least = up.copy(), min(LEAST, up.shape[1])
    for r in np.flatnonzero(up.sum(axis=1) < least).tolist():
        before = up[r - 1] if r else np.ones(up.shape[1], bool)
        stay = np.flatnonzero(before & ~up[r])[: least - int(up[r].sum())]
        up[r, stay] = True
    return up


def _renewed(lengths: Callable[[int, np.ndarray], np.ndarray], many: int, rounds: int, start: int) -> np.ndarray:
    """[rounds, many] bool: sessions and gaps in turn from the beginning of round `start` on, looked at once a round.

    `lengths(k, ids)` [many]: in rounds, of the k-th stretch of each; even ones are up.
    """
    change = np.zeros((rounds + 1, many), np.int64)
    ids, time = np.arange(many), np.full(many, float(start - 1))
    k = 0
    while time.min(initial=math.inf) < rounds:
        began, time = time, time + lengths(k, ids)
        if k % 2:
            first, last = (np.minimum(np.ceil(at), rounds).astype(np.int64) for at in (began, time))
            np.add.at(change, (first, ids), 1)
            np.add.at(change, (last, ids), -1)
        k += 1
    return np.cumsum(change, axis=0)[:rounds] == 0


def _some(table: Table, setting: ChurnSetting, where: str, up: Callable[[int], np.ndarray]) -> list[Event]:
    """The events of a model of the nodes that the table names, or of all; `up(how many)` [rounds, so many]."""
    ids = list(table.get("nodes", range(setting.nodes)))
    check_distinct([ids], f"{where}.nodes", setting.nodes)
    whole = np.ones((setting.rounds, setting.nodes), bool)
    whole[:, ids] = up(len(ids))
    whole[table.get("end", setting.rounds + 1) - 1 :] = True
    return events_of(whole, table.get("kind", "crash"), table.get("state", "lost"))


# --- sessions


def _exponential(mean: float, shape: float, u: np.ndarray) -> np.ndarray:
    return -mean * np.log1p(-u)


def _weibull(mean: float, shape: float, u: np.ndarray) -> np.ndarray:
    return mean / math.gamma(1 + 1 / shape) * (-np.log1p(-u)) ** (1 / shape)


def _pareto(mean: float, shape: float, u: np.ndarray) -> np.ndarray:
    return mean * (shape - 1) / shape * (1 - u) ** (-1 / shape)


def _sessions(length: Callable[[float, float, np.ndarray], np.ndarray], above: float = 0.0) -> Model:
    """Sessions with this distribution; what lies between them is exponential."""

    def expand(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
        shape = table.get("shape", above + 1)
        if not shape > above:
            raise ConfigError(f"{where}.shape={shape}: must be > {above:g} for model={table['model']!r}")

        def lengths(k: int, ids: np.ndarray) -> np.ndarray:
            u = random_bits.uniform(random_bits.CHURN, setting.seed, index, ids, k)
            return _exponential(table["down"], 1.0, u) if k % 2 else length(table["up"], shape, u)

        start = table.get("start", 1)
        return _some(table, setting, where, lambda many: _renewed(lengths, many, setting.rounds, start))

    return expand


def _correlated(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    sites = table["sites"]
    check_distinct(sites, f"{where}.sites", setting.nodes)

    def lengths(k: int, ids: np.ndarray) -> np.ndarray:
        mean = table["down"] if k % 2 else table["up"]
        return _exponential(mean, 1.0, random_bits.uniform(random_bits.CHURN, setting.seed, index, ids, k))

    up = np.ones((setting.rounds, setting.nodes), bool)
    for site, column in zip(sites, _renewed(lengths, len(sites), setting.rounds, table.get("start", 1)).T, strict=True):
        up[:, list(site)] = column[:, None]
    up[table.get("end", setting.rounds + 1) - 1 :] = True
    return events_of(up, table.get("kind", "crash"), table.get("state", "lost"))


# --- clocks and traces


def _diurnal(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    low, period = table["share"], table["period"]

    def up(many: int) -> np.ndarray:
        turn = np.argsort(
            np.argsort(random_bits.uniform(random_bits.CHURN, setting.seed, index, np.arange(many)), kind="stable")
        )
        phase = 2 * np.pi * np.maximum(np.arange(setting.rounds) + 1 - table.get("start", 1), 0) / period
        there = low + (1 - low) * (1 + np.cos(phase)) / 2
        return (turn + 0.5) / many < np.round(there, 12)[:, None]

    return _some(table, setting, where, up)


def _trace(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    path, lives = Path(table["path"]), _read_trace(table, where)

    def up(many: int) -> np.ndarray:
        if len(lives) < many:
            raise ConfigError(
                f"{where}.path={str(path)!r}: has {len(lives)} entries for {many} nodes; name fewer nodes"
            )
        columns = []
        for begins, ends, finish in lives[:many]:
            now = np.arange(setting.rounds) * table["seconds_per_round"] % finish
            columns.append(((now[:, None] >= begins) & (now[:, None] < ends)).any(axis=1))
        return np.stack(columns, axis=1)

    return _some(table, setting, where, up)


def _read_trace(table: Table, where: str) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """(beginnings of sessions, their ends, seconds after which all repeats) of each entry, in the file's order."""
    path = table["path"]
    try:
        entries = json.loads(Path(path).read_text("utf-8-sig"))
        found = [
            (np.array(e["active"], float), np.array(e["inactive"], float), float(e["finish_time"]))
            for e in entries.values()
        ]
    except OSError as error:
        raise ConfigError(f"{where}.path={path!r}: can't be read: {error.strerror}; give another path") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{where}.path={path!r}: must be JSON, id -> {{duration, active, inactive, finish_time}} ({error!r})"
        ) from error
    for name, (begins, ends, finish) in zip(entries, found, strict=True):
        if begins.shape != ends.shape or begins.ndim != 1 or not finish > 0 or not (begins <= ends).all():
            raise ConfigError(
                f"{where}.path={path!r}: entry {name!r}: active and inactive must be lists of equal length, each "
                "session's end behind its beginning, and finish_time > 0"
            )
    return found


# --- single strokes


def _flash_crowd(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    ids = table.get("nodes")
    if ids is None:
        order = np.argsort(
            random_bits.uniform(random_bits.CHURN, setting.seed, index, np.arange(setting.nodes)), kind="stable"
        )
        many = min(round(table["share"] * setting.nodes), setting.nodes - LEAST)
        ids = np.sort(order[: max(many, 0)]).tolist()
    else:
        check_distinct([ids], f"{where}.nodes", setting.nodes)
    return [Event("join", node, table["round"]) for node in ids]


def _rolling_restart(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    start, down = table.get("start", 1), _whole(table, "down", where)
    up = np.ones((setting.rounds, setting.nodes), bool)
    ids = list(table.get("nodes", range(setting.nodes)))
    check_distinct([ids], f"{where}.nodes", setting.nodes)
    for k, node in enumerate(ids):
        first = start - 1 + k * table["every"]
        up[first : first + down, node] = False
    return events_of(up, table.get("kind", "crash"), table.get("state", "lost"))


def _whole(table: Table, name: str, where: str) -> int:
    if table[name] != int(table[name]):
        raise ConfigError(f"{where}.{name}={table[name]}: must be a whole number of rounds")
    return int(table[name])


def _adversarial(table: Table, setting: ChurnSetting, index: int, where: str) -> list[Event]:
    target, first = table["target"], table["round"]
    if target not in TARGETS:
        raise ConfigError(f"{where}.target={target!r}: {nearest(target, TARGETS)}")
    if (target == "holder") != ("class_label" in table):
        rule = "holder needs class_label" if target == "holder" else f"{target} does not use class_label"
        raise ConfigError(f"{where}.target={target!r}: {rule}; change either")
    if target == "holder" and setting.labels is None:
        return []  # drawn once the data are there
    node = TARGETS[target](table, setting, where)
    found = [Event(table.get("kind", "crash"), node, first)]
    if "down" in table and first + _whole(table, "down", where) <= setting.rounds:
        found.append(Event("rejoin", node, first + int(table["down"]), table.get("state", "lost")))
    return found


def _hub(table: Table, setting: ChurnSetting, where: str) -> int:
    return int(max(sorted(setting.graph), key=lambda node: setting.graph.degree[node]))


def _cut_vertex(table: Table, setting: ChurnSetting, where: str) -> int:
    def largest(node: int) -> int:
        left = setting.graph.subgraph(set(setting.graph) - {node})
        return max(map(len, nx.connected_components(left)))

    found = sorted(nx.articulation_points(setting.graph))
    if not found:
        raise ConfigError(f"{where}.target='cut_vertex': no single node holds this graph together; use target = 'hub'")
    return int(min(found, key=largest))


def _holder(table: Table, setting: ChurnSetting, where: str) -> int:
    label, labels = table["class_label"], setting.labels or ()
    known = sorted({name for each in labels for name in each})
    if label not in known:
        raise ConfigError(f"{where}.class_label={label!r}: {nearest(label, known)}")
    return max(range(setting.nodes), key=lambda node: labels[node].get(label, 0))


TARGETS: Mapping[str, Callable[[Table, ChurnSetting, str], int]] = MappingProxyType(
    {"hub": _hub, "cut_vertex": _cut_vertex, "holder": _holder}
)
"""Whom "adversarial" may strike."""
MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "exponential": _sessions(_exponential),
        "weibull": _sessions(_weibull),
        "pareto": _sessions(_pareto, above=1.0),
        "diurnal": _diurnal,
        "trace": _trace,
        "correlated": _correlated,
        "flash_crowd": _flash_crowd,
        "rolling_restart": _rolling_restart,
        "adversarial": _adversarial,
    }
)
"""Models by the name that a table gives them."""
