"""Sites with keys on this machine, each in a folder of its own, made by the commands of docs/federation.md."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import page
from click.testing import CliRunner
from test_live import P2PFL

from p2pfl.cli import main
from p2pfl.node import records


def typed(folder: Path, *words: str) -> str:
    """Type a command of p2pfl in a folder; return what it says."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def found(folder: Path, addresses: Mapping[str, str], experiment: str) -> dict[str, Site]:
    """Found a federation of sites at these addresses, whose nodes read the rows of the experiment."""
    sites = {name: Site(folder / name, node) for node, name in enumerate(addresses)}
    first = next(iter(sites.values()))
    cards = [f"{name}.card.toml" for name in addresses]
    for (name, site), card in zip(sites.items(), cards, strict=True):
        site.folder.mkdir()
        (site.folder / "experiment.toml").write_text(experiment)
        typed(site.folder, *page.command("federation", "keygen", north=name)[:-1], addresses[name])
        if site is not first:
            shutil.copy(site.folder / card, first.folder)
    init = [word for word in page.command("federation", "init") if not word.endswith(".card.toml")]
    typed(first.folder, *init, *cards)
    for name, site in sites.items():
        if site is not first:
            shutil.copy(first.folder / "hearts.toml", site.folder)
        words = page.command("federation", "accept", north=name)
        typed(site.folder, *(word for word in words if word not in ("--data", "rows.csv")))
    return sites


class Site:
    """A folder, and the node that runs there."""

    def __init__(self, folder: Path, node: int) -> None:
        self.folder, self.node = folder, node
        self.records = folder / f"p2pfl-node-{node}"
        self.process: subprocess.Popen[bytes] | None = None

    def sets(self, line: str) -> None:
        """Set a field of the node file."""
        file = self.folder / "node.toml"
        file.write_text(f"{line}\n{file.read_text()}")

    def start(self, *more: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*P2PFL, "node", "node.toml", *more], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def rounds(self) -> int:
        file = self.records / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def notes(self, event: str) -> list[int]:
        """Whom it has noted this of."""
        return [row["node"] for row in records.read(self.records / "events.jsonl") if row["event"] == event]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stands_still(self, still: bool) -> None:
        """All its processes, as those of a machine that sleeps."""
        assert self.process is not None
        for process in _family(self.process.pid):
            os.kill(process, signal.SIGSTOP if still else signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _family(pid: int) -> list[int]:
    """A process, and those that come of it."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    parents = {int(child): int(parent) for child, parent in map(str.split, rows)}
    family = [pid]
    for each in family:
        family += [child for child, parent in parents.items() if parent == each]
    return family
