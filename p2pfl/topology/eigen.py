"""Eigenvalues and norms of mixing matrices: dense for small ones, by Lanczos or Arnoldi iterations for large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
from scipy.sparse import linalg

DENSE = 1000
"""Up to so many nodes matrices are dense: exact, and under a second."""
RESTARTS = 60
"""Of an iteration, before a factorisation is tried instead."""


def ends(w: sp.csr_array) -> tuple[float, float]:
    """The second largest and the smallest eigenvalue of a symmetric W [n, n] whose rows sum to one; n >= 2."""
    n = w.shape[0]
    if n <= DENSE:
        values = np.linalg.eigvalsh(w.toarray())
        return float(values[-2]), float(values[0])
    off_mean = linalg.LinearOperator((n, n), matvec=lambda x: w @ x - x.mean(), dtype=float)
    top = _symmetric(off_mean, "LA")
    # An iteration that does not converge means eigenvalues crowded at the end, so a graph that falls apart by few cuts:
    # its factors are sparse, and what was slow becomes fast.
    if top is None:
        top = float(np.sort(linalg.eigsh(w, k=2, sigma=1.0 + 1e-6, return_eigenvectors=False, v0=_start(n)))[0])
    return top, least(w)


def least(w: sp.csr_array) -> float:
    """The smallest eigenvalue of a symmetric W [n, n]."""
    n = w.shape[0]
    if n <= DENSE:
        return float(np.linalg.eigvalsh(w.toarray())[0])
    found = _symmetric(w, "SA")
    if found is None:
        bound = float((w.diagonal() - (abs(w).sum(axis=1) - abs(w.diagonal()))).min())  # Gershgorin
        found = float(linalg.eigsh(w, k=1, sigma=bound - 1e-6, return_eigenvectors=False, v0=_start(n))[0])
    return found


def norm(steps: Sequence[sp.csr_array]) -> float:
    """||W_T ... W_1 - J||_2 of doubly stochastic W_t [n, n]: the largest singular value."""
    n = steps[0].shape[0]
    if n <= DENSE:
        return float(np.linalg.norm(product(steps) - 1.0 / n, 2))

    def gram(x: np.ndarray) -> np.ndarray:
        # rows and columns of P sum to one, so that P - J is P on vectors without mean
        y = _applied(steps, x - x.mean())
        for w in reversed(steps):
            y = w.T @ y
        return y - y.mean()

    found = linalg.eigsh(
        linalg.LinearOperator((n, n), matvec=gram, dtype=float), k=1, which="LA", return_eigenvectors=False,
        v0=_start(n), ncv=40, tol=1e-10,
    )  # fmt: skip
    return float(np.sqrt(max(found[0], 0.0)))


def second(steps: Sequence[sp.csr_array]) -> float:
    """The second largest |eigenvalue| of W_T ... W_1, row- or column-stochastic [n, n]."""
    n = steps[0].shape[0]
    if n <= DENSE:
        values = np.sort(abs(np.linalg.eigvals(product(steps))))
    else:
        operator = linalg.LinearOperator((n, n), matvec=lambda x: _applied(steps, x), dtype=float)
        values = np.sort(
            abs(linalg.eigs(operator, k=2, which="LM", return_eigenvectors=False, v0=_start(n), tol=1e-10))
        )
    return float(values[-2]) if n > 1 else 0.0


def smallest(w: sp.csr_array) -> float:
    """The least real part among the eigenvalues of W [n, n]."""
    n = w.shape[0]
    if n <= DENSE:
        return float(np.linalg.eigvals(w.toarray()).real.min())
    return float(linalg.eigs(w, k=1, which="SR", return_eigenvectors=False, v0=_start(n), tol=1e-8).real.min())


def product(steps: Sequence[sp.csr_array]) -> np.ndarray:
    """W_T ... W_1, dense [n, n]."""
    return _applied(steps, np.eye(steps[0].shape[0]))


def averages(steps: Sequence[sp.csr_array]) -> bool:
    """After the T steps all nodes hold the same, to rounding: each row of the product, over its sum, is like the first.

    Rows sum to one, or else (column-stochastic) it is push-sum's quotients that agree.
    """
    n = steps[0].shape[0]
    x = np.eye(n) if n <= DENSE else np.random.default_rng(0).uniform(0, 1, (n, 3))
    p = _applied(steps, x) / _applied(steps, np.ones((n, 1)))
    return bool(abs(p - p[:1]).max() < 1e-12)


def _applied(steps: Sequence[sp.csr_array], x: np.ndarray) -> np.ndarray:
    for w in steps:
        x = w @ x
    return x


def _start(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n)


def _symmetric(operator: Any, which: str) -> float | None:
    n = operator.shape[0]
    try:
        found = linalg.eigsh(
            operator, k=1, which=which, return_eigenvectors=False, v0=_start(n), ncv=40, maxiter=RESTARTS, tol=1e-12
        )
    except linalg.ArpackNoConvergence:
        return None
    return float(found[0])
