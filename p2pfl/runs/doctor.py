"""`p2pfl doctor [NODE.toml]`: is this machine fit, and does a node connect; needs no library but the terminal's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from p2pfl.errors import Exit
from p2pfl.runs import machine
from p2pfl.runs.machine import Finding, State

_STYLES = {State.GOOD: "green", State.NOTE: "yellow", State.BAD: "bold red"}

_NOT_KEPT = Finding(
    "folders", State.NOTE, "there is no place for compiled programs: each process compiles anew",
    "make ~/.cache writable, or set XDG_CACHE_HOME to a folder that is",
)  # fmt: skip


class Diagnosis(NamedTuple):
    """All that was found."""

    findings: Sequence[Finding]

    @property
    def code(self) -> Exit:
        """A mistake here is told before somebody who is not reached."""
        return min((each.code for each in self.findings if each.state == State.BAD), default=Exit.DONE)

    @property
    def summary(self) -> str:
        """The last line for a person."""
        bad = sum(each.state == State.BAD for each in self.findings)
        return "All is in order." if not bad else f"{bad} of {len(self.findings)} things are not in order."

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        rows = [
            {"about": each.about, "state": each.state.value, "text": each.text, "way_out": each.way_out}
            for each in self.findings
        ]
        return {"exit_code": int(self.code), "findings": rows}


def diagnose(file: Path | None, wait: float, tell: Callable[[Finding], None], say: Callable[[str], None]) -> Diagnosis:
    """Look at this machine, and at the node in `file`. Raises ConfigError only where a file is not there.

    Where libraries are missing here, nothing but the machine is looked at. `wait`: seconds for which others may call,
    and are called again. `tell` is told each finding as it is made, `say` what changes meanwhile.
    """
    found: list[Finding] = []
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folders = {"compiled programs": Path(cache)} if cache else {}
    if file is None:
        folders = {"runs": Path.cwd(), **folders}
    for each in itertools.chain(machine.examine(folders), () if cache else (_NOT_KEPT,)):
        found.append(each)
        tell(each)
    fit = not any(each.state == State.BAD and each.about in ("packages", "libraries") for each in found)
    if file is not None and fit:
        from p2pfl.runs import doctor_node  # here: it needs all that may be broken

        for each in doctor_node.examine(file, wait, say):
            found.append(each)
            tell(each)
    return Diagnosis(found)


def show(found: Finding, console: Console) -> None:
    """Print a finding, its way out below it."""
    console.print(Text(f"{found.state.value:<6}", _STYLES[found.state]), Text(f"{found.about:<12}", "bold"), found.text)
    if found.way_out:
        console.print(f"       -> {found.way_out}")
