"""Strictness for every test: no dtype and no rank is promoted in silence; how XLA compiles; the lanes of tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Most of the time of these tests was XLA's. It compiles without its optimiser, but where a test asks for it by name
# (`optimised`), and each program once for all workers, sweeps and node processes: they inherit both, so that bits are
# compared of code that was compiled alike. (Not all of it in workers of sweeps, which put XLA_FLAGS of their own in the
# place of those below.) Set before jax is imported, which reads them then.
os.environ |= {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # so that what is spread over devices is tested as such

LANES = ("more", "faults", "soak", "fuzz")
"""The marks of tests that `make test` leaves out; a test has one of them, or none."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rewrite-transcripts`: write the transcripts that tests compare with anew."""
    parser.addoption("--rewrite-transcripts", action="store_true", help="write tests/transcripts anew")


def pytest_configure(config: pytest.Config) -> None:
    """By day XLA emits fusions the older way, which takes two thirds of the time; node processes inherit it.

    jaxlib 0.10.2 knows this flag; one that does not ends with "Unknown flag" at once: then take these lines out.
    """
    if not by_night(config.option.markexpr or ""):
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


def by_night(chosen: str) -> bool:
    """Whether tests are chosen for what `make soak` runs: "soak", "soak and live", but not "not soak"."""
    return re.search(r"(?<!not )\bsoak\b", chosen) is not None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file that has nothing of a lane: most of the time of a lane of ten tests is that of all imports."""
    lane = re.match(r"(?:more and )?(live|faults)\b", config.option.markexpr or "")
    if lane is None or collection_path.suffix != ".py":
        return None
    return True if f"mark.{lane[1]}" not in collection_path.read_text("utf-8") else None


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test of two lanes, and one with nothing beside it in the lane that has no time for it."""
    for item in items:
        lanes = {mark.name for mark in item.iter_markers()} & {*LANES}
        if len(lanes) > 1:
            raise pytest.UsageError(f"{item.nodeid} is marked {' and '.join(sorted(lanes))}: a test has one lane")
        if not lanes and item.get_closest_marker("live"):
            raise pytest.UsageError(f"{item.nodeid} is marked live and has no lane; give it one of {', '.join(LANES)}")


@contextmanager
def _optimising() -> Iterator[None]:
    def switch(on: bool) -> None:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if on else "1"
        jax.config.update("jax_disable_most_optimizations", not on)
        jax.clear_caches()  # which do not tell the two ways of compiling apart

    switch(True)
    try:
        yield
    finally:
        switch(False)


@pytest.fixture
def optimised() -> Iterator[None]:
    """XLA with its optimiser, as users run it (by night; by day but for how fusions are emitted): for a claim about
    what that does to sums and roundings."""
    with _optimising():
        yield


@pytest.fixture(scope="module")
def optimised_module() -> Iterator[None]:
    """The same for all tests of a module."""
    with _optimising():
        yield


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
