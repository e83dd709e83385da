"""`p2pfl federation export`: writes what a cluster starts the nodes of a federation by. Nothing is overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from p2pfl.errors import ConfigError
from p2pfl.runs.clusters.plan import ClusterPlan, Export, plan
from p2pfl.trust import assembly, store


class Folder(NamedTuple):
    """What was written, and what a person does next."""

    files: Sequence[str]  # in the folder
    steps: Sequence[str]


def planned(file: Path, experiment: Path | None, only: Sequence[str], data: str | None) -> ClusterPlan:
    """Plan an export of the federation in `file`; `experiment`: beside it unless given. Raises ConfigError."""
    document = store.read(file)
    sites = assembly.read(document).head.sites
    members = [sites[node] for node in sorted(sites)]
    source = experiment or file.parent / "experiment.toml"
    if experiment is None and not source.is_file():
        raise ConfigError(f"{source}: no such file; say which experiment the federation runs, with --experiment FILE")
    founders = {site.name: site.node for site in document.founding.sites}
    for name in only or [each.name for each in members]:
        if name in founders and founders[name] not in document.accepted:
            raise ConfigError(
                f"{file}: {name} has not accepted the federation in this copy, and its node would not start: p2pfl "
                f"federation accept {file} --key {name}.key there, and then export the file that comes of it"
            )
    return plan(document.founding.name, members, file.read_text("utf-8"), source, only, data)


def write(export: Export, out: Path) -> Folder:
    """Write an export into a folder, which must be new or empty. Raises ConfigError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is not empty, and nothing is overwritten; give a new folder")
    for name, text in export.files.items():
        place = out / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
        if name in export.programs:
            place.chmod(0o755)
    return Folder(sorted(export.files), export.steps)
