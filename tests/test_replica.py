"""One node as every driver computes it: what user code fails with, its lives, and what its membership means to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import Case, write

from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.errors import USER_FAULTS, ConfigError, LocalError
from p2pfl.federation import federation as build
from p2pfl.federation.tasks import tasks
from p2pfl.node import records
from p2pfl.node.membership import Standing, meaning
from p2pfl.node.replica import Cost, Replica
from p2pfl.node.task import Task
from p2pfl.node.worker import Host, Worker
from p2pfl.protocol.events import Advance, Drop, Members, Note, Seen
from p2pfl.protocol.membership import events
from p2pfl.protocol.membership.table import Member

QUIET = Host(now=lambda: 0.0, traffic=lambda: (0, 0), happens=lambda round: None, say=lambda text: None)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    file = write(tmp_path_factory.mktemp("replica"), Case("gradient_tracking"))
    return tasks(build.build(experiment.load(file)))[2]


def broken(task: Task, part: str, error: type[BaseException]) -> Task:
    """The task whose program fails in one of its functions."""

    def fails(*given: Any) -> Any:
        raise error("as it must")

    return task._replace(program=task.program._replace(**{part: fails}))


@pytest.mark.parametrize("error", USER_FAULTS)
def test_what_user_code_fails_with_is_a_local_error_in_every_driver(
    task: Task, tmp_path: Path, error: type[BaseException]
) -> None:
    """The plain loop and the replay call the replica, a live and a virtual node the worker around it."""
    replica = Replica(broken(task, "train", error))
    with pytest.raises(LocalError, match="node 2, round 3, train: as it must"):
        replica.train(3, ())
    worker = Worker(task, tmp_path, QUIET)
    worker.begin(7)
    worker.replica.task = broken(task, "train", error)
    with pytest.raises(LocalError, match="node 2, round 1, train: as it must"):
        worker.advance(Advance(0, (), 0.0, 1))
    worker.close()


def test_a_mistake_in_mixing_names_the_mixing_and_others_pass(task: Task) -> None:
    replica = Replica(task)
    replica.train(1, ())
    replica.task = broken(task, "mix", ValueError)
    with pytest.raises(LocalError, match="node 2, round 1, mix: as it must"):
        replica.mix(1, ())
    replica.task = broken(task, "mix", ConfigError)
    with pytest.raises(ConfigError):
        replica.mix(1, ())


def test_the_records_of_a_round_have_one_life(task: Task) -> None:
    replica = Replica(task, life=41)
    replica.train(1, ())
    replica.mix(1, ())
    replica.evaluate(1)
    measured = replica.measured(1, (), Cost(10, 20, 0.5, 0.25, 3.0))
    traced = replica.traced(1, ())
    assert (measured.node, measured.life, measured.round) == (2, traced.life, traced.round) == (2, 41, 1)
    assert (measured.bytes_sent, measured.waited, measured.time) == (10, 0.25, 3.0)
    assert replica.renew(42, 2) == records.Kept(42, 2, [41, 1])
    assert replica.began(2, (1, 3)) == records.Began(42, 2, [1, 3])
    assert replica.enter(2, (0, 1, 2)) == records.Entered(42, 2, [0, 1, 2])
    assert replica.task.neighbors == (0, 1) and task.neighbors == (1, 3)
    assert replica.renew(43, 9, (41, 1)) == records.Kept(43, 9, [41, 1])


def test_a_life_that_adopts_has_the_model_and_says_whose(task: Task) -> None:
    donor, replica = Replica(task), Replica(task)
    donor.train(1, ())
    before = tree.digest(task.program.params(replica.state))
    assert replica.adopt(donor.models[1], 1, 8, 1) == records.Adopted(1, 2, [1, 8, 1])
    assert tree.digest(task.program.params(replica.state)) == tree.digest(donor.models[1]) != before


def test_payloads_are_kept_for_so_many_rounds(task: Task) -> None:
    replica = Replica(task, keep=2)
    for round in range(1, 5):
        replica.train(round, ())
    assert list(replica.payloads) == list(replica.models) == [3, 4]
    assert tree.digest(replica.latest(1)) == tree.digest(replica.sent(1, 4)) != tree.digest(replica.sent(1, 3))


def test_warming_up_changes_nothing(task: Task) -> None:
    replica = Replica(task)
    before = tree.digest(replica.state)
    replica.warm()
    assert tree.digest(replica.state) == before and replica.round == 0


def test_what_a_membership_says_means_the_same_in_every_driver() -> None:
    table = (Member(1, 7, 0, "alive", "tcp://a:1", 0, 0.0), Member(2, 9, 0, "alive", "tcp://b:1", 0, 0.0))
    at = Standing(1, 5, lambda: table, 10, "barrier")
    there = (Seen(1, 7, own=0, own_at=0.0), Seen(2, 9, own=0, own_at=0.0))
    assert meaning(events.Changed(table), at) == Members(there)
    assert meaning(events.Accused(7, 2), at) == Members(there, accused=7)
    assert meaning(events.Conflict(2, "tcp://c:1"), at) == Note(
        "conflict", 2, 5, "two processes say they are it; one at tcp://c:1"
    )
    assert meaning(events.MemberDrop("frames", "3 of them"), at) == Drop("frames", "3 of them")
    assert "started again at tcp://c:1" in str(meaning(events.Superseded(7, "tcp://c:1"), at))
    assert meaning(events.Gone(), at) is None
    for silent in (False, True):  # a suspect that has not been asked in vain is only talked about
        suspect = table[1]._replace(state="suspect", silent=silent)
        assert meaning(events.Changed((suspect,)), at) == Members((Seen(2, 9, silent, own=0, own_at=0.0),))
