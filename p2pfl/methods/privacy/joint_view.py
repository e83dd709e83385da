"""What someone in the graph can find out of another's contributions: one linear view of all that they see.

Gossip of noised contributions is linear: all models that somebody sees in all rounds, stacked, are

    Y = A (g + z),    z ~ N(0, s^2 I)

where g are the contributions of all nodes in all rounds, clipped, and z the noise of each, of which one's own is known
and taken off. What Y tells of node u is then that of a Gaussian mechanism with

    mu^2 = max over changes d of u's contributions of  d^T P_u d / s^2,    P = A^T (A A^T)^+ A

P projects onto the row space of A; P_u = I: u is seen as if it had sent each contribution by itself; P_u = 0: not at
all. Which columns and rows are kept says who looks: one node, all neighbours together, any coalition.

**What it takes for granted**: a row changes u's contributions by so much, and those of all other honest nodes not at
all. That is so of statistics, and of a round. Gradients are taken at models that earlier contributions have moved, u's
own among them, unseen by who looks: then the figure is what the linear view tells, and no theorem. What holds without
it is that of all neighbours together, who see every contribution.

Source: Bellet, Cyffers, Frey, Gaudel, Lerévérend, Taïani, "Unified privacy guarantees for decentralized learning via
matrix factorization" (2025); that one noise does not protect many messages: El Mrini, Cyffers, Bellet, "Privacy attacks
in decentralized learning" (2024).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from p2pfl.errors import ConfigError

MOST = 1 << 24
"""Numbers of the matrix A beyond which it is not looked at: its row space takes minutes."""
_TINY = 1e-9
"""Of the largest singular value: what is below is rounding."""


def too_large(nodes: int, rounds: int, seen: int) -> bool:
    """Return whether the view of so many nodes' models is more than is looked at."""
    return nodes * rounds * rounds * seen > MOST


def check(nodes: int, rounds: int, seen: int) -> None:
    """Raises ConfigError for a view that is too large."""
    if too_large(nodes, rounds, seen):
        raise ConfigError(f"{rounds} rounds of {nodes} nodes: too many to work out what nodes see of each other")


def seen_by(weights: np.ndarray, lookers: Collection[int]) -> list[int]:
    """The nodes whose models a coalition sees: its own, and those of neighbours in any round. `weights` [T, n, n]."""
    linked = (weights != 0).any(axis=0)
    return sorted({*lookers, *(int(j) for i in lookers for j in np.flatnonzero(linked[i] | linked[:, i]))})


def projection(
    weights: np.ndarray, rounds: int, lookers: Collection[int], contributing: int | None = None
) -> np.ndarray:
    """What a coalition sees of each node's contributions.

    In a round every node adds its contribution to its model, sends it, and mixes: x <- W_r (x + c_r).

    Args:
        weights: [T, n, n] W of each round, used in turn.
        rounds: >= 1.
        lookers: the nodes of the coalition; what they have contributed, and its noise, they know.
        contributing: rounds, the first ones, in which nodes add something; after them they only mix. None: all.

    Returns:
        [n, contributing, contributing] P of every node, positive semidefinite and at most I; that of lookers is 0.

    Raises:
        ConfigError: the view is too large to be looked at.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.privacy.joint_view import projection
        >>> pair = np.full((1, 2, 2), 0.5)
        >>> projection(pair, 2, {0})[1].round(6).tolist()  # a neighbour of one: everything
        [[1.0, 0.0], [0.0, 1.0]]
    """
    nodes, adding = weights.shape[1], rounds if contributing is None else min(contributing, rounds)
    seen = seen_by(weights, lookers)
    check(nodes, rounds, len(seen))
    views = view(weights, rounds, lookers, adding)
    honest = [node for node in range(nodes) if node not in lookers]
    matrix = views[..., honest].reshape(rounds * len(seen), -1)
    _, size, rows = np.linalg.svd(matrix, full_matrices=False)
    kept = rows[size > _TINY * max(size.max(initial=0), 1)].reshape(-1, adding, len(honest))
    found = np.zeros((nodes, adding, adding))
    found[honest] = np.einsum("krn,ksn->nrs", kept, kept)
    return found


def made_of(weights: np.ndarray, rounds: int, adding: int) -> Iterator[np.ndarray]:
    """Yield, of each round, how every node's model is made of contributions right before it is mixed.

    [n, adding, n]: of the model of node i, what counts the contribution of node u in round r. A round adds and mixes,
    x <- W_r (x + c_r), and only the first `adding` rounds add. `weights` [T, n, n].
    """
    nodes = weights.shape[1]
    model = np.zeros((nodes, adding, nodes))
    for r in range(rounds):
        if r < adding:
            model[np.arange(nodes), r, np.arange(nodes)] += 1
        yield model
        model = np.einsum("ij,jrn->irn", weights[r % len(weights)], model)


def view(weights: np.ndarray, rounds: int, lookers: Collection[int], adding: int) -> np.ndarray:
    """Return all that a coalition sees, as sums of contributions: [rounds, S, adding, n], S as `seen_by` lists nodes.

    Zero in rounds in which a node is not seen.
    """
    seen, nodes = seen_by(weights, lookers), weights.shape[1]
    views = np.zeros((rounds, len(seen), adding, nodes))
    for r, model in enumerate(made_of(weights, rounds, adding)):
        linked = (weights[r % len(weights)] != 0) | (weights[r % len(weights)].T != 0)
        for place, node in enumerate(seen):  # a neighbour is seen in the rounds in which it is one
            if node in lookers or any(linked[looker, node] for looker in lookers):
                views[r, place] = model[node]
    return views


def sensitivity(view: np.ndarray, change: np.ndarray, most: int | None = None) -> float:
    """An upper bound of mu^2 s^2: of d^T P d over all changes of one row's part in what a node contributes.

    Args:
        view: [R, R] P of a node, of `projection`.
        change: [R] by how much a row can change the contribution of each round, at most: a norm.
        most: rounds in which a row takes part, at most; None: all.

    Returns:
        The smaller of two bounds: over the `most` rounds r that have most of it, the sum of the `most` largest
        |P_rs| c_r c_s (which is exact where P >= 0 and a row takes part in every round, or in a single one); and the
        sum of the `most` largest c_r^2 times the largest eigenvalue of P.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.privacy import sensitivity
        >>> sensitivity(np.eye(4), np.ones(4)), sensitivity(np.eye(4), np.ones(4), most=2)
        (4.0, 2.0)
    """
    many = len(change) if most is None else min(most, len(change))
    sized = np.abs(view) * change[:, None] * change[None, :]
    largest = float(np.sort(change**2)[len(change) - many :].sum()) * float(np.linalg.eigvalsh(view)[-1])
    rows = np.sort(sized, axis=1)[:, len(change) - many :].sum(axis=1)
    return min(float(np.sort(rows)[len(change) - many :].sum()), largest)
