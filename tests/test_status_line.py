"""The line by which a node tells how it goes: what it says, as a table, and when it is due."""

from __future__ import annotations

import pytest

from p2pfl.drivers.live.status_line import EVERY, LONG, SHOWN, SOONEST, Situation, StatusLine, directions, line

AT = Situation(120, 400, 8, 8)
A, B, C = "tcp://10.0.0.3:5700", "tcp://10.0.0.4:5700", "tcp://site-c.example.org:5700"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (AT, "round 120 of 400; 8 of 8 nodes there"),
        (AT._replace(score=("accuracy", 0.93148)), "round 120 of 400; 8 of 8 nodes there; accuracy 0.931"),
        (AT._replace(there=6, missing=(3, 4)), "round 120 of 400; 6 of 8 nodes there; not there: node 3, 4"),
        (AT._replace(awaited=(2,)), "round 120 of 400; 8 of 8 nodes there; waiting for node 2"),
        (AT._replace(there=7, missing=(3,), awaited=(2, 3)),
         "round 120 of 400; 7 of 8 nodes there; not there: node 3; waiting for node 2"),
        (AT._replace(there=80, expected=100, missing=tuple(range(20))),
         "round 120 of 400; 80 of 100 nodes there; not there: 20 nodes"),
        (AT._replace(round=0, there=1, missing=(1, 2), peers=(A, B)),
         f"round 0 of 400; 1 of 8 nodes there; no other node answers at {A}, {B}"),
        (AT._replace(round=0, there=1), "round 0 of 400; 1 of 8 nodes there; no other node answers at any address: "
         "peers is empty"),
        (AT._replace(there=1, missing=(1,), peers=(A, B), address=C, why={A: "refused: nothing listens at port 5701"}),
         f"round 120 of 400; 1 of 8 nodes there; no other node answers at {A} "
         f"(refused: nothing listens at port 5701), {B}"),
        (AT._replace(there=1, missing=(1,), peers=(A,), strange=(A, B), why={B: "can't be resolved: no such name"}),
         f"round 120 of 400; 1 of 8 nodes there; no other node answers at {A}, {B} (can't be resolved: no such name)"),
        (AT._replace(there=1, missing=(1,), peers=(A,), address=C, why={C: "can't be resolved: no such name"}),
         f"round 120 of 400; 1 of 8 nodes there; no other node answers at {A}; "
         f"nor is this node reached at its own address {C} (can't be resolved: no such name)"),
        (AT._replace(there=7, missing=(1,), strange=(A, B), why={A: "refused: nothing listens at port 5701"}),
         "round 120 of 400; 7 of 8 nodes there; not there: node 1; "
         f"nobody at {A} (refused: nothing listens at port 5701)"),
        (AT._replace(unreached=((3, A),), why={A: "refused: nothing listens at port 5700"}), "round 120 of 400; 8 of 8 "
         f"nodes there; node 3 reaches us, we don't reach it at {A}: refused: nothing listens at port 5700"),
        (AT._replace(there=1, missing=(1,), uncallable="hearts.toml"), "round 120 of 400; 1 of 8 nodes there; no other "
         "node is there, and none can be called: if the others have revoked this one, nobody can tell it; their "
         "hearts.toml, put in the place of this one's, does"),
        (AT._replace(there=1, missing=(1,), uncallable="hearts.toml", address=C, why={C: "can't be resolved"}),
         "round 120 of 400; 1 of 8 nodes there; no other node is there, and none can be called: if the others have "
         "revoked this one, nobody can tell it; their hearts.toml, put in the place of this one's, does; "
         f"nor is this node reached at its own address {C} (can't be resolved)"),
        (AT._replace(uncallable="hearts.toml"), "round 120 of 400; 8 of 8 nodes there"),
        (AT._replace(there=1, expected=1), "round 120 of 400; 1 of 1 nodes there"),
        (AT._replace(unreached=((3, A),)),
         f"round 120 of 400; 8 of 8 nodes there; node 3 reaches us, we don't reach it at {A}: firewall?"),
        (AT._replace(unheard=((3, A),), address=B), "round 120 of 400; 8 of 8 nodes there; we reach node 3 at "
         f"{A}, nothing comes from it: does it reach us at {B}?"),
    ],
)  # fmt: skip
def test_the_line(now: Situation, said: str) -> None:
    assert line(now) == said


def test_the_line_stays_a_line_however_many_there_are() -> None:
    crowd = tuple((node, A) for node in range(200))
    assert line(AT._replace(unreached=crowd, unheard=crowd)).count(A) == 2 * SHOWN
    assert line(AT._replace(missing=(1,), strange=(A,) * 200, why={A: "refused"})).count(A) == SHOWN


@pytest.mark.parametrize(
    ("heard", "blocked", "answering", "unreached", "unheard"),
    [
        ({3: 100.0}, {}, (3,), (), ()),  # both directions
        ({3: 100.0}, {3: 100 - LONG}, (3,), ((3, A),), ()),
        ({3: 100.0}, {3: 100 - LONG / 2}, (3,), (), ()),  # a connection that is only being made
        ({3: 100 - LONG}, {3: 0.0}, (3,), (), ()),  # neither direction: it may be dead, which the membership will say
        ({}, {3: 0.0}, (3,), (), ()),
        ({}, {}, (3,), (), ((3, A),)),
        ({3: 100 - LONG}, {}, (3,), (), ((3, A),)),
        ({3: 100 - LONG}, {}, (), (), ()),  # nobody has asked it anything
        ({4: 100.0}, {4: 0.0}, (4,), (), ()),  # no neighbour
    ],
)
def test_directions(
    heard: dict[int, float],
    blocked: dict[int, float],
    answering: tuple[int, ...],
    unreached: tuple[tuple[int, str], ...],
    unheard: tuple[tuple[int, str], ...],
) -> None:
    assert directions({3: A}, heard, blocked, answering, 100.0) == (unreached, unheard)


def test_a_line_is_due_now_and_then_and_when_something_changes() -> None:
    tell = StatusLine()
    assert tell.next(AT, 50.0) is not None  # the first at once
    assert tell.next(AT._replace(round=121), 50.0 + EVERY - 0.1) is None  # rounds go on: nothing new
    assert tell.next(AT._replace(round=300), 50.0 + EVERY) == line(AT._replace(round=300))
    worse = AT._replace(there=7, missing=(3,))
    assert tell.next(worse, 50.0 + EVERY + SOONEST / 2) is None  # not twice within a moment
    assert tell.next(worse, 50.0 + EVERY + SOONEST) == line(worse)
    assert tell.next(AT, 50.0 + EVERY + 2 * SOONEST) == line(AT)  # better


def test_who_is_waited_for_in_every_round_and_for_no_time_is_not_worth_a_word() -> None:
    tell = StatusLine()
    for k in range(100):
        assert tell.long([k % 2], k / 10) == ()
    assert tell.long([], 15.0) == tell.long([1], 20.0) == ()
    assert tell.long([1, 2], 20.0 + LONG) == (1,)
    assert tell.long([], 30.0) == tell.long([1], 31.0) == ()
