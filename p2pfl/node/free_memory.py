"""Memory that is free, of the machine and of the control groups of this process; whether the kernel has killed for it.

Read from files of the kernel: /proc/meminfo, and those of control groups, of version 2, and of 1 as on older clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")


class _Group(NamedTuple):
    """The files of a control group."""

    limit: Path
    used: Path
    stat: Path
    cached: str  # the field of `stat` that can be had back


def free_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes that are free, of the machine and of the control groups of this process; None: unknown."""
    known = [_available(root), *map(_left, _groups(root))]
    return min((each for each in known if each is not None), default=None)


def kills(root: Path = _ROOT) -> int | None:
    """Return how many the kernel has killed for memory so far, here or in this process's control groups."""
    counts = [_field(_text(group.limit.parent / "memory.events"), "oom_kill") for group in _groups(root)]
    counts.append(_field(_text(root / "proc/vmstat"), "oom_kill"))
    return max((count for count in counts if count is not None), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:  # there is no such file on this kernel
        return ""


def _field(text: str, name: str) -> int | None:
    """A number of a file of names and numbers, as /proc/meminfo."""
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return None


def _available(root: Path) -> int | None:
    kilobytes = _field(_text(root / "proc/meminfo"), "MemAvailable")
    return None if kilobytes is None else kilobytes * 1024


def _groups(root: Path) -> list[_Group]:
    """The control groups of this process, from its own upwards."""
    result = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, kinds, path = line.split(":", 2)
        if number == "0":
            result += [
                _Group(place / "memory.max", place / "memory.current", place / "memory.stat", "inactive_file")
                for place in _up(root, "", path)
            ]
        elif "memory" in kinds.split(","):
            result += [
                _Group(
                    place / "memory.limit_in_bytes", place / "memory.usage_in_bytes", place / "memory.stat",
                    "total_inactive_file",
                )
                for place in _up(root, "memory", path)
            ]  # fmt: skip
    return result


def _up(root: Path, kind: str, path: str) -> Iterator[Path]:
    """A group's place, and those above it; in a container the group is the top."""
    top, own = root / "sys/fs/cgroup" / kind, path.strip("/")
    place = top / own if own and (top / own).is_dir() else top
    yield place
    yield from (parent for parent in place.parents if parent == top or top in parent.parents)


def _left(group: _Group) -> int | None:
    """Bytes that a group may still take; None where it has no limit."""
    limit, used = _text(group.limit).strip(), _text(group.used).strip()
    if not (limit.isdigit() and used.isdigit()):
        return None
    return max(int(limit) - int(used) + (_field(_text(group.stat), group.cached) or 0), 0)
