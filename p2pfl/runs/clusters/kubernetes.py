"""A StatefulSet: a pod for each site, each with its own key and nobody else's."""

from __future__ import annotations

import re
from typing import Any

from p2pfl.errors import ConfigError
from p2pfl.runs.clusters import plan as clusters
from p2pfl.runs.clusters.containers import CONFIG, KEY, STATE, USER, Octal, containerfile, documents
from p2pfl.runs.clusters.plan import ClusterPlan, ClusterSite, Export, rendered

_DNS = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MOST = 1_000_000
"""Bytes of a ConfigMap, which may have 1 MiB."""
_ROWS = "/srv/rows"


def export(
    plan: ClusterPlan,
    image: str,
    namespace: str = "default",
    secret: str | None = None,
    cpus: int = 1,
    memory: int = 2,
    gpus: int = 0,
    storage: int = 5,
) -> Export:
    """Write the manifest.

    Args:
        plan: what is exported; its `data` is a path in each pod's own volume of rows.
        image: of the node.
        namespace: in which it runs; a part of the pods' names in the network.
        secret: name of the Secret with the private keys; FEDERATION-keys unless given.
        cpus: that a node asks for.
        memory: that a node has, GiB.
        gpus: of NVIDIA, for each node.
        storage: of what a node keeps, GiB.

    Returns:
        One file of all objects, and what an image is made from.

    Raises:
        ConfigError: a name that can't be, or files too large.
    """
    for option, name in (("--namespace", namespace), ("--secret", secret)):
        if name is not None and not _DNS.fullmatch(name):
            raise ConfigError(f"{option} {name}: must be lower case letters, digits and '-', 63 at most")
    if not re.fullmatch(r"[\w.:/@-]+", image):
        raise ConfigError(f"--image {image}: is no name of an image, as in registry.example.org/p2pfl:0.1.0")
    if plan.data is not None and (plan.data.startswith("/") or ".." in plan.data.split("/")):
        raise ConfigError(
            f"--data {plan.data}: must be a path in the volume of rows that each pod has (rows-{plan.label}-0, ...), "
            "as in --data '{name}.csv'"
        )
    clusters.no_loopback(plan.sites, "a pod")
    keys, instance = secret or f"{plan.label}-keys", plan.label
    labels = {"app.kubernetes.io/name": "p2pfl", "app.kubernetes.io/instance": instance}
    about = {"namespace": namespace, "labels": labels}
    ports = sorted({port for site in plan.sites for port in site.ports})
    headless = _service(instance, about, labels, ports)
    headless["spec"] |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    outside = [
        _outside(plan, site, at, about, labels)
        for at, site in enumerate(plan.sites)
        if site.reachable and site.host not in _own_hosts(plan, at, namespace)
    ]
    budget = {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": instance, **about},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }  # fmt: skip
    config = _config(plan, about)
    pods = _stateful_set(plan, image, keys, about, labels, ports, storage, _resources(cpus, memory, gpus))
    create = " ".join(f"--from-file={_pod(plan, at)}.key={site.name}.key" for at, site in enumerate(plan.sites))
    steps = [
        f"kubectl -n {namespace} create secret generic {keys} {create}",
        f"kubectl -n {namespace} apply -f {plan.label}.yaml",
        *_told(plan, outside, namespace),
    ]
    head = (
        f"The federation {plan.name}: a pod for each of {', '.join(site.name for site in plan.sites)}.\n"
        f"Its image is made from image/Containerfile. The private keys are in the Secret {keys}, which is not in this "
        f"file:\n  {steps[0]}\nEach pod sees its own key alone. Its owner in the pod is root, and the group of the "
        "node may read it."
    )
    text = documents(head, config, headless, *outside, budget, pods)
    return Export({f"{plan.label}.yaml": text, **containerfile()}, steps)


def _pod(plan: ClusterPlan, at: int) -> str:
    return f"{plan.label}-{at}"


def _own_hosts(plan: ClusterPlan, at: int, namespace: str) -> tuple[str, ...]:
    """The names of a pod in the network of the cluster."""
    name = f"{_pod(plan, at)}.{plan.label}"
    return (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local")


def _told(plan: ClusterPlan, outside: list[dict[str, Any]], namespace: str) -> list[str]:
    """What a person should know of sites whose addresses are not those of pods."""
    if not outside:
        return []
    said = [
        f"{each['metadata']['annotations']['p2pfl/address']} -> Service {each['metadata']['name']}" for each in outside
    ]
    return [
        f"point the hosts of the addresses in the federation file to the Services that are for them: {'; '.join(said)}",
        "(within one cluster none is needed where the addresses in the federation file are those of the pods: "
        + ", ".join(f"tcp://{_own_hosts(plan, at, namespace)[-1]}:PORT" for at in range(len(plan.sites)))
        + ")",
    ]


def _service(name: str, about: dict[str, Any], selector: dict[str, str], ports: list[int]) -> dict[str, Any]:
    listed = [{"name": f"p{port}", "port": port, "targetPort": port, "protocol": "TCP"} for port in ports]
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **about},
        "spec": {"selector": selector, "ports": listed},
    }  # fmt: skip


def _outside(
    plan: ClusterPlan, site: ClusterSite, at: int, about: dict[str, Any], labels: dict[str, str]
) -> dict[str, Any]:
    """The Service by which a pod is called from outside, at the address that the federation file has."""
    selector = {**labels, "statefulset.kubernetes.io/pod-name": _pod(plan, at)}
    made = _service(f"{plan.label}-{site.label}"[:63].rstrip("-"), about, selector, [*site.ports])
    made["metadata"] |= {"annotations": {"p2pfl/address": site.address}}
    made["spec"] |= {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "publishNotReadyAddresses": True}
    return made


def _config(plan: ClusterPlan, about: dict[str, Any]) -> dict[str, Any]:
    """All files but the keys; one in a folder is called by a name without it, and put back where it belongs."""
    texts = {_flat(name): text for name, text in plan.files.items()}
    for at, site in enumerate(plan.sites):
        rows = plan.rows(site)
        texts[f"{_pod(plan, at)}.toml"] = plan.node_file(site, KEY, STATE, rows and f"{_ROWS}/{rows}")
    texts[plan.federation_file] = plan.federation
    texts["start.sh"] = rendered("start.sh", federation=plan.federation_file)
    size = sum(len(text.encode()) for text in texts.values())
    if size > _MOST:
        raise ConfigError(f"the files of the experiment have {size} bytes; a ConfigMap holds {_MOST}: leave some out")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": plan.label, **about}, "data": texts}


def _flat(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name.replace("/", ".."))


def _resources(cpus: int, memory: int, gpus: int) -> dict[str, Any]:
    devices = {"nvidia.com/gpu": gpus} if gpus else {}
    return {
        "requests": {"cpu": cpus, "memory": f"{memory}Gi"}, "limits": {"memory": f"{memory}Gi", **devices},
    }  # fmt: skip


def _stateful_set(
    plan: ClusterPlan, image: str, keys: str, about: dict[str, Any], labels: dict[str, str], ports: list[int],
    storage: int, resources: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    items = [{"key": _flat(name), "path": name} for name in (*plan.files, plan.federation_file)]
    items += [{"key": f"{_pod(plan, at)}.toml", "path": f"{_pod(plan, at)}.toml"} for at in range(len(plan.sites))]
    items.append({"key": "start.sh", "path": "start.sh"})
    mounts = [
        {"name": "config", "mountPath": CONFIG, "readOnly": True},
        {"name": "keys", "mountPath": KEY, "subPathExpr": "$(POD).key", "readOnly": True},
        {"name": "state", "mountPath": STATE},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    claims = [_claim("state", storage)]
    if plan.data is not None:
        mounts.append({"name": "rows", "mountPath": _ROWS, "readOnly": True})
        claims.append(_claim("rows", storage))
    container = {
        "name": "node",
        "image": image,
        "command": ["/bin/sh", f"{CONFIG}/start.sh"],
        "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "XDG_CACHE_HOME", "value": "/tmp/cache"},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
        ],
        "ports": [{"name": f"p{port}", "containerPort": port} for port in ports],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/at-work"]}, "periodSeconds": 10},
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }  # fmt: skip
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": clusters.LEAVE,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": plan.label, "items": items}},
            {"name": "keys", "secret": {"secretName": keys, "defaultMode": Octal(0o400)}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": plan.label, **about},
        "spec": {
            "serviceName": plan.label, "replicas": len(plan.sites), "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod},
            "volumeClaimTemplates": claims,
        },
    }  # fmt: skip


def _claim(name: str, storage: int) -> dict[str, Any]:
    wanted = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{storage}Gi"}}}
    return {"metadata": {"name": name}, "spec": wanted}
