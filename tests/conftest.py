"""Strictness for every test: no dtype and no rank is promoted in silence."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # so that what is spread over devices is tested as such


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite-transcripts`: write the transcripts that tests compare with anew."""
    parser.addoption("--rewrite-transcripts", action="store_true", help="write tests/transcripts anew")


@pytest.fixture
def optax_promotes() -> Iterator[None]:
    """Standard dtype promotion, for a test that runs an optimizer of the Adam family.

    optax 0.2 computes its bias correction as `1 - decay**count`, a Python float to the power of an int32 count, which
    strict promotion refuses (13 of its optimizers, not sgd). Flax needs no exception. Ask for it by name, test by test.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def precision_of_its_own() -> Iterator[None]:
    """What an experiment in double precision switches on ends with its test."""
    before = jax.config.jax_enable_x64
    yield
    if jax.config.jax_enable_x64 != before:
        jax.config.update("jax_enable_x64", before)
