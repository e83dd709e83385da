"""A systemd unit for each site, with its node file and what lies beside it: a folder a site, to be carried there."""

from __future__ import annotations

from pathlib import PurePosixPath

from p2pfl.errors import ConfigError
from p2pfl.runs.clusters import plan as clusters
from p2pfl.runs.clusters.plan import ClusterPlan, ClusterSite, Export, plain_path, rendered

PROGRAM = "/usr/local/bin/p2pfl"
"""Where p2pfl is, unless it is said."""


def export(
    plan: ClusterPlan,
    keys: str | None = None,
    folder: str | None = None,
    user: str | None = None,
    program: str = PROGRAM,
    devices: bool = False,
) -> Export:
    """Write units.

    Args:
        plan: what is exported.
        keys: where private keys lie on the machines, with {name} or {node}; NAME.key in `folder` unless given.
        folder: where the files of a site will lie on its machine; /etc/p2pfl/FEDERATION unless given.
        user: as whom the node runs; as one that the machine makes for it unless given.
        program: the path of p2pfl there.
        devices: whether the node sees devices, such as GPUs.

    Returns:
        A folder for each site.

    Raises:
        ConfigError: a path that a unit can't hold, or keys that are the same for all.
    """
    place = plain_path("--folder", folder or f"/etc/p2pfl/{plan.label}")
    wanted = clusters.pattern("--keys", keys or f"{place}/{{name}}.key", plan.sites)
    plain_path("--program", program)
    if user is not None and not user.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"--user {user}: is no name of a user; leave it out for one that the machine makes")
    files = {}
    for site in plan.sites:
        unit = unit_name(plan, site)
        rows, state = plan.rows(site), f"p2pfl/{plan.label}-{site.label}"
        values = {
            "name": plan.name, "site": site, "unit": unit, "folder": place, "program": program, "user": user,
            "key": plain_path("--keys", site.filled(wanted)), "devices": devices, "leave": clusters.LEAVE,
            "rows": None if rows is None else plain_path("--data", rows), "state": state, "ports": ports(site),
            "federation": plan.federation_file,
        }  # fmt: skip
        files[f"{site.label}/{unit}"] = rendered("unit.service", **values)
        # the documented place of a credential, for files that can't name $CREDENTIALS_DIRECTORY
        key = str(PurePosixPath("/run/credentials") / unit / "key")
        files[f"{site.label}/{site.label}.toml"] = plan.node_file(site, key, f"/var/lib/{state}", rows)
        files[f"{site.label}/{plan.federation_file}"] = plan.federation
        files |= {f"{site.label}/{name}": text for name, text in plan.files.items()}
    first = plan.sites[0]
    return Export(
        files,
        (
            "carry each folder to its site's machine; the first lines of the unit in it say what to do there:",
            f"  {first.label}/{unit_name(plan, first)}",
        ),
    )


def unit_name(plan: ClusterPlan, site: ClusterSite) -> str:
    """Return the name of the unit of a site."""
    return f"p2pfl-{plan.label}-{site.label}.service"


def ports(site: ClusterSite) -> str:
    """Say what a firewall must let in."""
    if not site.reachable:
        return "It calls the others, and is called by nobody: no port need be open."
    return f"The others call it at {site.address}: TCP {' and '.join(map(str, site.ports))} must be let in."
