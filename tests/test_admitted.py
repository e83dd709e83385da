"""A federation grows while it runs: nodes join it that no experiment plans, once they have been admitted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from federations import TABLE
from test_virtual_world import Ring, ring

from p2pfl import tree
from p2pfl.churn import Event
from p2pfl.config import experiment
from p2pfl.config.data import CsvData
from p2pfl.drivers.live.faults import FaultPlan
from p2pfl.drivers.live.ports import reserved
from p2pfl.drivers.live.sidecar import PACKET, Restarted, Sidecar
from p2pfl.errors import ConfigError, Exit, TopologyError
from p2pfl.federation import federation as build
from p2pfl.federation.epochs import planner
from p2pfl.federation.federation import Federation
from p2pfl.federation.learning import ScriptedSteps
from p2pfl.federation.tasks import task
from p2pfl.learning import quadratic
from p2pfl.node import records
from p2pfl.node.checkpoint import Store
from p2pfl.node.replica import Replica
from p2pfl.protocol.events import Admitted, Drop, Members, Note, Received, Seen, Start
from p2pfl.protocol.membership.events import Effect, Heard, MemberAdmitted, MemberDrop, MemberStart, MemberTick, Say
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.table import ALIVE, Me, MemberEntry
from p2pfl.protocol.membership.timing import LAN
from p2pfl.protocol.membership.wire import Datagram, Gossip, Sync, decode, encode
from p2pfl.protocol.messages import Envelope, Hello
from p2pfl.protocol.neighbor import Facts
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.timing import LOCAL
from p2pfl.runs.check import check


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# --- what it means, and what is kept


def own_rows(folder: Path, node: int) -> CsvData:
    rng = np.random.default_rng(node)
    x = rng.normal(size=(40, 2))
    rows = [",".join(f"{v:.4f}" for v in row) + f",{int(row.sum() > 0)}" for row in x]
    path = folder / f"rows{node}.csv"
    path.write_text("a,b,ill\n" + "\n".join(rows) + "\n")
    return CsvData(source="csv", path=str(path), label="ill")


def own(folder: Path, node: int, admitted: int = 0, **tables: Any) -> Federation:
    table = {
        **TABLE, "topology": {"graph": "complete", "nodes": 3}, "model": {"name": "logistic"},
        "data": {"source": "csv", "label": "ill"}, "driver": {"kind": "live"}, **tables,
    }  # fmt: skip
    return build.build_own(
        experiment.parse(table, "test.toml", experiment.Experiment), node, own_rows(folder, node), admitted
    )


@pytest.mark.parametrize("algorithm", ["dsgd", pytest.param("push_sum", marks=pytest.mark.more)])
def test_a_newcomer_and_the_others_agree_on_what_they_run(algorithm: str, tmp_path: Path) -> None:
    named = {"algorithm": {"name": algorithm}}
    old, new = own(tmp_path, 0, **named), own(tmp_path, 3, admitted=4, **named)
    assert build.digest(old) == build.digest(new) and build.identity(old) == build.identity(new)
    assert build.terms(new).nodes == 3 and new.steps.tolist() == [2] * 4
    mine, its = task(old, 0), task(new, 3)
    assert its.neighbors == (0, 1, 2) and len(its.y) > 0
    members = (0, 1, 2, 3)
    assert mine.neighbors == (1, 2) and mine.at(members).neighbors == (1, 2, 3)
    assert mine.at(members).schedule.weight_of(3, 1) == its.at(members).schedule.weight_of(0, 1) > 0
    assert mine.at((0, 5)).neighbors == (5,)  # of nodes 3 and 4 nothing is known any more
    assert planner(old.experiment, old.algorithm, old.schedule, old.samples)(members).schedule.neighbor.shape[1] == 4


def test_who_may_not_join_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="node=3: the topology has nodes 0 to 2"):
        own(tmp_path, 3)
    five = {"topology": {"graph": "ring", "nodes": 5}, "algorithm": {"name": "d2"}}
    with pytest.raises(TopologyError, match=r"d2: the graph of 5 nodes and node 5, which joins them, has lambda_min"):
        own(tmp_path, 5, admitted=6, **five)
    widths = {"objective": [{"name": "widths", "ratios": [1.0, 0.5, 0.5]}]}
    network = {"model": {"name": "mlp", "hidden": [4]}, "training": {**TABLE["training"], **widths}}
    with pytest.raises(ConfigError, match=r"3 values of .* for 4 nodes"):
        own(tmp_path, 3, admitted=4, **network)
    steps = own(tmp_path, 3, admitted=4, training={**TABLE["training"], "node_steps": [3, 1, 1]})
    assert steps.steps.tolist() == [3, 1, 1, 2]  # local_steps, for nobody has given it a number


def test_a_script_may_be_a_newcomer() -> None:
    table = {
        **TABLE,
        "topology": {"graph": "ring", "nodes": 3},
        "data": {"source": "script"},
        "driver": {"kind": "live"},
    }
    wanted = experiment.parse(table, "test.toml", experiment.Experiment)
    steps = ScriptedSteps(quadratic.learner(2), optax.sgd(0.1))
    new, old = build.build_script(wanted, steps, node=3), build.build_script(wanted, steps)
    assert build.digest(new) == build.digest(old)
    assert task(new, 3).neighbors == (0, 2) and task(old, 0).at((0, 1, 2, 3)).neighbors == (1, 3)


@pytest.mark.more
def test_a_checkpoint_of_after_the_growth_is_resumed(tmp_path: Path) -> None:
    """What is kept for each slot has another shape then than a node has when it starts again."""
    made = task(own(tmp_path, 0, algorithm={"name": "push_sum"}), 0)
    grew = Replica(made)
    grew.enter(1, (0, 1, 2, 3))
    grew.train(1, (1, 2, 3))
    store = Store(tmp_path, "f")
    assert store.save(grew.state, {"round": 1, "slots": grew.task.slots}) is None
    again = Replica(made)
    assert again.task.slots == 2 and grew.task.slots == 3
    saved, notes = store.load(lambda table: again.like(table["slots"]))
    assert saved is not None and not notes
    assert tree.digest(saved.state) == tree.digest(grew.state)
    assert store.load(again.like(2))[0] is None  # which is why the number of slots is kept
    again.state = saved.state
    again.enter(2, (0, 1, 2))
    again.train(2, (1, 2))


def peer(node: int = 0, nodes: int = 3, **more: Any) -> Peer:
    return Peer(Facts(node, 1, nodes, tuple(range(nodes)), ring(node), 9, "f", "s", 8, LOCAL, 8, **more))


def test_a_stranger_is_heard_once_it_has_been_admitted_and_no_sooner() -> None:
    me = peer()
    me.handle(Start(), 0.0)
    hello = Received(Envelope(3, 1, 0, Hello(0, "f", "s", 0)))
    (drop,) = me.handle(hello, 0.1)
    assert isinstance(drop, Drop) and drop.reason == "stranger"
    me.handle(Members(tuple(Seen(node, 1) for node in range(4))), 0.2)
    assert 3 not in me.state.seen
    (note,) = me.handle(Admitted(4), 0.3)
    assert isinstance(note, Note) and (note.event, note.about) == ("admitted", 3)
    assert not me.handle(Admitted(2), 0.4) and me.state.nodes == 4
    me.handle(hello, 0.5)
    me.handle(Members(tuple(Seen(node, 1) for node in range(4))), 0.6)
    assert 3 in me.state.seen and 3 in me.state.neighbors


@pytest.mark.parametrize("there", [None, lambda round: frozenset({0, 1})])
def test_who_has_been_admitted_and_never_came_stops_nobody_and_who_came_counts(there: Any) -> None:
    """A majority is of those that were planned and those that have been there: not of names on a list."""
    me = peer(nodes=2, there=there)
    me.handle(Start(), 0.0)
    me.handle(Admitted(9), 0.0)
    rounds = me._rounds
    me.handle(Members((Seen(0, 1), Seen(1, 1))), 0.1)
    assert rounds.expected == {0, 1} and not rounds.lonely
    me.handle(Members(tuple(Seen(node, 1) for node in (0, 1, 7, 8))), 0.2)
    assert rounds.expected == {0, 1, 7, 8}
    died = tuple((node, 1) for node in (1, 7, 8))
    me.handle(Members((Seen(0, 1),), over=died, ended=died), 0.3)
    assert rounds.expected == {0, 1, 7, 8} and rounds.lonely
    me.handle(Members((Seen(0, 1), Seen(1, 1)), over=died[1:], left=(7, 8)), 0.4)
    assert rounds.expected == {0, 1} and not rounds.lonely


def letter(by: MemberEntry, about: list[MemberEntry]) -> Heard:
    return Heard(encode(Datagram("f", 5, by, about, Gossip()), 0.0))


def test_a_membership_hears_of_newcomers_once_they_have_been_admitted() -> None:
    def entry(node: int) -> MemberEntry:
        return MemberEntry(node, 1, 0, ALIVE, f"tcp://v:{node + 1}", 0, 0, 0.0, -1)

    def begun() -> Membership:
        one = Membership(Me(0, 1, "tcp://v:1", 3), "f", [Seed("tcp://v:2")], LAN, 0)
        one.handle(MemberStart(), 0.0)
        out = one.handle(letter(entry(1), [entry(3)]), 0.1)
        assert [drop.reason for drop in out if isinstance(drop, MemberDrop)] == ["stranger"]
        return one

    def asks(effects: list[Effect]) -> bool:
        said = [decode(effect.data, "f", 0.2) for effect in effects if isinstance(effect, Say)]
        return any(isinstance(each.message, Sync) for each in said)

    me = begun()
    assert asks(me.handle(MemberAdmitted(4), 0.2)) and not asks(begun().handle(MemberTick(), 0.2))  # what it has missed
    assert not [drop for drop in me.handle(letter(entry(1), [entry(3)]), 0.3) if isinstance(drop, MemberDrop)]
    assert [member.node for member in me.members] == [0, 1, 3]
    me.handle(MemberAdmitted(2), 0.4)
    out = me.handle(letter(entry(1), [entry(4)]), 0.5)
    assert [drop.detail for drop in out if isinstance(drop, MemberDrop)] == [
        "node 4, by node 1: there are nodes 0 to 3"
    ]


def test_a_membership_process_that_is_started_again_knows_who_has_been_admitted() -> None:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        its.settimeout(10)

        def told() -> dict[str, Any]:
            return dict(json.loads(its.recv(PACKET)))

        car = Sidecar(0, mine)
        its.send(b'{"pid": 0}')
        car.begin(Me(0, 1, "tcp://v:1", 3), "f", [], LAN, "tcp://v:1")
        assert told()["me"][3] == 3
        car.grow(4)
        assert told() == {"do": "grow", "nodes": 4}
        its.send(b'{"died": "killed"}')
        assert [type(event) for event in car.read()] == [Restarted]
        assert told()["me"][3] == 4
        car.close()


def test_a_planned_partition_parts_newcomers_as_well() -> None:
    plan = FaultPlan([Event("partition", -1, 5, groups=((0, 1),))], node=0, nodes=3)
    assert plan.of(5).cut == {2}
    plan.grow(4)
    assert plan.of(5).cut == {2, 3} and not plan.of(4).cut


class Growing(Ring):
    """A ring that grows: every process that begins is told how many nodes there can be by then."""

    admitted = 0

    def begin(self, node: int, join_round: int = 0, kept: bool = False) -> None:
        super().begin(node, join_round, kept)
        self.world.nodes[node].admit(self.admitted)

    def admit(self, nodes: int, *whom: int) -> None:
        """These nodes are told, and whoever begins from now on."""
        self.admitted = nodes
        for node in whom:
            self.world.nodes[node].admit(nodes)


def test_nodes_that_are_told_one_after_the_other_let_a_newcomer_in() -> None:
    world = Growing(6, 200)
    world.until_round(20)
    world.begin(6)  # before anybody knows of it
    world.until_round(30)
    assert all(not any(6 in members for _, members in world.number(i).epochs) for i in range(6))
    assert world.world.nodes[6].peer.round == 0
    for node in range(6):
        world.world.at(0.3 * node, world.admit, 7, node)
    world.run()
    world.check(range(7))
    for i in range(7):
        assert world.number(i).epochs[-1][1] == tuple(range(7))
    first = min(world.number(6).mixed)
    assert 20 < first < 60 and world.noted("joined") == [(6, 6, first)]
    assert max(world.values) - min(world.values) < 0.1


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.more if seed < 2 else pytest.mark.soak) for seed in range(5)]
)
def test_growth_crashes_and_returns_together(seed: int) -> None:
    world = Growing(6, 300, seed, events=[Event("crash", 2, 60), Event("rejoin", 2, 120)])
    world.until_round(30)
    world.admit(8, *range(6))
    world.begin(6)
    world.until_round(90)
    world.begin(7)
    world.until_round(150)
    world.world.nodes[6].crash()
    world.until_round(200)
    world.begin(6)
    world.run()
    world.check(range(8))
    assert all(world.number(i).epochs[-1][1] == tuple(range(8)) for i in range(8))


# --- real processes


def by_hand(folder: Path, node: int, ports: list[int]) -> Path:
    own_rows(folder, node)
    at = [f"tcp://127.0.0.1:{port}" for port in ports]
    peers = [address for other, address in enumerate(at) if other != node]
    file = folder / f"node{node}.toml"
    file.write_text(
        f'experiment = "experiment.toml"\nnode = {node}\nlisten = "{at[node]}"\nout = "records{node}"\n'
        f'peers = {json.dumps(peers)}\n[data]\nsource = "csv"\npath = "rows{node}.csv"\nlabel = "ill"\n'
    )
    return file


EXPERIMENT = """
name = "grows"
rounds = 1000000
[data]
source = "csv"
label = "ill"
[model]
name = "logistic"
[training]
optimizer = { name = "sgd", learning_rate = 0.1 }
[topology]
graph = "ring"
nodes = 3
[algorithm]
name = "gradient_tracking"
"""


@pytest.mark.live
@pytest.mark.soak  # by day those of docs/federation.md let one in, and those of test_grow.py go on with it
def test_processes_let_a_fourth_in_once_they_are_told_and_one_comes_back_with_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    with reserved(4) as ports:
        files = [by_hand(tmp_path, node, list(ports)) for node in range(4)]
    script, limit = Path(__file__).parent / "grow_script.py", time.monotonic() + 240

    def begin(node: int, admitted: int, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(files[node]), str(admitted), *more]
        with (tmp_path / f"log{node}").open("a") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)

    def read(node: int, name: str) -> list[dict[str, Any]]:
        return records.read(tmp_path / f"records{node}" / f"{name}.jsonl")

    def until(condition: Callable[[], bool]) -> None:
        while not condition():
            assert time.monotonic() < limit, [(tmp_path / f"log{node}").read_text()[-2000:] for node in range(4)]
            time.sleep(0.05)

    def members(node: int) -> list[list[int]]:
        return [row["members"] for row in read(node, "trace") if "members" in row]

    def round(node: int) -> int:
        return int(read(node, "metrics")[-1]["round"])

    processes = [begin(node, 0) for node in range(3)]
    try:
        until(lambda: all(len(read(node, "metrics")) > 20 for node in range(3)))
        processes.append(begin(3, 4))
        until(lambda: any("says it is node 3; there are 3" in row["detail"] for row in read(0, "events")))
        assert all(len(members(node)) == 1 for node in range(3))
        for process in processes[:3]:
            assert process.stdin is not None
            process.stdin.write("4\n")
            process.stdin.flush()
        until(lambda: all(members(node)[-1:] == [[0, 1, 2, 3]] for node in range(4)))
        at = round(0)
        until(lambda: any(3 in row["arrived"] for row in read(0, "metrics") if row["round"] > at))
        processes[0].send_signal(signal.SIGTERM)
        processes[0].communicate(timeout=30)
        assert processes[0].returncode == Exit.TERMINATED
        last = round(0)
        until(lambda: round(3) > last + 20)
        processes[0] = begin(0, 4, "--resume")
        until(lambda: round(0) > last + 40 and all(members(node)[-1] == [0, 1, 2, 3] for node in range(4)))
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            assert process.wait(30) == Exit.TERMINATED
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert "going on from the checkpoint after round" in (tmp_path / "log0").read_text()
    folders = [tmp_path / f"records{node}" for node in range(4)]
    books = check(folders)
    assert books.summary.nodes == 4 and not books.missing and not books.summary.lost
    assert books.summary.mean_residual is not None and books.summary.mean_residual < 1e-6
    assert check(folders[:3]).missing == (3,)
