"""A compose file: a service for each site."""

from __future__ import annotations

import re
from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.runs.clusters import plan as clusters
from p2pfl.runs.clusters.containers import CONFIG, STATE, USER, containerfile, documents
from p2pfl.runs.clusters.plan import ClusterPlan, ClusterSite, Export

KEY = "/run/secrets/key"
"""Where compose puts a secret of that name."""


def export(
    plan: ClusterPlan,
    keys: str | None = None,
    image: str | None = None,
    cpus: float = 1.0,
    memory: int = 2,
) -> Export:
    """Write the compose file.

    Args:
        plan: what is exported.
        keys: where private keys lie on this machine, with {name} or {node}; NAME.key beside the file unless given.
        image: of the node; built from the Containerfile that is written, unless given.
        cpus: of a node, at most.
        memory: of a node, at most, GiB.

    Returns:
        The file, the node files, and what an image is made from.

    Raises:
        ConfigError: two sites have one address, or a path can't be.
    """
    wanted = clusters.pattern("--keys", keys or "./{name}.key", plan.sites)
    if image is not None and not re.fullmatch(r"[\w.:/@-]+", image):
        raise ConfigError(f"--image {image}: is no name of an image, as in registry.example.org/p2pfl:0.1.0")
    _check(plan)
    files = {f"config/{name}": text for name, text in plan.files.items()}
    for site in plan.sites:
        files[f"config/{site.label}.toml"] = plan.node_file(site, KEY, STATE, plan.rows(site))
        files[f"state/{site.label}/{plan.federation_file}"] = plan.federation
    made = {
        "name": plan.label,
        "services": {site.label: _service(plan, site, image, cpus, memory) for site in plan.sites},
        "networks": {"federation": {}},
        "secrets": {f"{site.label}-key": {"file": _escaped(site.filled(wanted))} for site in plan.sites},
    }
    head = (
        f"The federation {plan.name}: a service for each of {', '.join(site.name for site in plan.sites)}.\n"
        "A private key is mounted as it lies on this machine: mode 600, and its owner is who the container runs as:\n"
        "  P2PFL_USER=$(id -u):$(id -g) docker compose up\n"
        "What a node trained lies in state/SITE."
    )
    steps = [
        *(f"put the private key of {site.name}, mode 600, at {site.filled(wanted)}" for site in plan.sites),
        "P2PFL_USER=$(id -u):$(id -g) docker compose up",
    ]
    files["compose.yaml"] = documents(head, made)
    return Export({**files, **containerfile()}, steps)


def _check(plan: ClusterPlan) -> None:
    """Raise ConfigError where two containers would be called at one place."""
    clusters.no_loopback(plan.sites, "a container")
    hosts: dict[str, ClusterSite] = {}
    ports: dict[int, ClusterSite] = {}
    for site in plan.sites:
        other = None if site.numeric else hosts.setdefault(site.host, site)
        if other not in (None, site):
            raise ConfigError(
                f"{site.name} and {other.name} are both at the host {site.host}: each is a container of its own, and "
                "needs a host name of its own in its address"
            )
        for port in site.ports if _published(plan, site) else ():
            other = ports.setdefault(port, site)
            if other is not site:
                raise ConfigError(
                    f"{site.name} and {other.name} would both be called at port {port} of this machine; export one of "
                    "them for another machine, with --site"
                )


def _published(plan: ClusterPlan, site: ClusterSite) -> bool:
    """Return whether it is called from outside: else all that call it are in its network."""
    return site.reachable and (bool(plan.elsewhere) or site.numeric)


def _service(plan: ClusterPlan, site: ClusterSite, image: str | None, cpus: float, memory: int) -> dict[str, Any]:
    own: dict[str, Any] = {"context": "image", "dockerfile": "Containerfile"}
    volumes = [_mount("./config", CONFIG, True), _mount(f"./state/{site.label}", STATE, False)]
    rows = plan.rows(site)
    if rows is not None:
        clusters.plain_path("--data", rows)
        volumes.append(_mount(rows, rows, True))
    service: dict[str, Any] = {"build": own} if image is None else {"image": image}
    service |= {
        "command": ["node", f"{CONFIG}/{site.label}.toml", "--out", STATE, "--resume"],
        "user": f"${{P2PFL_USER:-{USER}:{USER}}}",
        "environment": {"XDG_CACHE_HOME": "/tmp/cache", "PYTHONUNBUFFERED": "1"},
        "init": True,
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "networks": {"federation": {} if site.numeric else {"aliases": [site.host]}},
        "secrets": [{"source": f"{site.label}-key", "target": "key"}],
        "volumes": volumes,
        "restart": "on-failure:5",
        "stop_signal": "SIGTERM",
        "stop_grace_period": f"{clusters.LEAVE}s",
        "cpus": cpus,
        "mem_limit": f"{memory}g",
    }
    if _published(plan, site):
        service["ports"] = [f"{port}:{port}" for port in site.ports]
    return service


def _mount(source: str, target: str, read_only: bool) -> dict[str, Any]:
    return {
        "type": "bind", "source": _escaped(source), "target": _escaped(target), "read_only": read_only,
        "bind": {"create_host_path": False},
    }  # fmt: skip


def _escaped(text: str) -> str:
    return text.replace("$", "$$")
