"""Balance the nodes' ledgers of exchanges against each other: did mixing keep the mean?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl import tree
from p2pfl.node import records

_END = 1 << 62

Life = tuple[int, int]
"""(node, life)."""


class Ledger(NamedTuple):
    """The balance of the books. Drifts: root mean square over the parameters of the mean model; None where it is not
    exchanges that keep the mean."""

    mean_residual: float | None  # that nothing explains: rounding, or a fault
    residue: int | None  # exchanges booked at one end only: the other died, went back to a checkpoint, or was given up
    residue_drift: float | None  # by such exchanges between lives that count


def balance(
    places: dict[int, Path], ended: Collection[Life], size: int, link: str, keeps_mean: str, whole: bool = True,
    sums: bool = False,
) -> Ledger:  # fmt: skip
    """Balance the books. `places`: the directory of each node's records; `ended`: lives whose model counts at the end.
    `whole`: no record of a trace was dropped; else nothing can be said.

    A life that an ended one has gone on from counts as well, up to the round that was kept. What two lives that count
    have exchanged must cancel. What a life exchanged with one that does not count is left out: the other side is gone
    with its model, so that no mean can be wrong by it. Vectors are sketches (tree.sketch), whose norm estimates the
    true one without bias. `size`: parameters of a model; `link`, `keeps_mean`: of the algorithm. Running sums keep the
    mean by construction, and "nothing" keeps none: nothing is to be balanced. `sums`: a node knows the sum of its
    neighbours alone, and not what it has moved by each: books balance as a whole, or nothing can be said of drift.
    """
    if link != "exchange":
        return Ledger(None, 0, None)
    if not whole:
        return Ledger(None, None, None)
    rows = {node: records.read(path / "trace.jsonl") for node, path in places.items()}
    limits = _limits(rows, ended)
    booked: dict[tuple[Life, Life], set[int]] = defaultdict(set)
    moved: dict[tuple[Life, Life], np.ndarray] = {}
    for node, lines in rows.items():
        for row in lines:
            me = node, row["life"]
            if row["round"] > limits.get(me, _END):
                continue
            for other, life, number, *_ in row.get("booked", ()):
                if other not in places:  # there is nothing to compare with
                    continue
                booked[me, (other, life)].add(number)
            for who, vector in row.get("exchanged", {}).items():  # so far: the last row that has some has it all
                other, _, life = who.partition(":")
                moved[me, (int(other), int(life))] = records.unpack(vector)
    residue = sum(len(numbers - booked.get(pair[::-1], set())) for pair, numbers in list(booked.items()))
    if not ended or keeps_mean != "exchange":
        return Ledger(None, residue, None)
    if sums and (residue or any(life not in limits for pair in moved for life in pair)):
        return Ledger(None, residue, None)
    total, given_up = np.zeros((2, tree.SKETCH))
    for (me, other), vector in moved.items():
        if me in limits and other in limits:
            whole = booked[me, other] == booked[other, me]
            (total if whole else given_up)[:] += vector

    def drift(vector: np.ndarray) -> float:
        return float(np.linalg.norm(vector)) / len(ended) / size**0.5

    return Ledger(drift(total), residue, drift(given_up))


def _limits(rows: dict[int, list[dict[str, Any]]], ended: Collection[Life]) -> dict[Life, int]:
    """The lives that count, and up to which round."""
    kept = {(node, row["life"]): row["kept"] for node, lines in rows.items() for row in lines if "kept" in row}
    limits: dict[Life, int] = {}
    for node, life in ended:
        limits[node, life] = _END
        while (node, life) in kept:
            life, round = kept[node, life]
            limits[node, life] = round
    return limits
