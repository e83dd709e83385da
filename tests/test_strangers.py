"""Nodes of different experiments tell each other in what they differ, and nobody else anything. No socket here."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from p2pfl.config.experiment import Experiment, parse
from p2pfl.errors import RemoteError
from p2pfl.federation import federation as stage
from p2pfl.federation.federation import Federation, build
from p2pfl.protocol.agreement import pack
from p2pfl.protocol.strangers import CAP, Stranger, Strangers

FIELDS = {"name": "tiny", "rounds": "20", "seed": "0", "training.batch_size": "16", "graph": "a1",
          "topology.graph": "ring", "topology.nodes": "4"}  # fmt: skip


def other(**changes: str) -> dict[str, str]:
    return {**FIELDS, **{name.replace("__", "."): value for name, value in changes.items()}}


def met(theirs: dict[str, str], ours: dict[str, str] = FIELDS) -> tuple[Stranger, list[Stranger]]:
    """Node 1 asks node 0: what it learns, and what node 0 does."""
    asked, asks = Strangers(0, ours, 0.0), Strangers(1, theirs, 0.0)
    learnt = asks.understand(asked.answer(asks.question(), 1.0))
    assert asked._askers == {1} and not asks._askers
    return learnt, asked.news()


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({"training__batch_size": "32"}, "training.batch_size: 16 there, 32 here"),
        ({"rounds": "7", "seed": "1"}, "rounds: 20 there, 7 here; seed: 0 there, 1 here"),
        ({"churn": "[]"}, "churn: nothing there, [] here"),
        ({"graph": "b2", "topology__graph": "star"}, "topology.graph: ring there, star here"),
        ({"graph": "b2"}, "graph: a1 there, b2 here"),  # a file of that name has another graph
        ({"rounds": "7", "topology__graph": "cycle"}, "rounds: 20 there, 7 here"),  # the same graph by another name
    ],
)
def test_both_sides_are_told_what_differs_by_field(changes: dict[str, str], there: str) -> None:
    learnt, news = met(other(**changes))
    assert learnt == Stranger(0, there)
    swapped = "; ".join(
        f"{name}: {theirs} there, {ours} here"
        for name, ours, theirs in (
            (name, *values.removesuffix(" here").split(" there, "))
            for name, values in (each.split(": ") for each in there.split("; "))
        )
    )
    assert news == [Stranger(1, swapped)]


def test_who_knows_little_of_the_experiment_is_told_nothing() -> None:
    few = {"name": "tiny", "rounds": "20", "seed": "0"}
    for theirs in (few, {}, {**FIELDS, "name": "another"}, {name: "?" for name in FIELDS} | {"name": "tiny"}):
        asked = Strangers(0, FIELDS, 0.0)
        with pytest.raises(RemoteError, match="handshake: node 1 of something else altogether"):
            asked.answer(Strangers(1, theirs, 0.0).question(), 1.0)
        assert not asked.news() and not asked._askers


def test_the_answer_has_nothing_but_what_differs() -> None:
    answer = Strangers(0, FIELDS, 0.0).answer(Strangers(1, other(rounds="7"), 0.0).question(), 1.0)
    assert json.loads(zlib.decompress(answer)) == {"node": 0, "differs": {"rounds": "20"}}


def test_questions_are_answered_now_and_then() -> None:
    asked, question = Strangers(0, FIELDS, 0.0), Strangers(1, other(rounds="7"), 0.0).question()
    for _ in range(8):
        asked.answer(question, 1.0)
    with pytest.raises(RemoteError, match="flood"):
        asked.answer(question, 1.0)
    asked.answer(question, 2.5)
    assert len(asked.news()) == 1 and not asked.news()  # a person is told once
    for node in range(2, 60):
        asked.answer(Strangers(node, other(rounds="7"), 0.0).question(), 10.0 * node)
    assert len(asked.news()) == 15


BOMB = zlib.compress(b" " * (1 << 26), 9)


@pytest.mark.parametrize(
    "said",
    [b"", b"garbage", BOMB, b"x" * (CAP + 1), pack("[]"), pack("{}"), pack('{"node": 1, "fields": 7, "differs": 7}'),
     pack('{"node": -1, "fields": {}, "differs": {}}'), pack("[" * 100_000), pack('{"node": 1, "differs": {}}'),
     pack('{"node": true, "fields": {"name": "tiny"}, "differs": {"rounds": "7"}}'),
     pack(json.dumps({"node": 1, "fields": {**FIELDS, "x": "y" * 101}, "differs": {"x": "y" * 101}})),
     pack(json.dumps({"node": 1, "fields": {**FIELDS, "x": 1}, "differs": {"rounds": "20"}}))],
)  # fmt: skip
def test_what_no_honest_node_says_is_dropped(said: bytes) -> None:
    for take in (
        lambda: Strangers(0, FIELDS, 0.0).answer(said, 1.0),
        lambda: Strangers(0, FIELDS, 0.0).understand(said),
    ):
        with pytest.raises(RemoteError):
            take()


def test_no_terminal_obeys_a_stranger_and_no_line_is_long() -> None:
    theirs = other(**{f"x{i}": "\x1b[2J" + "y" * 90 for i in range(7)}, rounds="\n" * 90)
    asked = Strangers(0, {**FIELDS, **{f"z{i}": str(i) for i in range(40)}}, 0.0)
    asked._fields |= {f"a{i}": "0" for i in range(9)}  # type: ignore[operator]
    asked.answer(Strangers(1, {**theirs, **{f"z{i}": str(i) for i in range(40)}}, 0.0).question(), 1.0)
    (told,) = asked.news()
    assert told.said.isprintable() and told.said.endswith("and 5 more") and len(told.said) < 12 * 300


def test_who_differs_from_most_of_its_neighbors_does_not_belong() -> None:
    strangers = [Stranger(1, "rounds: 7 there, 20 here"), Stranger(3, "seed: 1 there, 0 here")]

    def judged(*neighbors: int) -> str:
        node = Strangers(0, FIELDS, 0.0)
        assert not node.unfit(neighbors, strangers, 1.0)  # they have not asked this node yet
        return node.unfit(neighbors, strangers, 13.0)

    assert judged(1, 3) == "node 1: rounds: 7 there, 20 here\nnode 3: seed: 1 there, 0 here"
    assert judged(1) == "node 1: rounds: 7 there, 20 here"
    assert judged(1, 2) == judged(2) == judged() == ""  # others may yet come


@pytest.mark.parametrize("lost", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("peers", [True, False])
def test_two_nodes_whose_experiments_differ_both_know_before_either_leaves(lost: Sequence[int], peers: bool) -> None:
    """In virtual time. Node 1 comes later, and looks at once; node 0 looks each ten seconds, and when it is asked.

    `lost`: whose first question gets no answer. Without an address of node 1, node 0 is told, and stays: whoever asks
    it ends nothing.
    """
    now, comes, losses = 0.0, 3.0, [*lost]
    nodes = [Strangers(0, FIELDS, 0.0), Strangers(1, other(rounds="7"), 0.0)]
    looks, learnt, left = [10.0 if peers else math.inf, comes], [[], []], [math.inf, math.inf]  # type: ignore[var-annotated]
    told: list[list[Stranger]] = [[], []]
    while now < 60.0:
        now += 0.05
        for me, you in ((0, 1), (1, 0)):
            there = now >= comes and left[you] == math.inf
            if left[me] == math.inf and now >= looks[me] and (me == 0 or now >= comes):
                looks[me] = now + 10.0
                if there and me in losses:
                    losses.remove(me)
                elif there:
                    learnt[me] = [nodes[me].understand(nodes[you].answer(nodes[me].question(), now))]
            if news := nodes[me].news():
                told[me] += news
                looks[me] = min(looks[me], now + 0.3) if peers or me else math.inf
            if nodes[me].unfit([you], learnt[me], now):
                left[me] = min(left[me], now)
    assert left[1] < 60.0 and told[0] == [Stranger(1, "rounds: 7 there, 20 here")]
    assert (left[0] < 60.0 and told[1] == [Stranger(0, "rounds: 20 there, 7 here")]) == peers


TABLE: dict[str, Any] = {
    "name": "tiny", "rounds": 20, "data": {"source": "quadratic"}, "algorithm": {"name": "dsgd"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "local_steps": 2},
    "topology": {"graph": "ring", "nodes": 4},
}  # fmt: skip


def federation(**more: Any) -> Federation:
    return build(parse({**TABLE, **more}, "tiny.toml", Experiment))


@pytest.mark.parametrize(
    ("more", "differ"),
    [
        ({"training": {**TABLE["training"], "local_steps": 3}}, {"training.local_steps"}),
        ({"rounds": 9}, {"rounds"}),
        ({"network": {"loss": 0.1, "preset": "lan"}}, {"network.loss"}),
        ({"topology": {"graph": "complete", "nodes": 4}}, {"topology.graph", "graph"}),
        ({"churn": [{"event": "crash", "node": 1, "round": r} for r in range(2, 9)][:1]}, {"churn"}),
        ({"driver": {"kind": "simulate"}, "evaluation": {"every": 3}}, set()),
    ],
)
def test_what_makes_another_federation_is_a_field_that_is_told(more: dict[str, Any], differ: set[str]) -> None:
    one, other = federation(), federation(**more)
    ours, theirs = stage.fields(one), stage.fields(other)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == differ
    assert (stage.digest(one) == stage.digest(other)) == (not differ)
    assert all(len(value) <= 100 for value in theirs.values())


def test_a_long_value_is_cut_and_differs_all_the_same() -> None:
    there = [{"event": event, "node": 1, "round": r} for r, event in enumerate(["crash", "rejoin"] * 4, 2)]
    one, other = (
        stage.fields(federation(churn=each))["churn"] for each in (there, [*there[:-1], {**there[-1], "round": 19}])
    )
    assert one[:60] == other[:60] and one != other and len(one) < 80
