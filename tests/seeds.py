"""Seeds of tests that draw: an eighth of them in the fast lane, as many in `make test-all`, the others at night."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(count: int, fast: int = 0) -> list[Any]:
    """The values of a parameter, 0 to `count` - 1: the first `fast`, or an eighth, as they are, as many are more."""
    fast = fast or -(-count // 8)
    later = {seed: pytest.mark.more if seed < 2 * fast else pytest.mark.soak for seed in range(fast, count)}
    return [*range(fast), *(pytest.param(seed, marks=mark) for seed, mark in later.items())]


def batches(seeds: range, size: int, fast: int = 0) -> list[Any]:
    """Parts of a range of seeds, `size` to a test; the first `fast` of these as they are, the others marked as soak."""
    parts = [seeds[at : at + size] for at in range(0, len(seeds), size)]
    return [
        pytest.param(part, marks=[] if number < fast else pytest.mark.soak, id=f"{part[0]}-{part[-1]}")
        for number, part in enumerate(parts)
    ]
