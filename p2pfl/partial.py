"""Sharing parts of leaves: elements that both ends hold, or low frequencies. Combinators.

    masked      an element is mixed by the exchanges of two nodes that both hold it, and by no other
    fourier     what is averaged of a kernel is the amplitude of its low frequencies (PRR-FL)

Whole leaves are shared or kept by p2pfl.share.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.check import at_least, positive
from p2pfl.errors import ConfigError
from p2pfl.mixing import over
from p2pfl.tree import is_model, named_leaves
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Inbox,
    Key,
    Metrics,
    Neighborhood,
    Params,
    Payload,
    State,
    Steps,
    Tree,
)
from p2pfl.weigh import beside, exchanges

Mask = Callable[[Tree, Params], Params]
"""(what a node tells of itself, the shapes of a model) -> {"trained", "carried"} of bools that broadcast to leaves."""


def masked(name: str, what: str, tell: Callable[[Params], Tree], mask_of: Mask) -> Callable[[Algorithm], Algorithm]:
    """Elements of leaves have holders: an exchange's difference counts where both ends hold the element.

    `tell(model)` -> what a node tells its neighbours of itself, a number or a few, in words `what`; `mask_of` makes of
    it which elements the node holds. Models are masked, and whatever else in a payload has the structure of
    model["trained"] (a direction, a momentum). Both ends mask alike, so that the mean of every element is kept, over
    its holders and over all; what a node does not hold never changes by mixing. With the graph's weights, the holders
    of an element agree on it only where they are joined by edges among themselves. `name`: for the text of a refusal.
    Raises ConfigError for algorithms that send one way; one that sends nothing stays as it is.
    """

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.link == "none":
            return inner
        exchanges(name, inner)

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            return state, {"inner": payload, "told": tell(inner.params(state))}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            like = inner.params(state)

            def both(told: Tree, heard: Tree) -> Params:
                return jax.tree.map(jnp.logical_and, mask_of(told, like), mask_of(heard, like))

            masks = jax.vmap(both)(inbox.sent["told"], inbox.received["told"])

            def is_trained(part: Tree) -> bool:
                return list(named_leaves(part)) == list(named_leaves(like["trained"]))

            def leaf(mask: Array, sent: Array, received: Array) -> Array:
                return jnp.where(jnp.broadcast_to(mask, sent.shape), received, sent)

            def part(sent: Tree, received: Tree) -> Tree:
                if is_model(sent):
                    pairs = {name: (sent[name], received[name]) for name in ("trained", "carried")}
                    return {
                        **received,
                        **{name: jax.tree.map(leaf, masks[name], *pair) for name, pair in pairs.items()},
                    }
                return jax.tree.map(leaf, masks["trained"], sent, received) if is_trained(sent) else received

            sent, received = inbox.sent["inner"], inbox.received["inner"]
            received = jax.tree.map(part, sent, received, is_leaf=lambda node: is_model(node) or is_trained(node))
            return inner.mix(state, inbox._replace(sent=sent, received=received), neighborhood)

        return inner._replace(send=send, mix=mix, linear=False, travels=f"{inner.travels}, with {what}")

    return wrap


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
    been away, takes over the highest it hears of. Raises ConfigError unless 0 <= start <= end <= 1 and rounds > 0, for
    algorithms that make no exchanges, and for those whose corrections must have the sum zero.
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
        return lifted._replace(local=local, send=send, mix=mix, linear=False, keeps_mean="nothing", travels=travels)

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
