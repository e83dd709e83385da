"""The ledger of a run: what two lives that ended well have exchanged must cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl import records, summary, tree


def line(life: int, booked: list[list[int]], exchanged: dict[str, np.ndarray], round: int = 1) -> records.Traced:
    packed = {who: records.pack(vector) for who, vector in exchanged.items()}
    return records.Traced(life, round, booked, [], [], packed, records.pack(np.zeros(tree.SKETCH)))


def write(run: Path, traces: dict[int, list[Any]]) -> Path:
    for node, lines in traces.items():
        (run / "nodes" / str(node)).mkdir(parents=True)
        out = records.Lines(run / "nodes" / str(node) / "trace.jsonl")
        for each in lines:
            out.write(each)
        out.close()
    return run


@pytest.fixture
def v() -> np.ndarray:
    return np.random.default_rng(0).normal(size=tree.SKETCH)


def test_two_sides_cancel_and_what_does_not_is_the_residual(tmp_path: Path, v: np.ndarray) -> None:
    run = write(tmp_path, {
        0: [records.Began(7, 1, [1], []), line(7, [[1, 8, 0, 1, 1]], {"1:8": v})],
        1: [records.Adopted(8, 1, [0, 7, 0]), line(8, [[0, 7, 0, 1, 1]], {"0:7": -v})],
    })  # fmt: skip
    both = {(0, 7), (1, 8)}
    assert summary.ledger(run, both, 16, "exchange", "exchange") == (0.0, 0)
    assert summary.ledger(run, both, 16, "exchange", "nothing") == (None, 0)
    assert summary.ledger(run, both, 16, "push", "running_sums") == (None, 0)
    wrong = write(tmp_path / "wrong", {
        0: [line(7, [[1, 8, 0, 1, 1]], {"1:8": v})],
        1: [line(8, [[0, 7, 0, 1, 1]], {"0:7": -0.5 * v})],
    })  # fmt: skip
    found = summary.ledger(wrong, both, 16, "exchange", "exchange").mean_residual
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
    kept = summary.ledger(run, {(0, 7), (1, 9)}, 16, "exchange", "exchange")
    assert kept.mean_residual == pytest.approx(0, abs=1e-12)
    assert kept.residue == 1  # the dead life had booked nothing
    assert summary.ledger(run, set(), 16, "exchange", "exchange").mean_residual is None
