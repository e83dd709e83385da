"""What other installed packages bring to be chosen by name, by their entry points.

A package that is installed beside this one says in its own pyproject.toml

    [project.entry-points."p2pfl.objectives"]
    tversky = "their_package.objectives:tversky"

and `tversky` can be named wherever an experiment names an objective. Entry points are read when a name is looked for,
and kept nowhere; nothing of a package is imported before it is named.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterable
from importlib.metadata import EntryPoint

from p2pfl.errors import ConfigError

GROUPS = (
    "p2pfl.data",
    "p2pfl.partitions",
    "p2pfl.models",
    "p2pfl.losses",
    "p2pfl.optimizers",
    "p2pfl.schedules",
    "p2pfl.objectives",
    "p2pfl.algorithms",
    "p2pfl.wraps",
    "p2pfl.graphs",
    "p2pfl.metrics",
)
"""The groups of entry points: what can be chosen by name."""


def registered(group: str) -> dict[str, list[EntryPoint]]:
    """Return what installed packages register in a group, by name.

    Args:
        group: one of GROUPS.

    Returns:
        name -> entry points; more than one where several packages have taken the name.

    Example:
        >>> from p2pfl.packages import registered
        >>> registered("p2pfl.models").get("mlp", [])
        []
    """
    found: dict[str, list[EntryPoint]] = {}
    for each in importlib.metadata.entry_points(group=group):
        found.setdefault(each.name, []).append(each)
    return found


def owner(entry: EntryPoint) -> str:
    """Return the name and version of the package that an entry point is of."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


def claimed(names: Collection[tuple[str, str]]) -> None:
    """Raises ConfigError where a package registers one of these (group, name), which p2pfl has itself."""
    for package in importlib.metadata.distributions():
        if "p2pfl." not in (package.read_text("entry_points.txt") or ""):
            continue  # nearly all of them; parsing is what takes time
        for each in package.entry_points:
            if (each.group, each.name) in names:
                _refuse(each.group, each.name, [each], "which p2pfl has itself")


def single(group: str, name: str, entries: list[EntryPoint]) -> EntryPoint:
    """Return the one entry point of a name. Raises ConfigError where several packages have taken it."""
    if len({(entry.value, owner(entry)) for entry in entries}) > 1:
        _refuse(group, name, entries, "so that it means several things")
    return entries[0]


def _refuse(group: str, name: str, entries: Iterable[EntryPoint], why: str) -> None:
    packages = " and ".join(sorted({owner(entry) for entry in entries}))
    raise ConfigError(
        f'{packages}: registers {name!r} in the entry points "{group}", {why}; uninstall it, or give the function as '
        '"module:function" and ask its authors for another name'
    )


def version(name: str) -> str | None:
    """Return the version of a package that is installed here; None where it is not, as of a checkout on the path."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
