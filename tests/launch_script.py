"""What tests/test_launcher.py starts: nodes that only do as they are told, and a process that launches them.

`python launch_script.py FOLDER WHAT ...` launches a node for each WHAT and says their pids, in a JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from p2pfl.drivers.live.launcher import READY, Launcher, Order
from p2pfl.drivers.live.lifeline import Lifeline
from p2pfl.node.result import NodeResult


def node(arguments: list[str]) -> int:
    """A node in its directory that does `what` once it may go."""
    what, directory = arguments[0], Path(arguments[1])
    lifeline = Lifeline()
    if what == "fails at once":
        raise ValueError("no luck\nat all")
    print("Köln 中", flush=True)
    print(READY, flush=True)
    if what == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lifeline.wait()
    match what:
        case "fails":
            raise LookupError("no luck")
        case "exits":
            return 4
        case "ends" | "leaves":
            while not (directory / "end").exists():
                threading.Event().wait(0.01)
            ended = NodeResult(int(directory.name), 1, 5, 0, 0, {}, what == "leaves", "")
            ended.write(directory)
            return 143 if what == "leaves" else 0
    threading.Event().wait()
    return 0


def orders(folder: Path, whats: list[str]) -> list[Order]:
    places = [folder / str(node) for node in range(len(whats))]
    return [Order(node, (what, str(places[node])), places[node]) for node, what in enumerate(whats)]


def main(folder: Path, whats: list[str]) -> None:
    with Launcher("launch_script:node", [], print) as launcher:
        print(json.dumps({"server": launcher.pid}), flush=True)
        launcher.prepare(orders(folder, whats))
        print(json.dumps({"pids": [member.pids[0] for member in launcher.members.values()]}), flush=True)
        launcher.go()
        while launcher.running:
            launcher.poll(1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
