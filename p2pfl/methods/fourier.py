"""Averaging the low frequencies of kernels instead of the kernels (PRR-FL). A combinator."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.algorithms.mixing import over
from p2pfl.check import at_least, positive
from p2pfl.errors import ConfigError
from p2pfl.methods.weighting import beside, exchanges
from p2pfl.tree import is_model
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Inbox,
    Key,
    Metrics,
    Neighborhood,
    Payload,
    State,
    Steps,
    Tree,
)


def fourier(start: float, rounds: int, end: float = 0.95) -> Callable[[Algorithm], Algorithm]:
    """Progressive Fourier aggregation: of kernels, neighbours average the amplitudes of low frequencies.

        x_i+ = F^-1((A_i + 1_L sum_j w_ij (A_j - A_i)) e^(i phi_i)),      F(x_i) = A_i e^(i phi_i)

    1_L is the square |f| < L / 2 of frequencies in -1/2 .. 1/2 of both axes, all of them for L = 1; L grows evenly from
    `start` to `end` over the first `rounds` rounds. The phase and the other amplitudes stay the node's own. A leaf with
    two axes or more is such a kernel: seen as a matrix, that of a convolution [h, w, in, out] as [h * out, w * in].
    Other leaves, batch statistics too, are mixed as ever. Source: Chen, Yang, Zhu, Li, Yuan, "Personalized
    retrogress-resilient federated learning toward imbalanced medical data" (PRR-FL, 2022); without its deputy model.

    Amplitudes are averaged, kernels are not: the mean of models is not kept, and kernels of equal amplitudes and
    unequal phases stay apart for good. The whole model travels, at any L, with the round's number: who joins, or has
    been away, takes over the highest it hears of.

    Args:
        start: side L of the square at first, 0 to `end`, as a share.
        rounds: rounds in which L grows, > 0.
        end: L from then on, at most 1.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: not 0 <= start <= end <= 1, rounds <= 0; when applied, an algorithm without exchanges, or whose
            corrections must have the sum zero.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.fourier(0.2, rounds=50)).keeps_mean
        'nothing'
    """
    at_least(0, start=start)
    positive(rounds=rounds)
    if not start <= end <= 1:
        raise ConfigError(f"end={end!r}: must be >= start={start!r} and <= 1, the side of the square as a share")

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("fourier", inner)
        if inner.state_class != "none":
            raise ConfigError(
                f"wrap fourier: {inner.name} needs exchanges that keep the mean, and of amplitudes they keep none; use "
                "an algorithm such as dsgd"
            )
        lifted = beside(inner, lambda params: jnp.zeros((), jnp.int32))

        def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            state, metrics = lifted.local(state, batches, key, steps)
            return state._replace(own=jnp.minimum(state.own + 1, jnp.int32(rounds))), metrics

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = lifted.send(state, neighborhood)
            return state, {"inner": payload, "told": state.own}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            heard = jnp.clip(jnp.where(inbox.arrived, inbox.received["told"], 0), 0, rounds)
            count = jnp.maximum(state.own, heard.max(initial=0))
            reach = start + (end - start) * count.astype(jnp.float32) / rounds
            sent, received = inbox.sent["inner"], inbox.received["inner"]

            def model(sent: Tree, received: Tree) -> Tree:
                if not is_model(sent):
                    return received
                return {**received, "trained": jax.tree.map(leaf, sent["trained"], received["trained"])}

            def leaf(sent: Array, received: Array) -> Array:
                if sent.ndim < 3:  # the first axis is that of the slots
                    return received
                here = over(inbox.arrived, received)  # what did not arrive may hold anything
                received = jnp.where(here, received, sent)
                return jax.vmap(lambda mine, theirs: low(mine, theirs, reach))(sent, received)

            received = jax.tree.map(model, sent, received, is_leaf=is_model)
            inbox = inbox._replace(sent=sent, received=received)
            return lifted.mix(state, inbox, neighborhood)._replace(own=count)

        travels = f"{inner.travels}, with the number of the round"
        return lifted._replace(
            local=local, send=send, mix=mix, linear=False, keeps_mean="nothing", travels=travels, any_steps=False
        )

    return wrap


def low(mine: Array, theirs: Array, reach: Array) -> Array:
    """`mine` with the amplitudes of `theirs` at the frequencies of the square of relative side `reach` in 0..1.

    mine, theirs: kernels of two axes or more, of one shape; computed in float32 at least.
    """
    dtype = mine.dtype if jnp.finfo(mine.dtype).bits >= 32 else jnp.dtype(jnp.float32)
    ours, other = (jnp.fft.fft2(_matrix(kernel.astype(dtype))) for kernel in (mine, theirs))
    rows, columns = (jnp.asarray(abs(np.fft.fftfreq(size)), reach.dtype) for size in ours.shape)
    inside = (rows[:, None] < reach / 2) & (columns[None, :] < reach / 2) | (reach >= 1)
    amplitude, wanted = jnp.abs(ours), jnp.abs(other)
    phase = jnp.where(amplitude > 0, ours / jnp.where(amplitude > 0, amplitude, 1).astype(ours.dtype), 1)
    changed = jnp.where(inside, wanted - amplitude, 0)
    moved = jnp.fft.ifft2(changed.astype(ours.dtype) * phase).real
    return mine + _kernel(moved, mine.shape).astype(mine.dtype)


def _matrix(kernel: Array) -> Array:
    """[h, w, in, out] as [h * out, w * in], any other kernel as [..., out]."""
    if kernel.ndim != 4:
        return kernel.reshape(-1, kernel.shape[-1])
    height, width, inputs, outputs = kernel.shape
    return kernel.transpose(0, 3, 1, 2).reshape(height * outputs, width * inputs)


def _kernel(matrix: Array, shape: tuple[int, ...]) -> Array:
    """The kernel of which `_matrix` has made this."""
    if len(shape) != 4:
        return matrix.reshape(shape)
    height, width, inputs, outputs = shape
    return matrix.reshape(height, outputs, width, inputs).transpose(0, 2, 3, 1)
