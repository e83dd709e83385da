"""Seeds of tests that draw: a few in the fast lane, the rest of them with `-m soak`."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(fast: int, of: int) -> list[Any]:
    """The first `fast` seeds of `of` as they are, the others marked as soak."""
    return [*range(fast), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(fast, of))]


def batches(seeds: range, size: int, fast: int = 0) -> list[Any]:
    """Parts of a range of seeds, `size` to a test; the first `fast` of these as they are, the others marked as soak."""
    parts = [seeds[at : at + size] for at in range(0, len(seeds), size)]
    return [
        pytest.param(part, marks=[] if number < fast else pytest.mark.soak, id=f"{part[0]}-{part[-1]}")
        for number, part in enumerate(parts)
    ]
