"""Seeds of a property that is tried at random: a quarter of them in the fast tests, and all in `make test-all`."""

from __future__ import annotations

from typing import Any

import pytest


def seeds(count: int) -> list[Any]:
    """The values of a parameter, 0 to `count` - 1."""
    fast = -(-count // 4)
    return [*range(fast), *(pytest.param(seed, marks=pytest.mark.more) for seed in range(fast, count))]
