"""The ways to run a federation, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from p2pfl.config.experiment import Driver, Experiment
from p2pfl.federation.federation import Federation
from p2pfl.reporting.terminal import View
from p2pfl.runs import live, simulated, virtual
from p2pfl.runs.callbacks import Callbacks
from p2pfl.runs.summary import Collected

Run = Callable[[Federation, Path, View, Callbacks], Collected]
"""Runs a federation into a directory that is there, and says on the way how it goes."""


class RunDriver(NamedTuple):
    """One way to run a federation; it changes how fast and how truly, never what is computed."""

    prepare: Callable[[Experiment, View], AbstractContextManager[Run]]  # before the federation is built
    check: Callable[[Federation], object]  # raises ConfigError for what this driver can't do
    to_the_bit: bool  # where nothing is lost, the models are those of the plain loop to the bit
    node_records: bool  # leaves nodes/ID with a trace: the run can be replayed
    starts_processes: bool
    several_hosts: bool  # may be one process of several that run the federation together


def at_once(run: Run) -> Callable[[Experiment, View], AbstractContextManager[Run]]:
    """There is nothing to prepare."""
    return lambda experiment, view: contextlib.nullcontext(run)


def _anything(federation: Federation) -> None:
    """Accept every federation: whatever can be built can be run."""


DRIVERS: Mapping[str, RunDriver] = MappingProxyType(
    {
        "live": RunDriver(live.prepared, live.check, True, True, True, False),
        "virtual": RunDriver(at_once(virtual.run), virtual.setting, True, True, False, False),
        "simulate": RunDriver(at_once(simulated.run), _anything, False, False, False, True),
        "loop": RunDriver(at_once(simulated.run_loop), _anything, True, True, False, False),
    }
)
"""By `driver.kind`; "loop" is `driver.kind = "simulate"` with `driver.loop = true`."""


def chosen(driver: Driver) -> RunDriver:
    """Return the driver that [driver] names."""
    return DRIVERS["loop" if driver.kind == "simulate" and driver.loop else driver.kind]
