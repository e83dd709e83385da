"""`p2pfl chaos`: who is killed and when, what counts as useful, and a run of it in virtual and in simulated time.

tests/test_faults.py does the same to real processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import Case, write

from p2pfl.churn import Event, check
from p2pfl.config import experiment
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation.federation import build
from p2pfl.node import records
from p2pfl.reporting import terminal
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import chaos
from p2pfl.runs.chaos import Kill, Wanted, judge, last_scores, plan, returned, round_seconds, timed, victim, work

SLOW = "[virtual]\nstep_seconds = 0.5\nlatency = 0.01\n"

# --- who, and when


@pytest.mark.parametrize(
    ("at_work", "nodes", "one_dies"),
    [
        (range(8), 8, True),
        (range(5), 8, True),  # four are gone then: half
        (range(4), 8, False),
        (range(3), 5, False),  # three of five would be
        (range(4), 5, True),
        (range(2), 2, True),
        (range(1), 2, False),
        (range(1), 1, False),
        ((), 3, False),
    ],
)
def test_never_are_more_than_half_gone_at_once(at_work: Any, nodes: int, one_dies: bool) -> None:
    chosen = victim(0, 0, at_work, nodes)
    assert (chosen in at_work) if one_dies else chosen is None


def test_who_is_killed_follows_from_the_seed_and_all_are_some_time() -> None:
    drawn = [[victim(seed, number, range(8), 8) for number in range(100)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {*drawn[0]} == {*range(8)}


@pytest.mark.parametrize(
    ("every", "rounds", "took", "back", "at"),
    [
        (10.0, 40, 1.0, 2.0, [(11, 13), (21, 23), (31, 33)]),  # at 40 s it is over
        (10.0, 30, 1.5, 2.0, [(8, 9), (15, 16), (21, 23), (28, 29)]),  # 10 s: in round 7; the next is the 8th
        (1.0, 6, 1.0, 0.2, [(2, 3), (3, 4), (4, 5), (5, 6)]),  # who could not be back by the last round is spared
        (5.0, 10, 0.1, 2.0, []),
        (3.0, 12, 1.0, 30.0, []),
    ],
)
def test_a_plan_by_rounds(every: float, rounds: int, took: float, back: float, at: list[tuple[int, int]]) -> None:
    kills = plan(Wanted(every), 8, rounds, took, back)
    assert [(kill.at, kill.back) for kill in kills] == at


@pytest.mark.parametrize("nodes", [2, 3, 8])
@pytest.mark.parametrize("back", [1.0, 3.0, 25.0])
def test_a_plan_can_happen(nodes: int, back: float) -> None:
    kills = plan(Wanted(1.0, seed=3), nodes, 100, 0.5, back)
    events = [Event("crash", kill.node, int(kill.at)) for kill in kills]
    events += [Event("rejoin", kill.node, int(kill.back or 0), "kept") for kill in kills]
    check(events, nodes, 100)
    gone = [sum(kill.at <= round < (kill.back or 0) for kill in kills) for round in range(1, 101)]
    assert kills and max(gone) <= nodes // 2


# --- what is useful


def row(node: int, round: int, time: float, life: int = 1, score: float | None = None) -> dict[str, Any]:
    return {"node": node, "round": round, "time": time, "life": life, "accuracy_after_mixing": score}


BOTH = [row(node, round, 100.0 + round) for node in (0, 1) for round in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("rows", "seconds", "alone", "steps"),
    [
        (BOTH, 3.0, 0, 3 * (2 + 5)),  # the first round begins the count
        (BOTH, 2.0, 0, 2 * (2 + 5)),  # no more than the same span of time
        (BOTH[:4], 3.0, 0, 3 * 2),  # a node that is not there
        ([*BOTH, row(0, 3, 103.5, life=2)], 3.0, 0, 3 * (2 + 5)),  # trained again: once
        (BOTH, 3.0, 4, 3 * (2 + 5) - 4),  # without half of the others: not at all
        ([], 3.0, 0, 0),
    ],
)
def test_useful_steps(rows: list[dict[str, Any]], seconds: float, alone: int, steps: int) -> None:
    done = work(rows, [2, 5], seconds, alone)
    assert done.steps == steps and done.per_second == pytest.approx(steps / seconds)


def test_a_node_is_back_with_the_first_round_of_a_new_life() -> None:
    rows = [row(0, 1, 1.0), row(0, 2, 2.0), row(1, 2, 2.0), row(0, 5, 4.5, life=9), row(0, 6, 5.0, life=9)]
    assert returned([Kill(0, 2.1, None), Kill(1, 2.1, None)], rows) == [Kill(0, 2.1, 4.5), Kill(1, 2.1, None)]
    assert timed([Kill(0, 3, 5)], rows) == [Kill(0, 2.0, None)]


def test_the_last_score_of_each_node_counts() -> None:
    rows = [row(0, 1, 1.0, score=0.1), row(0, 2, 2.0, score=0.5), row(0, 3, 3.0), row(1, 2, 2.5, score=0.9)]
    assert last_scores(rows, "accuracy") == pytest.approx(0.7)
    assert last_scores([row(0, 1, 1.0)], "accuracy") is None


@pytest.mark.parametrize(
    ("calm", "rough", "kills", "reasons"),
    [
        ({}, {}, [Kill(1, 5.0, 6.0)], 0),
        ({}, {"rounds_skipped": {"1": 90}}, [Kill(1, 5.0, 6.0)], 0),  # while it was away
        ({}, {"rounds_skipped": {"0": 90}}, [Kill(1, 5.0, 6.0)], 1),
        ({}, {"lost": (1,), "lost_unplanned": {"1": "was killed"}}, [Kill(1, 5.0, None)], 1),
        ({}, {}, [Kill(1, 5.0, None)], 1),  # it has not trained again
        ({"lost": (0,), "lost_unplanned": {"0": "failed"}}, {}, [], 1),
    ],
)
def test_what_returned_is_no_loss(calm: Any, rough: Any, kills: list[Kill], reasons: int) -> None:
    both = [Summary(nodes=4, rounds=100, **given) for given in (calm, rough)]
    result = judge(*both, kills)
    assert len(result.reasons) == reasons and result.code == (Exit.NOT_WHOLE if reasons else Exit.DONE)


# --- runs


def made(folder: Path, kind: str, rounds: int = 12, more: str = SLOW) -> experiment.Experiment:
    file = write(folder, Case("dsgd", "complete", 4), more=more, rounds=rounds, timing={})
    return experiment.load(file, [f'driver.kind="{kind}"'])


@pytest.mark.parametrize("kind", ["virtual", pytest.param("simulate", marks=pytest.mark.more)])
def test_both_runs_of_an_experiment(tmp_path: Path, kind: str) -> None:
    given = made(tmp_path, kind)
    took = round_seconds(build(given))
    out = tmp_path / "out"
    result = chaos.chaos(given, Wanted(4 * took), out, terminal.quiet())
    table = json.loads((out / "chaos.json").read_text())
    assert table == json.loads(json.dumps(result.as_dict()))
    assert len(result.kills) == 2 and all(kill.back is not None for kill in result.kills)
    assert 0.5 < result.goodput < 1 and result.disturbed.steps < result.undisturbed.steps
    assert not result.verdict.reasons and table["incomplete"] == []
    assert all((out / side / "report.html").exists() for side in chaos.SIDES)
    residuals = [summary.mean_residual for summary in result.summaries]
    assert all(each is None or each < 1e-6 for each in residuals)


@pytest.mark.more
def test_rounds_of_a_ring_meet_again_when_a_node_has_been_away(tmp_path: Path) -> None:
    """Else what the neighbours differ by adds up around the ring, and slows all rounds for ever (to 14 / 16)."""
    file = write(tmp_path, Case("dsgd", "ring", 16), more="[virtual]\nstep_seconds = 0.15\n", rounds=60, timing={})
    result = chaos.chaos(
        experiment.load(file, ['driver.kind="virtual"']), Wanted(10.0, seed=2), tmp_path / "out", terminal.quiet()
    )
    last: dict[int, int] = {}
    for node in range(16):
        for each in records.read(tmp_path / "out" / "disturbed" / "nodes" / str(node) / "trace.jsonl"):
            for to, _, _, here, there in each.get("booked", []):
                if to == (node + 1) % 16:
                    last[node] = there - here
    assert sum(last.values()) == 0 and len(last) == 16
    assert len(result.kills) == 1 and result.goodput > 0.94


@pytest.mark.parametrize(
    ("given", "more", "rounds", "said"),
    [
        (Wanted(0.0), SLOW, 12, "every=0: must be > 0"),
        (Wanted(-1.0), SLOW, 12, "every=-1: must be > 0"),
        (Wanted(10.0, 10.0), SLOW, 12, "for=10: must be longer than every=10"),
        (Wanted(1e6), SLOW, 12, "every=1e+06: nobody would be killed: 12 rounds of"),
        (
            Wanted(10.0),
            "[virtual]\nstep_seconds = 0.0\nlatency = 0.0\n",
            12,
            "virtual.step_seconds=0: a round takes no",
        ),
    ],
)
def test_mistakes(tmp_path: Path, given: Wanted, more: str, rounds: int, said: str) -> None:
    with pytest.raises(ConfigError, match="^" + said.replace("+", r"\+")):
        chaos.chaos(made(tmp_path, "virtual", rounds, more), given, tmp_path / "out", terminal.quiet())
    assert not (tmp_path / "out").exists()
