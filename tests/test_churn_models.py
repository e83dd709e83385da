"""The tables [[churn]]: what each may hold, and the models against their own distributions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl import churn
from p2pfl.churn import MODELS, ChurnSetting, Event, models
from p2pfl.config import toml
from p2pfl.config.churn import KINDS, ChurnTable, expand
from p2pfl.config.unions import tags_of
from p2pfl.errors import ConfigError


@dataclasses.dataclass
class ChurnFile:
    """A file with nothing but [[churn]]."""

    churn: list[ChurnTable]


def events(*tables: dict[str, Any], nodes: int = 6, rounds: int = 20, seed: int = 0, **more: Any) -> tuple[Event, ...]:
    setting = ChurnSetting(nodes, rounds, seed, more.pop("graph", nx.path_graph(nodes)), **more)
    return expand(toml.parse({"churn": list(tables)}, "test", ChurnFile).churn, setting)


def up(table: dict[str, Any], nodes: int, rounds: int, seed: int = 0, **more: Any) -> np.ndarray:
    return churn.active(events(table, nodes=nodes, rounds=rounds, seed=seed, **more), nodes, rounds)


# ------------------------------------------------------------------------------------------------------- the tables


def test_every_event_and_every_model_has_its_table() -> None:
    tags = [tag for kind in KINDS for own in tags_of(kind, ("event", "model")).values() for tag in own.names]
    assert sorted(tags) == sorted([*churn.EVENTS, *MODELS])


def test_events_as_they_are_written() -> None:
    found = events(
        {"event": "crash", "node": 1, "round": 2}, {"event": "rejoin", "node": 1, "round": 4, "state": "kept"},
        {"event": "join", "node": 5, "round": 3}, {"event": "freeze", "node": 0, "round": 4, "rounds": 3},
        {"event": "lag", "nodes": [2, 3], "round": 5, "rounds": 2, "seconds": 0.5},
        {"event": "partition", "round": 6, "groups": [[0, 1], [2]]}, {"event": "heal", "round": 8},
        {"event": "link_loss", "round": 9, "rounds": 1, "loss": 0.5, "links": [[0, 1], [2, 3]]},
        {"event": "link_loss", "round": 9, "rounds": 2, "loss": 1.0, "nodes": [4]},
    )  # fmt: skip
    assert found == (
        Event("crash", 1, 2), Event("rejoin", 1, 4, "kept"), Event("join", 5, 3), Event("freeze", 0, 4, rounds=3),
        Event("lag", 2, 5, rounds=2, seconds=0.5), Event("lag", 3, 5, rounds=2, seconds=0.5),
        Event("partition", -1, 6, groups=((0, 1), (2,))), Event("heal", -1, 8),
        Event("link_loss", -1, 9, rounds=1, loss=0.5, links=((0, 1), (2, 3))),
        Event("link_loss", -1, 9, rounds=2, loss=1.0, nodes=(4,)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "table, said",
    [
        ({"node": 1, "round": 2}, "churn[0]: needs either event or model, and not both; give one of them"),
        ({"event": "crash", "model": "exponential"}, "churn[0]: needs either event or model, and not both"),
        ({"evnt": "crash", "node": 1, "round": 2}, "churn[0].evnt='crash': no such field; did you mean 'event'?"),
        ({"model": "exponental"}, "churn[0].model='exponental': did you mean 'exponential'? Valid: adversarial, cor"),
        ({"event": "crash", "node": 1}, "churn[0].round: missing; event='crash' needs it"),
        ({"event": "crash", "node": 1, "round": 2, "state": "kept"},
         "churn[0].state='kept': event='crash' does not use it; it uses: node, round"),
        ({"event": "lag", "round": 2, "rounds": 1, "seconds": 1.0}, "churn[0]: event='lag' needs either node or nodes"),
        ({"model": "weibull", "up": 5, "down": 2}, "churn[0].shape: missing; model='weibull' needs it"),
        ({"model": "pareto", "up": 5, "down": 2, "shape": 1.0}, "churn[0].shape=1.0: must be > 1 for model='pareto'"),
        ({"model": "exponential", "up": 5, "down": 2, "shape": 1.0},
         "churn[0].shape=1.0: model='exponential' does not use it; it uses: state, nodes, up, down, start, end, kind"),
        ({"model": "exponential", "up": 5, "down": 2, "nodes": [6]}, "churn[0].nodes[0]=6: there are nodes 0 to 5"),
        ({"model": "exponential", "up": 5, "down": 2, "nodes": [1, 1]}, "churn[0].nodes: node 1 stands twice"),
        ({"model": "correlated", "up": 5, "down": 2, "sites": [[0, 1], [1, 2]]}, "churn[0].sites: node 1 stands twice"),
        ({"model": "rolling_restart", "every": 2, "down": 1.5}, "churn[0].down=1.5: must be a whole number of rounds"),
        ({"model": "flash_crowd", "round": 3}, "churn[0]: model='flash_crowd' needs either nodes or share"),
        ({"model": "flash_crowd", "round": 3, "nodes": [*range(6)]}, "churn: nobody is there in round 1"),
        ({"model": "flash_crowd", "round": 21, "share": 0.5}, "churn[0].round=21: must be within 1 to rounds=20"),
        ({"model": "adversarial", "round": 3, "target": "hub", "class_label": "3"},
         "churn[0].target='hub': hub does not use class_label; change either"),
        ({"model": "adversarial", "round": 3, "target": "holder"},
         "churn[0].target='holder': holder needs class_label; change either"),
        ({"model": "trace", "path": "no.json", "seconds_per_round": 60.0},
         "churn[0].path='no.json': can't be read: No such file or directory; give another path"),
    ],
)  # fmt: skip
def test_a_table_that_says_too_little_or_too_much(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        events(table)
    assert str(caught.value).removeprefix("test: ").startswith(said)


def test_two_tables_must_not_move_one_node_at_once() -> None:
    with pytest.raises(ConfigError, match="churn: node 2 can't crash at round 6: it is already gone"):
        events({"model": "rolling_restart", "every": 2, "down": 3}, {"event": "crash", "node": 2, "round": 6})


# ------------------------------------------------------------------------------------------------------- the models

SESSIONS = {
    "exponential": {"up": 12.0},
    "weibull": {"up": 12.0, "shape": 0.6},
    "pareto": {"up": 12.0, "shape": 3.0},
}


@pytest.mark.parametrize("model", SESSIONS)
def test_sessions_and_gaps_have_their_means(model: str) -> None:
    """Lengths as they are drawn, against mean and a quantile of the distribution; and the share of time up."""
    mean, shape = 12.0, SESSIONS[model].get("shape", 1.0)
    length = {"exponential": models._exponential, "weibull": models._weibull, "pareto": models._pareto}[model]
    u = (np.arange(200_000) + 0.5) / 200_000
    drawn = length(mean, shape, u)
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    half = {
        "exponential": mean * np.log(2),
        "weibull": mean / 1.50458 * np.log(2) ** (1 / 0.6),  # gamma(1 + 1 / 0.6) = 1.50458
        "pareto": mean * 2 / 3 * 2 ** (1 / 3),
    }[model]
    assert np.median(drawn) == pytest.approx(half, rel=1e-3)
    there = up({"model": model, "down": 6.0, **SESSIONS[model]}, 300, 600)
    assert there[100:].mean() == pytest.approx(12 / 18, abs=0.02)


def test_draws_depend_on_seed_node_and_place_and_on_nothing_else() -> None:
    table = {"model": "exponential", "up": 8.0, "down": 3.0, "nodes": [0, 1, 2]}
    first = events(table)
    assert first == events(table) and first
    assert events(table, seed=1) != first
    assert {event.node for event in first} <= {0, 1, 2}
    whole = events(table, {**table, "nodes": [3, 4, 5]})
    assert whole[: len(first)] == first
    assert [e.round for e in whole if e.node == 3] != [e.round for e in first if e.node == 0]
    assert {e.event for e in events({**table, "kind": "leave", "state": "kept"})} == {"leave", "rejoin"}
    assert {e.state for e in events({**table, "state": "kept"}) if e.event == "rejoin"} == {"kept"}
    assert min(e.round for e in events({**table, "start": 12})) >= 12
    ended = events({**table, "end": 30})
    assert (
        ended
        and max(e.round for e in ended) <= 30
        and [e for e in ended if e.round < 30] == [e for e in events(table) if e.round < 30]
    )


def test_two_nodes_stay_whatever_is_drawn() -> None:
    there = up({"model": "exponential", "up": 1.0, "down": 30.0}, 5, 200)
    assert there.sum(axis=1).min() == 2
    wanted = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 1]], bool)
    kept = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 1, 1]], bool)
    assert np.array_equal(models.spared(wanted), kept)
    assert np.array_equal(models.spared(np.zeros((2, 1), bool)), np.ones((2, 1), bool))


def test_where_it_changes_are_events() -> None:
    there = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 1, 0]], bool)
    there[:, 2] = True
    found = models.events_of(np.pad(there, ((0, 0), (0, 1)), constant_values=True), "leave", "kept")
    assert found == [
        Event("leave", 0, 2), Event("rejoin", 0, 3, "kept"), Event("join", 1, 3), Event("leave", 1, 4),
        Event("leave", 3, 1),
    ]  # fmt: skip


def test_a_day_has_its_low() -> None:
    there = up({"model": "diurnal", "period": 24, "share": 0.25}, 40, 49)
    assert there[[0, 24, 48]].all() and there[12].sum() == there[36].sum() == 10
    assert there[6].sum() == 25  # half way: 0.25 + 0.75 / 2 of 40
    assert np.array_equal(there[:24], there[24:48])


def test_sites_go_together() -> None:
    there = up({"model": "correlated", "sites": [[0, 1, 2], [3, 4]], "up": 6.0, "down": 3.0}, 8, 60)
    assert (np.ptp(there[:, :3].astype(int), axis=1) == 0).all() and (there[:, 3] == there[:, 4]).all()
    assert there[:, 5:].all() and not there[:, 0].all() and not np.array_equal(there[:, 0], there[:, 3])


def test_single_strokes() -> None:
    crowd = events({"model": "flash_crowd", "round": 5, "share": 0.5})
    assert len(crowd) == 3 and {(e.event, e.round) for e in crowd} == {("join", 5)}
    assert len(events({"model": "flash_crowd", "round": 5, "share": 1.0})) == 4  # two are there before
    rolling = events({"model": "rolling_restart", "start": 3, "every": 4, "down": 2, "state": "kept"}, rounds=12)
    assert rolling == (
        Event("crash", 0, 3), Event("rejoin", 0, 5, "kept"), Event("crash", 1, 7), Event("rejoin", 1, 9, "kept"),
        Event("crash", 2, 11),
    )  # fmt: skip


def test_an_adversary_finds_hub_cut_vertex_and_holder() -> None:
    graph = nx.Graph([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3), (5, 4), (3, 5)])
    graph.add_edges_from([(0, 6), (0, 7)])
    stroke = {"model": "adversarial", "round": 4}
    assert events({**stroke, "target": "hub"}, nodes=8, graph=graph) == (Event("crash", 0, 4),)
    cut = events({**stroke, "target": "cut_vertex", "down": 3, "state": "kept", "kind": "leave"}, nodes=8, graph=graph)
    assert cut == (Event("leave", 2, 4), Event("rejoin", 2, 7, "kept"))
    labels = [{"a": 3, "b": i} for i in (1, 5, 2)]
    assert events({**stroke, "target": "holder", "class_label": "b"}, nodes=3, labels=labels)[0].node == 1
    assert events({**stroke, "target": "holder", "class_label": "b"}, nodes=3) == ()
    with pytest.raises(ConfigError, match="class_label='c': Valid: a, b"):
        events({**stroke, "target": "holder", "class_label": "c"}, nodes=3, labels=labels)
    with pytest.raises(ConfigError, match="no single node holds this graph together; use target = 'hub'"):
        events({**stroke, "target": "cut_vertex"}, graph=nx.cycle_graph(6))


def trace(folder: Path, table: Any) -> str:
    path = folder / "trace.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table), "utf-8-sig")  # as Windows writes it
    return str(path)


def test_a_trace_is_played_over_and_over(tmp_path: Path) -> None:
    """Rounds of 10 s; what an entry says is repeated every finish_time seconds."""
    entry = {"duration": 60, "finish_time": 60.0}
    path = trace(tmp_path, {
        "a": {**entry, "active": [0, 40], "inactive": [20, 60]},
        "b": {**entry, "active": [15], "inactive": [45]},
        "c": {**entry, "active": [], "inactive": []},
        "d": {**entry, "active": [0], "inactive": [60]},
        "e": {**entry, "active": [0], "inactive": [60]},
    })  # fmt: skip
    there = up({"model": "trace", "path": path, "seconds_per_round": 10.0}, 5, 12)
    assert there[:, 0].astype(int).tolist() == [1, 1, 0, 0, 1, 1] * 2
    assert there[:, 1].astype(int).tolist() == [0, 0, 1, 1, 1, 0] * 2
    assert not there[:, 2].any() and there[:, 3:].all()
    some = events({"model": "trace", "path": path, "seconds_per_round": 10.0, "nodes": [4, 2]}, nodes=5, rounds=6)
    assert {e.node for e in some} == {2, 4} and Event("join", 2, 3) in some  # entries go by the nodes as they are named


@pytest.mark.parametrize(
    "table, said",
    [
        ("[1", "must be JSON, id -> {duration, active, inactive, finish_time}"),
        ([1], "must be JSON"),
        ({"a": {"active": [1]}}, "must be JSON"),
        ({"a": {"active": [1], "inactive": [], "finish_time": 3}}, "entry 'a': active and inactive must be lists of"),
        ({"a": {"active": [2], "inactive": [1], "finish_time": 3}}, "entry 'a': active and inactive must be lists of"),
        ({"a": {"active": [1], "inactive": [2], "finish_time": 0}}, "and finish_time > 0"),
        ({"a": {"active": [1], "inactive": [2], "finish_time": 3}}, "has 1 entries for 6 nodes; name fewer nodes"),
    ],
)
def test_a_trace_that_is_none(tmp_path: Path, table: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        events({"model": "trace", "path": trace(tmp_path, table), "seconds_per_round": 10.0})
    assert said in str(caught.value) and "churn[0].path=" in str(caught.value)
