"""Averaging the low frequencies of kernels instead of the kernels (PRR-FL). A combinator."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.algorithms.mixing import over
from p2pfl.check import at_least, positive
from p2pfl.errors import ConfigError
from p2pfl.methods.weighting import beside, exchanges
from p2pfl.tree import is_model, named_leaves
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Inbox,
    Key,
    Learner,
    Metrics,
    Neighborhood,
    Payload,
    State,
    Steps,
    Tree,
)

STEPS = 64
"""Sizes that a message may have, one after another, while the square grows."""


def fourier(start: float, rounds: int, end: float = 0.95) -> Callable[[Algorithm], Algorithm]:
    """Progressive Fourier aggregation: of kernels, neighbours average the amplitudes of low frequencies.

        x_i+ = F^-1((A_i + 1_L sum_j w_ij (A_j - A_i)) e^(i phi_i)),      F(x_i) = A_i e^(i phi_i)

    1_L is the square |f| < L / 2 of frequencies in -1/2 .. 1/2 of both axes, all of them for L = 1; L grows evenly from
    `start` to `end` over the first `rounds` rounds. The phase and the other amplitudes stay the node's own. A leaf with
    two axes or more is such a kernel: seen as a matrix, that of a convolution [h, w, in, out] as [h * out, w * in].
    Other leaves, batch statistics too, are mixed as ever. Source: Chen, Zhu, Yang, Yuan, "Personalized
    retrogress-resilient framework for real-world medical federated learning" (PRR-FL, 2021); its other half, by which
    the model that answers is never mixed, is the objective `deputy`.

    Of a kernel nothing but these amplitudes travels, once each, since that of -f is that of f: about L^2 / 2 of its
    bytes, which grow with the rounds in STEPS steps at the most. Amplitudes are averaged, kernels are not: the mean of
    models is not kept, and kernels of equal amplitudes and unequal phases stay apart for good. The number of the round
    travels along: who joins, or has been away, takes over the highest it hears of. Of an exchange that is booked late,
    L is that of the round in which it was opened.

    Args:
        start: side L of the square at first, 0 to `end`, as a share.
        rounds: rounds in which L grows, > 0.
        end: L from then on, > 0 and at most 1.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: not 0 <= start <= end <= 1, end = 0, rounds <= 0; when applied, an algorithm without exchanges, or
            whose corrections must have the sum zero.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.fourier(0.2, rounds=50)).keeps_mean
        'nothing'
    """
    at_least(0, start=start)
    positive(rounds=rounds, end=end)
    if not start <= end <= 1:
        raise ConfigError(f"end={end!r}: must be >= start={start!r} and <= 1, the side of the square as a share")

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("fourier", inner)
        if inner.state_class != "none":
            raise ConfigError(
                f"wrap fourier: {inner.name} needs exchanges that keep the mean, and of amplitudes they keep none; use "
                "an algorithm such as dsgd"
            )
        lifted, most = beside(inner, lambda params: jnp.zeros((), jnp.int32)), rounds + inner.lateness

        def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            state, metrics = lifted.local(state, batches, key, steps)
            return state._replace(own=jnp.minimum(state.own + 1, jnp.int32(most))), metrics

        def told(leaf: Array) -> Array:
            return leaf if leaf.ndim < 2 else amplitudes(leaf, end)

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = lifted.send(state, neighborhood)
            return state, {"inner": _kernels(told, payload), "told": state.own}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            heard = jnp.clip(jnp.where(inbox.arrived, inbox.received["told"], 0), 0, most)
            count = jnp.maximum(state.own, heard.max(initial=0))
            opened = jnp.clip(count - inbox.age.astype(jnp.int32), 0, rounds)  # what came has the square of that round
            reach = start + (end - start) * opened.astype(jnp.float32) / rounds
            slots = inbox.arrived.shape[0]

            def mine(kernel: Array, sent: Array) -> Array:
                return sent if kernel.ndim < 2 else jnp.broadcast_to(kernel, (slots, *kernel.shape))

            def theirs(kernel: Array, sent: Array, received: Array) -> Array:
                if kernel.ndim < 2:
                    return received
                # what did not arrive may hold anything
                apart = jnp.where(over(inbox.arrived, sent), received - sent, 0)
                return jax.vmap(lambda apart, reach: kernel + moved(kernel, apart, reach, end))(apart, reach)

            own = lifted.send(state, neighborhood)[1]
            sent, received = inbox.sent["inner"], inbox.received["inner"]
            whole = inbox._replace(sent=_kernels(mine, own, sent), received=_kernels(theirs, own, sent, received))
            return lifted.mix(state, whole, neighborhood)._replace(own=count)

        return lifted._replace(
            local=local, send=send, mix=mix, linear=False, keeps_mean="nothing", any_steps=False,
            travels=f"{inner.travels}, of kernels low amplitudes, with the number of the round",
            travelling=_growing(inner.learner, start, end, rounds),
        )  # fmt: skip

    return wrap


def _growing(
    learner: Learner | None, start: float, end: float, rounds: int
) -> Callable[[str, tuple[int, ...], int], tuple[int, ...]] | None:
    """`Algorithm.travelling`: of kernels the square of a round, or of the next of STEPS."""
    if learner is None or start == end:
        return None
    model = jax.eval_shape(learner.init, jax.random.key(0))["trained"]
    matrices = {f"trained/{path}": _matrix_shape(leaf.shape) for path, leaf in named_leaves(model).items()}

    def travelling(path: str, shape: tuple[int, ...], round: int) -> tuple[int, ...]:
        matrix = next((matrices[name] for name in matrices if path == name or path.endswith(f"/{name}")), ())
        if len(matrix) < 2:
            return shape
        grown = math.ceil(STEPS * min(round, rounds) / rounds) / STEPS
        rows, columns = _square(matrix, min(start + (end - start) * grown, end))
        return len(rows), columns

    return travelling


def _kernels(change: Callable[..., Array], payload: Payload, *more: Payload) -> Payload:
    """The last of the payloads, with what `change` makes of the leaves of its models' "trained"."""

    def model(*parts: Tree) -> Tree:
        if not is_model(parts[-1]):
            return parts[-1]
        return {**parts[-1], "trained": jax.tree.map(change, *(part["trained"] for part in parts))}

    return jax.tree.map(model, payload, *more, is_leaf=is_model)


def amplitudes(kernel: Array, end: float) -> Array:
    """The amplitudes of a kernel at the frequencies of the square of relative side `end`, those of f and -f once."""
    rows, columns = _square(_matrix(kernel).shape, end)
    return jnp.abs(jnp.fft.rfft2(_exact(_matrix(kernel))))[rows][:, :columns].astype(kernel.dtype)


def moved(kernel: Array, apart: Array, reach: Array, end: float) -> Array:
    """How a kernel changes as its amplitudes do, by what lies within the square of relative side `reach` in 0..1.

    apart: by how much, of the frequencies of `amplitudes`; computed in float32 at least.
    """
    matrix = _exact(_matrix(kernel))
    spectrum = jnp.fft.rfft2(matrix)
    rows, columns = _square(matrix.shape, end)
    high, wide = (jnp.asarray(abs(each(size)), reach.dtype)
                  for each, size in zip((np.fft.fftfreq, np.fft.rfftfreq), matrix.shape, strict=True))  # fmt: skip
    inside = (high[rows][:, None] < reach / 2) & (wide[None, :columns] < reach / 2) | (reach >= 1)
    low = spectrum[rows][:, :columns]
    amplitude = jnp.abs(low)
    phase = jnp.where(amplitude > 0, low / jnp.where(amplitude > 0, amplitude, 1).astype(low.dtype), 1)
    changed = jnp.where(inside, apart.astype(matrix.dtype), 0).astype(low.dtype) * phase
    whole = jnp.zeros_like(spectrum).at[rows[:, None], np.arange(columns)].set(changed)
    return _kernel(jnp.fft.irfft2(whole, s=matrix.shape), kernel.shape).astype(kernel.dtype)


def _square(shape: tuple[int, ...], end: float) -> tuple[np.ndarray, int]:
    """The rows, and how many columns, of a spectrum of real numbers with |f| < end / 2; all of them for end = 1.

    Rows are in the order of |f|, so that those of a smaller square come first.
    """
    high, columns = np.abs(np.fft.fftfreq(shape[0])), np.fft.rfftfreq(shape[1])
    rows = np.argsort(high, kind="stable")
    if end >= 1:
        return rows, len(columns)
    return rows[high[rows] < end / 2], int((columns < end / 2).sum())


def _exact(matrix: Array) -> Array:
    return matrix.astype(matrix.dtype if jnp.finfo(matrix.dtype).bits >= 32 else jnp.float32)


def _matrix(kernel: Array) -> Array:
    """[h, w, in, out] as [h * out, w * in], any other kernel as [..., out]."""
    shape = _matrix_shape(kernel.shape)
    return (kernel.transpose(0, 3, 1, 2) if kernel.ndim == 4 else kernel).reshape(shape)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the matrix that a kernel of this shape is seen as; of a leaf that is no kernel, its own."""
    if len(shape) == 4:
        return shape[0] * shape[3], shape[1] * shape[2]
    return shape if len(shape) < 2 else (math.prod(shape[:-1]), shape[-1])


def _kernel(matrix: Array, shape: tuple[int, ...]) -> Array:
    """The kernel of which `_matrix` has made this."""
    if len(shape) != 4:
        return matrix.reshape(shape)
    height, width, inputs, outputs = shape
    return matrix.reshape(height, outputs, width, inputs).transpose(0, 2, 3, 1)
