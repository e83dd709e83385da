"""Tell what a run with [privacy] has spent: of each node, for who sees all that it sends, and for each single node."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from p2pfl.data.partition import names
from p2pfl.federation.federation import Federation
from p2pfl.federation.privacy import by_distance
from p2pfl.methods.privacy.dp_sgd import NAME
from p2pfl.types import Params

FILE = "privacy.json"
TAKEN = (
    "by the linear view of the planned rounds, which takes the gradients of all other nodes, and the node's own later "
    "ones, as given: no theorem for training, and only as planned"
)
"""What the figures for single nodes rest on."""


def write(federation: Federation, models: Mapping[int, Params], out: Path) -> list[str]:
    """Write privacy.json, and return in words what it says; nothing where the experiment has no [privacy].

    models: the final models, whose nodes have counted their local steps.
    """
    private = federation.learning.private
    if private is None:
        return []
    called = names(federation.partition, federation.dataset)
    nodes: dict[int, dict[str, Any]] = {}
    for node, model in models.items():
        steps, own = int(model["private"][NAME]["steps"]), private.sampling[node]
        if own is not None:
            spent = private.spent(node, steps)
            nodes[node] = {
                "name": called[node],
                "rows": own.rows,
                "steps": steps,
                "epsilon": spent,
                "noise": private.noise[node],
            }
            nodes[node]["stopped"] = steps >= private.allowed[node] < private.planned[node]
    single = by_distance(federation.experiment, federation.topology, private) if federation.pooled else None
    table = private.table
    found = {
        "clip": table.clip,
        "delta": table.delta,
        "budget": table.epsilon,
        "sampling": table.sampling,
        "noise_from": "the seed: a study" if federation.pooled else "the operating system",
        "nodes": {str(node): each for node, each in nodes.items()},
        "single_nodes": None if single is None else {"rests_on": TAKEN, "epsilon": single},
    }
    (out / FILE).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return [*_spent(nodes, table.delta, federation.pooled), *_seen(federation, single, table.delta)]


def _spent(nodes: Mapping[int, Mapping[str, Any]], delta: float, pooled: bool) -> list[str]:
    if not nodes:
        return []
    worst = max(nodes.values(), key=lambda each: float(each["epsilon"]))
    whose = f" ({worst['name']}, the most of the {len(nodes)} that are there at the end)" if len(nodes) > 1 else ""
    said = [
        f"privacy: for who sees all that a node has sent (all its neighbours together; anybody where links are not "
        f"encrypted) epsilon is {worst['epsilon']:.3g}{whose} at delta {delta:g}, for each training row"
        + ("; its noise follows from the seed, so it protects nobody: a study" if pooled else "")
    ]
    ended = [each["name"] for each in nodes.values() if each["stopped"]]
    if ended:
        said.append(f"privacy: the budget is used up at {', '.join(ended[:10])}, which train no more and go on mixing")
    return said


def _seen(federation: Federation, single: Mapping[str, Mapping[str, float]] | None, delta: float) -> list[str]:
    """Say what a single other node sees, by its distance in the graph."""
    if single is None:
        return []
    length = dict(nx.all_pairs_shortest_path_length(federation.graph))
    worst: dict[int, float] = defaultdict(float)
    for node, others in single.items():
        for other, found in others.items():
            away = length[int(node)].get(int(other))
            if away is not None:
                worst[away] = max(worst[away], found)
    listed = ", ".join(f"{found:.3g} at distance {away}" for away, found in sorted(worst.items()))
    return [f"privacy: for a single other node epsilon is {listed}, {TAKEN}"] if listed else []
