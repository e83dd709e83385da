"""Memory of nodes that share a machine: what one will need, what there is, and whether the kernel has killed for it.

The factors are fitted to the peaks of real nodes (`memory_peak`, tests/test_live_memory.py): a plan that is
right to about a quarter, made before anything starts, in place of processes that are killed in the first round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from p2pfl.errors import ConfigError
from p2pfl.node.free_memory import free_memory, kills

SHARED = 280 << 20
"""Bytes that all nodes share: what the process that forks them has imported, and that process."""

PRIVATE = 140 << 20
"""Bytes that a node has to itself with a model of no size, its membership process included."""

STATES, PAYLOADS, PER_NEIGHBOR = 2, 2, 4
"""Copies of the algorithm's state (before and after), of what is sent (as it is sent, and of gradients), and of what a
neighbour sends: as it came in, both sides stacked for mixing, and the next one that is on its way."""

SCATTERED, MAPPED = 2.2, 32 << 20
"""So many times as much for leaves of less than so many bytes: what is freed of them stays with the process."""

BATCHES = 2
"""Copies of a round's batches: as they are gathered, and as the compiled program has them."""

_ROOT = Path("/")


class Needs(NamedTuple):
    """The sizes of a node, bytes."""

    leaves: Sequence[int]  # of the model
    state: int
    payload: int  # all that is sent in a round
    received: int  # from one neighbour
    neighbors: int
    batches: int  # of a round
    data: int  # all that is loaded, the node's own rows as it keeps them included


def each(needs: Needs) -> int:
    """Return the bytes that a node needs at its peak, besides what all share."""
    copies = STATES * needs.state + PAYLOADS * needs.payload + PER_NEIGHBOR * needs.neighbors * needs.received
    small = sum(leaf for leaf in needs.leaves if leaf < MAPPED) / max(sum(needs.leaves), 1)
    return PRIVATE + int(copies * (1 + (SCATTERED - 1) * small)) + BATCHES * needs.batches + needs.data


def fits(needs: Needs, nodes: int, free: int | None) -> None:
    """Raises ConfigError where so many nodes do not fit into the free bytes, saying what would; None: nobody knows."""
    one = each(needs)
    wanted = SHARED + nodes * one
    if free is None or wanted <= free:
        return
    fitting = max((free - SHARED) // one, 0)
    raise ConfigError(
        f"topology.nodes={nodes}: as processes on this machine they need about {_gb(wanted)}, {_gb(one)} each, and "
        f"{_gb(free)} are free; {fitting} of them fit. Use fewer nodes, a smaller model, or driver.kind = "
        '"simulate", which holds all nodes in one process'
    )


class Watcher:
    """Knows what the kernel had killed for memory when it was made."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._before = kills(root)

    def killed(self) -> str:
        """Return why a process was killed by SIGKILL, if it can have been for memory; "" where nothing hints at it."""
        now, left = kills(self._root), free_memory(self._root)
        figures = "" if left is None else f"; {_gb(left)} are free now"
        if now is None or self._before is None:
            return f"out of memory?{figures}"
        if now > self._before:
            return f"out of memory? The kernel has killed {now - self._before} for it since the run began{figures}"
        return ""


def _gb(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
