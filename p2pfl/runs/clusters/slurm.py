"""An array job of Slurm, a task for each site."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from p2pfl.errors import ConfigError
from p2pfl.runs.clusters import plan as clusters
from p2pfl.runs.clusters.plan import ClusterPlan, Export, plain_path, rendered

EARLY = 120
"""Seconds before its time is up that a task leaves; Slurm may be up to 60 s late."""

_TIME = re.compile(r"(\d+|\d+:\d\d|(\d+-)?\d+:\d\d:\d\d|\d+-\d+(:\d\d)?)")


def export(
    plan: ClusterPlan,
    out: Path,
    keys: str | None = None,
    program: str = "p2pfl",
    time: str = "24:00:00",
    partition: str | None = None,
    cpus: int = 1,
    memory: int = 2,
    gpus: int = 0,
) -> Export:
    """Write the job.

    Args:
        plan: what is exported.
        out: the folder that is written, which every host of the cluster sees under this path.
        keys: where private keys lie on the hosts, with {name} or {node}; NAME.key in `out` unless given.
        program: p2pfl, as the hosts find it.
        time: limit of a task, as Slurm writes it.
        partition: of the cluster; the default one unless given.
        cpus: of a task.
        memory: of a task, GiB.
        gpus: of a task.

    Returns:
        The script, one that submits it, and the node files.

    Raises:
        ConfigError: a time or a path that can't be.
    """
    if not _TIME.fullmatch(time):
        raise ConfigError(f"--time {time}: must be written as Slurm does, as in 90 (minutes), 12:00:00 or 2-12:00:00")
    if partition is not None and not re.fullmatch(r"[\w.,-]+", partition):
        raise ConfigError(f"--partition {partition}: is no name of a partition")
    if not re.fullmatch(r"[\w./+-]+", program):
        raise ConfigError(f"--program {program}: must be a name or a path, without spaces")
    folder = plain_path("--out", str(out.resolve()))
    wanted = clusters.pattern("--keys", keys or f"{folder}/{{name}}.key", plan.sites)
    files = dict(plan.files)
    for site in plan.sites:
        rows = plan.rows(site)
        key, own = plain_path("--keys", site.filled(wanted)), f"{folder}/runs/{site.label}"
        files[f"{site.label}.toml"] = plan.node_file(site, key, own, rows and plain_path("--data", rows))
        files[f"runs/{site.label}/{plan.federation_file}"] = plan.federation
    values = {
        "name": plan.name, "label": plan.label, "sites": plan.sites, "folder": shlex.quote(folder), "program": program,
        "time": time, "partition": partition, "cpus": cpus, "memory": memory, "gpus": gpus, "early": EARLY,
        "constrained": any(not site.numeric for site in plan.sites),
    }  # fmt: skip
    files[f"{plan.label}.sbatch"] = rendered("job.sbatch", **values)
    files["submit.sh"] = rendered("submit.sh", **values)
    steps = [
        *(f"put the private key of {site.name}, mode 600, at {site.filled(wanted)}" for site in plan.sites),
        "submit with submit.sh: each task to the host of its address, by the first part of the host's name",
    ]
    numbers = [site.name for site in plan.sites if site.numeric]
    if numbers:
        steps.append(
            f"the address of {', '.join(numbers)} is a number: Slurm knows hosts by their names; add --nodelist=HOST "
            "to the line of submit.sh"
        )
    return Export(files, steps, programs=("submit.sh", f"{plan.label}.sbatch"))
