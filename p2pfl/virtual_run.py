"""`driver.kind = "virtual"`: an experiment in virtual time, with the records and figures of a live run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pfl import build as building
from p2pfl import records, tasks
from p2pfl.build import Federation
from p2pfl.protocol.membership.rhythm import RHYTHMS
from p2pfl.virtual import table
from p2pfl.virtual.run import Ended, Setting
from p2pfl.virtual.run import run as run_virtual


def setting(federation: Federation) -> Setting:
    """What an experiment says of time and network. Raises ConfigError."""
    wanted, nodes = federation.experiment, len(federation.graph)
    table.check(wanted.virtual, nodes)
    return Setting(
        seed=wanted.seed,
        terms=building.terms(federation),
        rhythm=RHYTHMS[wanted.network.preset],
        seconds=table.seconds(wanted.virtual, nodes),
        link=table.links(wanted.virtual),
        events=federation.churn,
    )


def notes(federation: Federation) -> list[str]:
    """What a person should know of the network that the experiment describes."""
    wanted = federation.experiment
    rhythm, link, preset = RHYTHMS[wanted.network.preset], table.links(wanted.virtual), wanted.network.preset
    nodes = len(federation.graph)
    farthest = max((link(i, j).latency + link(i, j).jitter for i in range(nodes) for j in range(i)), default=0.0)
    if 2 * farthest <= rhythm.ack_max:
        return []
    return [
        f"an answer takes up to {2 * farthest:g} s on this network, and with network.preset={preset!r} a node "
        f"is suspected after {rhythm.ack_max:g} s: rounds will go on without it. A more patient preset helps"
    ]


def into(
    federation: Federation,
    out: Path,
    begun: Callable[[int], None] = lambda round: None,
    say: Callable[[str], None] = lambda text: None,
) -> Ended:
    """Run a federation in virtual time; its records are in `out`/nodes/ID. See `virtual.run.run`."""
    for note in notes(federation):
        say(note)
    return run_virtual(tasks.tasks(federation), setting(federation), out, begun, say)


def figures(ended: Ended) -> dict[str, Any]:
    """What the summary says besides what it says of a live run."""
    return {
        "driver": "virtual",
        "lost": list(ended.lost),
        "left": list(ended.left),
        "seconds_virtual": round(ended.ended - ended.began, 6),
        "bytes_membership": ended.bytes_membership,
    }


def timed(out: Path, ended: Ended) -> None:
    """Add to each line of rounds.jsonl when the last node had finished the round: virtual seconds of training."""
    latest: dict[int, float] = {}
    for row in records.read(out / "metrics.jsonl"):
        latest[row["round"]] = max(latest.get(row["round"], 0.0), row["time"])
    rows = records.read(out / "rounds.jsonl")
    lines = [json.dumps({**row, "seconds": round(latest[row["round"]] - ended.began, 6)}) for row in rows]
    (out / "rounds.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")
