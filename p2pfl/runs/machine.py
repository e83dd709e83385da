"""What `p2pfl doctor` finds out about this machine: versions, cores, devices, memory, open files, folders, clock."""

from __future__ import annotations

import datetime
import enum
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2pfl.drivers.live import files, memory
from p2pfl.errors import USER_FAULTS, Exit
from p2pfl.node.free_memory import free_memory
from p2pfl.packages import version

_TOLD = ("jax", "jaxlib", "flax", "optax", "numpy", "pyzmq")
"""Packages whose versions are always told."""

_LOADED = ("zmq", "msgpack", "numpy", "scipy.linalg", "safetensors.numpy", "sklearn.datasets", "pandas", "jax", "flax")
"""Modules with shared libraries of their own, or that load those of others."""

_LOW_MEMORY, _LOW_DISK = 1 << 30, 1 << 30
"""Bytes below which a word is said."""


class State(enum.Enum):
    """How good a finding is."""

    GOOD = "good"
    NOTE = "note"  # nothing fails by it
    BAD = "bad"


class Finding(NamedTuple):
    """One thing that was looked at."""

    about: str  # in a word
    state: State
    text: str
    way_out: str = ""
    code: Exit = Exit.MISTAKE  # of one that is bad


def examine(folders: dict[str, Path]) -> Iterator[Finding]:
    """Yield what is found about this machine. `folders`: that must be writable, by what they are for."""
    yield from _versions()
    yield from _libraries()
    yield from _devices()
    yield _memory()
    yield _open_files()
    yield from (writable(what, folder) for what, folder in folders.items())
    yield _clock()


def _versions() -> Iterator[Finding]:
    text = f"{version('p2pfl-jax') or 'unknown'}, Python {platform.python_version()}, {platform.platform()}"
    yield Finding("p2pfl", State.GOOD, text)
    there = {name: found for name in _TOLD if (found := version(name)) is not None}
    yield Finding("packages", State.GOOD, ", ".join(f"{name} {found}" for name, found in there.items()))
    for name, least in _required():
        here = version(name)
        if here is None:
            yield Finding("packages", State.BAD, f"{name} is not installed", f"pip install '{name}>={least}'")
        elif _numbers(here) < _numbers(least):
            text = f"{name} {here} is too old: p2pfl needs {least}"
            yield Finding("packages", State.BAD, text, f"pip install '{name}>={least}'")


def _required() -> list[tuple[str, str]]:
    """What p2pfl needs: name and least version; without its extras."""
    try:
        listed = importlib.metadata.requires("p2pfl-jax") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    read = [re.fullmatch(r"([\w.-]+) *>= *([\w.]+)", line) for line in listed if "extra" not in line]
    return [(match[1], match[2]) for match in read if match is not None]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)][:3]


def _libraries() -> Iterator[Finding]:
    broken = []
    for name in _LOADED:
        try:
            importlib.import_module(name)
        except USER_FAULTS as error:  # whatever a library that does not fit raises
            broken.append(name)
            way_out = f"pip install --force-reinstall {name.partition('.')[0]}; compare its version with the other's"
            yield Finding("libraries", State.BAD, f"{name} can't be loaded: {error}", way_out)
    if not broken:
        zmq = importlib.import_module("zmq")
        yield Finding("libraries", State.GOOD, f"all can be loaded; ZeroMQ {zmq.zmq_version()}")


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding("cores", State.GOOD, f"{cores} of {os.cpu_count()}")
    try:
        jax = importlib.import_module("jax")
        devices = jax.devices()
        importlib.import_module("jax.numpy").ones(1).sum().block_until_ready()
    except USER_FAULTS as error:
        way_out = "look at JAX_PLATFORMS, or set JAX_PLATFORMS=cpu to compute without the device"
        yield Finding("devices", State.BAD, f"jax can't compute here: {error}", way_out)
        return
    kinds = [device.device_kind if device.platform != "cpu" else "CPU" for device in devices]
    text = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if devices[0].platform == "cpu" and Path("/dev/nvidiactl").exists():
        text += "; there is an NVIDIA GPU that jax does not see"
        yield Finding("devices", State.NOTE, text, "install the jax for it, such as pip install 'jax[cuda12]'")
    else:
        yield Finding("devices", State.GOOD, f"{text}: jax computes there")


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding("memory", State.NOTE, "how much is free is not known here")
    nodes = max((free - memory.SHARED) // memory.PRIVATE, 0)
    text = f"{free / 2**30:.1f} GB are free; as processes on this machine at most {nodes} nodes of a small model fit"
    return Finding("memory", State.NOTE if free < _LOW_MEMORY else State.GOOD, text)


def _open_files() -> Finding:
    limit = files.raised()
    one, here = files.room(limit)
    text = f"{limit} are allowed: a node can have {one} others, p2pfl run can have {here} nodes on this machine"
    if one >= 64:
        return Finding("open files", State.GOOD, text)
    return Finding("open files", State.NOTE, text, "raise the hard limit (ulimit -n; LimitNOFILE= of a service)")


def writable(what: str, folder: Path) -> Finding:
    """See that something can be written there, or where it would be made."""
    there = folder
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
        free = shutil.disk_usage(there).free
    except OSError as error:
        text = f"{folder}: can't be written, and is for {what}: {error.strerror}"
        return Finding("folders", State.BAD, text, f"make it writable: its owner and rights, or the disk of {there}")
    text = f"{folder} is writable, for {what}; {free / 2**30:.1f} GB are free"
    return Finding("folders", State.NOTE if free < _LOW_DISK else State.GOOD, text)


def _clock() -> Finding:
    info, before = time.get_clock_info("monotonic"), time.monotonic_ns()
    while time.monotonic_ns() == before:  # as it stands still nowhere, for a tick
        pass
    made = Path(sys.modules["p2pfl"].__file__ or __file__).stat().st_mtime
    now = datetime.datetime.now(datetime.UTC)
    if not info.monotonic or now.timestamp() < made - 86_400:
        text = f"{now:%Y-%m-%d %H:%M} UTC can't be right: p2pfl was installed later. No node trusts another's clock"
        return Finding(
            "clock", State.NOTE, text, "set it, so that records have the right time (timedatectl set-ntp true)"
        )
    return Finding("clock", State.GOOD, f"{now:%Y-%m-%d %H:%M} UTC; a tick is {info.resolution * 1e9:g} ns")
