"""The ledger of a run: what two lives that ended well have exchanged must cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl import tree
from p2pfl.node import records
from p2pfl.runs.ledger import Ledger, balance
from p2pfl.runs.summary import directories


def line(life: int, booked: list[list[int]], exchanged: dict[str, np.ndarray], round: int = 1) -> records.Traced:
    packed = {who: records.pack(vector) for who, vector in exchanged.items()}
    return records.Traced(life, round, booked, [], packed, records.pack(np.zeros(tree.SKETCH)))


def write(run: Path, traces: dict[int, list[Any]]) -> Path:
    for node, lines in traces.items():
        (run / "nodes" / str(node)).mkdir(parents=True)
        out = records.Lines(run / "nodes" / str(node) / "trace.jsonl")
        for each in lines:
            out.write(each)
        out.close()
    return run


def books(run: Path, *given: Any) -> Ledger:
    return balance(directories(run), *given)


@pytest.fixture
def v() -> np.ndarray:
    return np.random.default_rng(0).normal(size=tree.SKETCH)


def test_two_sides_cancel_and_what_does_not_is_the_residual(tmp_path: Path, v: np.ndarray) -> None:
    run = write(tmp_path, {
        0: [records.Began(7, 1, [1]), line(7, [[1, 8, 0, 1, 1]], {"1:8": v})],
        1: [records.Adopted(8, 1, [0, 7, 0]), line(8, [[0, 7, 0, 1, 1]], {"0:7": -v})],
    })  # fmt: skip
    both = {(0, 7), (1, 8)}
    assert books(run, both, 16, "exchange", "exchange") == (0.0, 0, 0.0)
    assert books(run, both, 16, "exchange", "nothing") == (None, 0, None)
    assert books(run, both, 16, "push", "running_sums") == (None, 0, None)
    wrong = write(tmp_path / "wrong", {
        0: [line(7, [[1, 8, 0, 1, 1]], {"1:8": v})],
        1: [line(8, [[0, 7, 0, 1, 1]], {"0:7": -0.5 * v})],
    })  # fmt: skip
    found = books(wrong, both, 16, "exchange", "exchange").mean_residual
    assert found == pytest.approx(0.5 * np.linalg.norm(v) / 2 / 4)


def test_the_last_line_of_a_life_counts_and_what_was_exchanged_with_the_dead_does_not(
    tmp_path: Path, v: np.ndarray
) -> None:
    run = write(tmp_path, {
        0: [
            line(7, [[1, 8, 0, 1, 1]], {"1:8": v}),
            line(7, [[1, 9, 0, 2, 2]], {"1:8": v, "1:9": 2 * v}, round=2),
        ],
        1: [line(9, [[0, 7, 0, 2, 2]], {"0:7": -2 * v}, round=2)],
    })  # fmt: skip
    kept = books(run, {(0, 7), (1, 9)}, 16, "exchange", "exchange")
    assert kept.mean_residual == pytest.approx(0, abs=1e-12)
    assert kept.residue == 1  # the dead life had booked nothing
    assert books(run, set(), 16, "exchange", "exchange").mean_residual is None


def test_what_one_of_two_survivors_has_booked_alone_is_residue_and_no_fault(tmp_path: Path, v: np.ndarray) -> None:
    run = write(tmp_path, {
        0: [line(7, [[1, 8, 0, 1, 1]], {"1:8": v}), line(7, [[1, 8, 1, 2, 2]], {"1:8": 3 * v}, round=2)],
        1: [line(8, [[0, 7, 0, 1, 1]], {"0:7": -v})],
    })  # fmt: skip
    found = books(run, {(0, 7), (1, 8)}, 16, "exchange", "exchange")
    assert found == (0.0, 1, pytest.approx(2 * np.linalg.norm(v) / 2 / 4))


def test_a_life_that_another_goes_on_from_counts_up_to_what_was_kept(tmp_path: Path, v: np.ndarray) -> None:
    """Node 1 was killed after round 2 and went on from its checkpoint of round 1: what it booked in between is lost."""
    run = write(tmp_path, {
        0: [line(7, [[1, 8, 0, 1, 1]], {"1:8": v}), line(7, [[1, 8, 1, 2, 2]], {"1:8": 3 * v}, round=2)],
        1: [
            line(8, [[0, 7, 0, 1, 1]], {"0:7": -v}),
            line(8, [[0, 7, 1, 2, 2]], {"0:7": -3 * v}, round=2),
            records.Kept(9, 2, [8, 1]),
            line(9, [], {}, round=3),
        ],
    })  # fmt: skip
    ended = {(0, 7), (1, 9)}
    found = books(run, ended, 16, "exchange", "exchange")
    assert (found.mean_residual, found.residue) == (0.0, 1)
    assert found.residue_drift == pytest.approx(2 * np.linalg.norm(v) / 2 / 4)
