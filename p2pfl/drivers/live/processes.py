"""The processes of the nodes of a run on this machine, by pids.json: {"NODE": [pid of each life, ...]}, in their order.

A number may be another process by now: before a signal is sent, the command line must be that of the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path


def read(file: Path) -> dict[int, list[int]]:
    """Return the processes of each node."""
    return {int(node): [int(pid) for pid in pids] for node, pids in json.loads(file.read_text("utf-8")).items()}


def write(file: Path, processes: Mapping[int, Sequence[int]]) -> None:
    """Write them down, whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({node: [*pids] for node, pids in processes.items()}), "utf-8")
    partial.rename(file)


def runs(pid: int, node: int) -> bool:
    """Return whether a process is there and is this node of a run: `p2pfl node .../NODE/node.toml`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "node" in words and any(word.endswith(f"/{node}/node.toml") for word in words)


def send(pid: int, node: int, number: signal.Signals) -> bool:
    """Send a signal to the process of a node; returns whether it was there."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if runs(pid, node):  # whoever it is, the handle stands for the same one from here on
                signal.pidfd_send_signal(handle, number)
                return True
        finally:
            os.close(handle)
    return False
