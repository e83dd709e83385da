"""What someone in the graph can find out of another's contributions: one linear view of all that they see.

Gossip of noised contributions is linear: all models that somebody sees in all rounds, stacked, are

    Y = A (g + z),    z ~ N(0, s^2 I)

where g are the contributions of all nodes in all rounds, clipped, and z the noise of each, of which one's own is known
and taken off. What Y tells of node u is then that of a Gaussian mechanism with

    mu^2 = max over changes d of u's contributions of  d^T P_u d / s^2,    P = A^T (A A^T)^+ A

P projects onto the row space of A; P_u = I: u is seen as if it had sent each contribution by itself; P_u = 0: not at
all. Which columns and rows are kept says who looks: one node, all neighbours together, any coalition.

Where noise is no such z, but has the covariance S over the nodes in a round (noise that neighbours share and that
cancels between them, without what those who look know of it), and where messages have noise C z' of their own besides
(of which those who look know what is on their own),

    mu^2 = max over d of  d^T M_u d,    M = A^T (A S A^T + C C^T)^+ A

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


def too_large(weights: np.ndarray, rounds: int, lookers: Collection[int], unlike: bool = False) -> bool:
    """Return whether what lookers see is more than is looked at; `unlike`: each neighbour is sent something else."""
    nodes, linked = weights.shape[1], (weights != 0).any(axis=0)
    linked |= linked.T
    if not unlike:
        return bool(nodes * rounds * rounds * len(seen_by(weights, lookers)) > MOST)
    return bool(
        nodes * nodes * rounds * linked.sum() > MOST or nodes * rounds * rounds * linked[[*lookers]].sum() > MOST
    )


def check(weights: np.ndarray, rounds: int, lookers: Collection[int], unlike: bool = False) -> None:
    """Raises ConfigError for a view that is too large; as `too_large`."""
    if too_large(weights, rounds, lookers, unlike):
        nodes = weights.shape[1]
        raise ConfigError(f"{rounds} rounds of {nodes} nodes: too many to work out what nodes see of each other")


def seen_by(weights: np.ndarray, lookers: Collection[int]) -> list[int]:
    """The nodes whose models a coalition sees: its own, and those of neighbours in any round. `weights` [T, n, n]."""
    linked = (weights != 0).any(axis=0)
    return sorted({*lookers, *(int(j) for i in lookers for j in np.flatnonzero(linked[i] | linked[:, i]))})


def covariance(
    own: np.ndarray, correlated: float = 0.0, linked: np.ndarray | None = None, lookers: Collection[int] = ()
) -> np.ndarray:
    """The covariance over the nodes of the noise that is on a step of each, without what those who look know of it.

    Each node has noise of its own, and each pair of neighbours noise that one of them adds and the other takes away:
    S = diag(own^2) + correlated^2 L, L the Laplacian of the graph without the nodes that look.

    Source: Allouah, Koloskova, El Firdoussi, Jaggi, Guerraoui, "The privacy power of correlated noise in decentralized
    learning" (DECOR, 2024), lemma of its section 4.

    Args:
        own: [n] standard deviation of each node's own noise, in units of `clip`, > 0.
        correlated: of the noise of each pair of neighbours.
        linked: [n, n] bool: who is a neighbour of whom; None: nobody.
        lookers: nodes of which nothing counts, since those who look know it.

    Returns:
        [n, n] positive definite.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.privacy.joint_view import covariance
        >>> covariance(np.ones(2), 2.0, np.array([[False, True], [True, False]])).tolist()
        [[5.0, -4.0], [-4.0, 5.0]]
    """
    edges = np.zeros((len(own), len(own))) if linked is None else np.array(linked, np.float64)
    np.fill_diagonal(edges, 0)
    away = [*lookers]
    edges[away], edges[:, away] = 0, 0
    return np.diag(np.asarray(own, np.float64) ** 2) + correlated**2 * (np.diag(edges.sum(axis=1)) - edges)


def of_all_messages(noise: np.ndarray, lookers: Collection[int] = ()) -> np.ndarray:
    """mu^2 of each node for a change of norm 1 in one step, for who sees every step of every node as it was noised.

    No theorem about gossip is needed for it: what a node sends is made of such steps, and in each of them all that went
    before is known. Source: Allouah et al. (2024), see `covariance`: [S^-1]_ii.

    Args:
        noise: [n, n] of `covariance`, with the same lookers.
        lookers: nodes of which it is 0: they know their own rows.

    Returns:
        [n] mu^2.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.privacy.joint_view import covariance, of_all_messages
        >>> pair = np.array([[False, True], [True, False]])
        >>> of_all_messages(covariance(np.ones(2), 1000.0, pair)).round(3).tolist()  # only their sum can be seen
        [0.5, 0.5]
    """
    honest = [node for node in range(len(noise)) if node not in lookers]
    found = np.zeros(len(noise))
    found[honest] = np.diag(np.linalg.inv(noise[np.ix_(honest, honest)]))
    return found


def projection(
    weights: np.ndarray,
    rounds: int,
    lookers: Collection[int],
    contributing: int | None = None,
    noise: np.ndarray | None = None,
    zip_dl: float = 0.0,
) -> np.ndarray:
    """What a coalition sees of each node's contributions.

    In a round every node adds its contribution to its model, sends it, and mixes: x <- W_r (x + c_r).

    Args:
        weights: [T, n, n] W of each round, used in turn.
        rounds: >= 1.
        lookers: the nodes of the coalition; what they have contributed, and its noise, they know.
        contributing: rounds, the first ones, in which nodes add something; after them they only mix. None: all.
        noise: [n, n] of `covariance`, with the same lookers; None: the unit matrix.
        zip_dl: standard deviation of the noise of the combinator "zip_dl", in the same units; lookers know their own.

    Returns:
        [n, contributing, contributing] M of every node, positive semidefinite; with unit noise it is P, at most I. That
        of lookers is 0.

    Raises:
        ConfigError: the view is too large to be looked at.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.privacy.joint_view import projection
        >>> pair = np.full((1, 2, 2), 0.5)
        >>> projection(pair, 2, {0})[1].round(6).astype(int).tolist()  # a neighbour of one: everything
        [[1, 0], [0, 1]]
    """
    nodes, adding = weights.shape[1], rounds if contributing is None else min(contributing, rounds)
    check(weights, rounds, lookers, zip_dl > 0)
    views, besides = _views(weights, rounds, lookers, adding, zip_dl)
    honest = [node for node in range(nodes) if node not in lookers]
    root = np.linalg.cholesky((np.eye(nodes) if noise is None else noise)[np.ix_(honest, honest)])
    matrix = views[..., honest].reshape(-1, adding * len(honest))
    with_noise = np.concatenate([(views[..., honest] @ root).reshape(matrix.shape), besides], axis=1)
    left, size, _ = np.linalg.svd(with_noise, full_matrices=False)
    kept = size > _TINY * max(size.max(initial=0), 1)
    seen = ((left[:, kept].T @ matrix) / size[kept, None]).reshape(-1, adding, len(honest))
    found = np.zeros((nodes, adding, adding))
    found[honest] = np.einsum("krn,ksn->nrs", seen, seen)
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


def _views(
    weights: np.ndarray, rounds: int, lookers: Collection[int], adding: int, zip_dl: float
) -> tuple[np.ndarray, np.ndarray]:
    """([views, adding, n] what is seen, of contributions; [views, noises] of the noise on messages by themselves)."""
    nodes, column = weights.shape[1], 0
    linked = [(each != 0) | (each.T != 0) for each in weights]
    for each in linked:
        np.fill_diagonal(each, False)
    unknown = [node for node in range(nodes) if node not in lookers]  # whose draws are
    columns = sum(int(linked[r % len(linked)][unknown].sum()) for r in range(rounds)) if zip_dl else 0
    drifted = np.zeros((nodes, columns))  # noise on messages, as models have it by now
    seen, besides = [], []
    for r, model in enumerate(made_of(weights, rounds, adding)):
        weight, near = weights[r % len(weights)], linked[r % len(weights)]
        fresh = np.zeros((nodes, nodes, columns))  # of the message from i to j
        if zip_dl:
            for i in unknown:
                to = np.flatnonzero(near[i])
                many = len(to)
                fresh[i, to, column : column + many] = zip_dl * zero_sum(weight[to, i])
                column += many
        for looker in sorted(lookers):
            seen.append(model[looker])
            besides.append(drifted[looker])
            for other in np.flatnonzero(near[looker]):  # a neighbour is seen in the rounds in which it is one
                seen.append(model[other])
                besides.append(drifted[other] + fresh[other, looker])
        drifted = weight @ drifted + np.einsum("ij,jic->ic", weight, fresh)
    empty = np.zeros((0, adding, nodes)), np.zeros((0, columns))
    return (np.stack(seen), np.stack(besides)) if seen else empty


def zero_sum(weight: np.ndarray) -> np.ndarray:
    """[K, K] what makes of K independent draws the nearest ones of which sum_k weight_k draw_k is 0."""
    square = float(weight @ weight)
    return np.eye(len(weight)) - (np.outer(weight, weight) / square if square else 0)


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
