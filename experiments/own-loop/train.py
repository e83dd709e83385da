"""A training script as people have them: pipeline, model, optax and a schedule. What makes it a federation is marked.

Each of four sites has three or four of the ten digits.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import p2pfl

KINDS = ([0, 1, 2, 3], [3, 4, 5], [5, 6, 7], [7, 8, 9])
STEPS, EVERY = 2000, 10


def rows(site: int) -> tuple[Any, Any, Any, Any]:
    """This site's training rows, and test rows of all kinds."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    mine = np.isin(y[360:], KINDS[site])
    return x[360:][mine], y[360:][mine], x[:360], y[:360]


def first() -> Any:
    a, b = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"kernel": jax.random.normal(a, (64, 32)) / 8, "bias": jnp.zeros(32)},
        "output": {"kernel": jax.random.normal(b, (32, 10)) / 6, "bias": jnp.zeros(10)},
    }


def logits(params: Any, x: Any) -> Any:
    inside = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return inside @ params["output"]["kernel"] + params["output"]["bias"][None]


def batches(x: Any, y: Any, seed: int) -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        chosen = rng.integers(0, len(y), 32)
        yield x[chosen], y[chosen]


optimizer = optax.sgd(optax.cosine_decay_schedule(0.2, STEPS), momentum=0.9)


@jax.jit
def train_step(params: Any, opt_state: Any, batch: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    def loss(params: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=int, choices=range(4))
    parser.add_argument("--alone", action="store_true", help="train on this site's rows, with nobody else")
    given = parser.parse_args()
    x, y, x_test, y_test = rows(given.site)
    params = first()
    opt_state = optimizer.init(params)
    joined = contextlib.nullcontext() if given.alone else p2pfl.join(f"site-{given.site}.toml", params)  # 1
    with joined as peers:
        for step, batch in enumerate(batches(x, y, given.site)):
            params, opt_state, loss = train_step(params, opt_state, batch)
            if peers and step % EVERY == EVERY - 1:  # 2
                params = peers.mix(params, loss=float(loss))  # 3
    score = float((logits(params, x_test).argmax(axis=1) == y_test).mean())
    print(f"site {given.site}: accuracy on all ten digits {100 * score:.1f} %")


if __name__ == "__main__":
    main()
