"""Open files of nodes: sockets count as such, and a process may have only so many (ulimit -n).

What a process needs is counted from real ones: of 8 nodes, `p2pfl run` had 38, a node of a ring 30, its membership 39.
"""

from __future__ import annotations

import resource

from p2pfl.errors import ConfigError

_BASE = 64
"""Files of any process: what Python, jax and ZeroMQ have open, records, and some to spare."""

_PER_PEER = 4
"""Of a node or its membership, for each other node: two connections from it, one to it, and the socket of that."""

_PER_NODE = 6
"""Of `p2pfl run`, for each node: two ports that are held, a pipe and a handle of its process, and of the next one."""

_MOST = 1 << 16
"""Files that are asked for at most: beyond, a limit is no limit."""


def raised() -> int:
    """Raise the limit of this process, and of those it will start, as far as it may; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def fits(nodes: int, limit: int, here: bool) -> None:
    """Raises ConfigError where so many nodes need more open files than the limit; `here`: all on this machine."""
    needs = {"each node": _BASE + _PER_PEER * (nodes - 1)}
    if here:
        needs = {"p2pfl run": _BASE + _PER_NODE * nodes, **needs}
    for who, needed in needs.items():
        if needed > limit:
            raise ConfigError(
                f"topology.nodes={nodes}: {who} needs {needed} open files and sockets, and {limit} are allowed here. "
                f"Raise the hard limit to {max(needs.values())} (ulimit -n; LimitNOFILE= of a service; --ulimit "
                "nofile= of a container)" + (', or use fewer nodes, or driver.kind = "simulate"' if here else "")
            )


def room(limit: int) -> tuple[int, int]:
    """Return how many others a node can have with that limit, and how many nodes `p2pfl run` here.

    >>> room(1024)
    (240, 160)
    """
    others = max((limit - _BASE) // _PER_PEER, 0)
    return others, min(others + 1, max((limit - _BASE) // _PER_NODE, 0))
