"""Over the graph: whose contributions somebody can solve for, neighbours or not.

Mixing is linear: every model that a node is sent is a known sum of what all nodes have contributed in all rounds
before. The rows of those sums are the node's knowledge matrix A, what it was sent, Y. A contribution whose unit row
lies in the row space of A is solved for exactly, by c^T Y with c^T A = e; nobody has to be a neighbour for that.

Source: El Mrini, Cyffers, Bellet, "Privacy attacks in decentralized learning" (2024): the knowledge matrix, and the
assumption that gradients of successive rounds are alike ("steady" here), under which many more nodes are solved for. In
place of their row echelon form: least squares, which says of each node whether it is solved for, and by how much the
solution enlarges errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2pfl.methods.audit.heard import Overheard, flat
from p2pfl.methods.privacy import joint_view

_EXACT = 1e-7
"""A row is in the row space if least squares comes so near to it."""


class Knowledge(NamedTuple):
    """A node's knowledge matrix: what each thing that it was sent is made of."""

    node: int
    matrix: np.ndarray  # [M, R, n]: of a thing heard, what counts the contribution of each node in each round
    begins: np.ndarray  # [R, n, R, n]: the same of each node's model when it begins the local steps of a round
    heard: tuple[tuple[int, int], ...]  # [M] (round, sender), rounds from 1; the sender is the node itself for its mix


class Solved(NamedTuple):
    """A contribution that can be solved for."""

    node: int
    round: int
    change: np.ndarray  # [D] the contribution
    start: np.ndarray | None  # [D] the model it was added to, less the first one; None where that is not known
    gain: float  # by how much errors of what was sent are enlarged


def knowledge(weights: np.ndarray, rounds: int, node: int, masked: bool = False) -> Knowledge:
    """Return what a node's messages of the first rounds are made of.

    In a round every node adds its contribution to its model, sends it, and mixes: x <- W_r (x + c_r).

    Args:
        weights: [T, n, n] W of each round, used in turn.
        rounds: R >= 1.
        node: who listens.
        masked: it learns the weighted sum of its neighbours' models alone, as masks leave it.

    Returns:
        The matrix; the node's own contributions are columns like all others.

    Raises:
        ConfigError: the view is too large to be looked at.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.audit.knowledge import knowledge
        >>> line = np.array([[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]])
        >>> knowledge(line, 2, 0).heard  # node 2 is heard of through node 1 alone
        ((1, 1), (2, 1))
    """
    nodes = weights.shape[1]
    joint_view.check(weights, rounds, range(nodes))
    rows, heard, begins = [], [], np.zeros((rounds, nodes, rounds, nodes))
    for r, made in enumerate(joint_view.made_of(weights, rounds, rounds)):
        begins[r] = made
        begins[r, np.arange(nodes), r, np.arange(nodes)] -= 1
        now = weights[r % len(weights)]
        others = [j for j in range(nodes) if j != node and (now[node, j] != 0 or now[j, node] != 0)]
        if masked:
            rows.append(np.einsum("j,jrn->rn", now[node], made))
            heard.append((r + 1, node))
        else:
            rows += [made[j] for j in others]
            heard += [(r + 1, j) for j in others]
    matrix = np.stack(rows) if rows else np.zeros((0, rounds, nodes))
    return Knowledge(node, matrix, begins, tuple(heard))


def exact(known: Knowledge) -> list[tuple[int, int]]:
    """Return (node, round) of every contribution that is solved for exactly.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.audit.knowledge import exact, knowledge
        >>> complete = np.full((1, 3, 3), 1 / 3)
        >>> exact(knowledge(complete, 2, 0))  # who hears all solves for all
        [(1, 1), (2, 1), (1, 2), (2, 2)]
    """
    rounds, nodes = known.matrix.shape[1:]
    honest, space = _honest(known), _row_space(known)
    found = []
    for r in range(rounds):
        for u in honest:
            wanted = np.zeros((rounds, nodes))
            wanted[r, u] = 1
            row = wanted[:, honest].ravel()
            if np.abs(row - space.T @ (space @ row)).max() < _EXACT:
                found.append((u, r + 1))
    return found


def solve(known: Knowledge, heard: Overheard, wanted: Sequence[tuple[int, int]]) -> list[Solved]:
    """Solve for contributions, of those that `exact` names, by what a node was sent."""
    values, own = _observed(known, heard)
    found = []
    for node, round in wanted:
        unit = np.zeros(known.matrix.shape[1:])
        unit[round - 1, node] = 1
        change, gain = _combined(known, unit, values, own)
        start, _ = _combined(known, known.begins[round - 1, node], values, own)
        assert change is not None
        found.append(Solved(node, round, change, start, gain))
    return found


def steady(known: Knowledge) -> list[int]:
    """Return the nodes that are solved for if each contributes the same in every round.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.audit.knowledge import knowledge, steady
        >>> line = np.array([[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]])
        >>> steady(knowledge(line, 1, 0)), steady(knowledge(line, 2, 0))
        ([1], [1, 2])
    """
    honest = _honest(known)
    summed = known.matrix.sum(axis=1)[:, honest]
    space = _rows(summed)
    off = np.abs(np.eye(len(honest)) - space.T @ space).max(axis=1, initial=0.0)
    return [node for node, each in zip(honest, off, strict=True) if each < _EXACT]


def solve_steady(known: Knowledge, heard: Overheard) -> dict[int, np.ndarray]:
    """Return by ordinary least squares what each node contributes in a round, if it is the same in all: node -> [D].

    Of the nodes that `steady` names; how wrong it is depends on how much contributions change from round to round.
    """
    values, own = _observed(known, heard)
    honest = _honest(known)
    left = values - np.einsum("mr,rd->md", known.matrix[:, :, known.node], own)
    found = np.linalg.pinv(known.matrix.sum(axis=1)[:, honest]) @ left
    return {node: found[honest.index(node)] for node in steady(known)}


def _honest(known: Knowledge) -> list[int]:
    return [node for node in range(known.matrix.shape[2]) if node != known.node]


def _row_space(known: Knowledge) -> np.ndarray:
    """An orthonormal basis of what the matrix tells of others: [k, R * (n - 1)]."""
    return _rows(known.matrix[:, :, _honest(known)].reshape(len(known.matrix), -1))


def _rows(matrix: np.ndarray) -> np.ndarray:
    _, size, rows = np.linalg.svd(matrix, full_matrices=False)
    kept: np.ndarray = rows[size > 1e-9 * max(size.max(initial=0), 1)]
    return kept


def _observed(known: Knowledge, heard: Overheard) -> tuple[np.ndarray, np.ndarray]:
    """What was sent, less the first model, [M, D], and the node's own contributions [R, D]."""
    me, rounds, first = known.node, known.matrix.shape[1], flat(heard.first)
    own = []
    for r in range(1, rounds + 1):
        before = first if r == 1 else flat(heard.mixed[r - 1])
        own.append(flat(heard.payloads[r, me]) - before)
    values = [flat(heard.mixed[r] if sender == me else heard.payloads[r, sender]) - first for r, sender in known.heard]
    return np.stack(values), np.stack(own)


def _combined(
    known: Knowledge, wanted: np.ndarray, values: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray | None, float]:
    """The sum of contributions `wanted` [R, n] as a combination of what was sent, and the size of that; None: none."""
    honest, me = _honest(known), known.node
    told = known.matrix[:, :, honest].reshape(len(values), -1)
    asked = wanted[:, honest].ravel()
    by = np.linalg.lstsq(told.T, asked, rcond=None)[0]
    if np.abs(told.T @ by - asked).max(initial=0.0) > _EXACT:
        return None, np.inf
    left = values - np.einsum("mr,rd->md", known.matrix[:, :, me], own)
    return by @ left + wanted[:, me] @ own, float(np.linalg.norm(by))
