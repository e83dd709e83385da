"""Strictness for every test: no dtype and no rank is promoted in silence."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # so that what is spread over devices is tested as such


@pytest.fixture
def optax_promotes() -> Iterator[None]:
    """Standard dtype promotion, for a test that runs an optimizer of the Adam family.

    optax 0.2 computes its bias correction as `1 - decay**count`, a Python float to the power of an int32 count, which
    strict promotion refuses (13 of its optimizers, not sgd). Flax needs no exception. Ask for it by name, test by test.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield
