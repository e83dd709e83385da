"""Tell what a run with [privacy] has spent: of each node, for who sees all that it sends, and for each single node."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from p2pfl.churn.timeline import timeline
from p2pfl.data.partition import names
from p2pfl.federation.federation import Federation
from p2pfl.federation.privacy import WHO, PrivateSteps, by_distance, by_view, most_for, noise_on_messages
from p2pfl.methods.privacy.dp_sgd import NAME
from p2pfl.node import records
from p2pfl.node.spending import SPENT
from p2pfl.types import Params

FILE = "privacy.json"
TAKEN = (
    "by the linear view of the planned rounds, which takes the gradients of all other nodes, and the node's own later "
    "ones, as given: no theorem for training, and only as planned"
)
"""What the figures for single nodes rest on."""
QUIET = "asking_for_no_model"
"""Key of the figures in which the noise on messages counts: whoever asks a neighbour for its model gets it without."""


def write(federation: Federation, models: Mapping[int, Params], out: Path, everyone: bool = False) -> list[str]:
    """Write privacy.json, and return in words what it says; nothing where the experiment has no [privacy].

    models: the final models, whose nodes have counted their local steps.
    everyone: of the other nodes of the experiment, too, how many steps they can have taken: a bound.
    """
    private = federation.learning.private
    if private is None:
        return []
    counts = {node: int(model["private"][NAME]["steps"]) for node, model in models.items()}
    gone = [node for node in federation.graph if everyone and node not in counts]
    counts |= {node: _at_most(federation, private, out, node) for node in gone}
    called = names(federation.partition, federation.dataset)
    known: dict[tuple[Any, ...], float | None] = {}
    told = [node for node in sorted(counts) if private.sampling[node] is not None]
    nodes = {node: _node(private, node, counts[node], known) for node in told}
    nodes = {node: {"name": called[node], **each, "bound": node in gone} for node, each in nodes.items()}
    single = _single(federation, private)
    table = private.table
    found = {
        "of": table.of,
        "law": table.law,
        "clip": table.clip,
        "delta": table.delta,
        "budget": table.epsilon,
        "adversary": private.against,
        "correlated": table.correlated,
        "sampling": table.sampling,
        "noise_from": "the seed: a study" if federation.pooled else "the operating system",
        "nodes": {str(node): each for node, each in nodes.items()},
        "single_nodes": None if single is None else {"rests_on": TAKEN, **single},
        "coalition": _coalition(federation, private),
    }
    (out / FILE).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return [*_spent(nodes, private, federation.pooled), *_seen(federation, single)]


def _node(private: PrivateSteps, node: int, steps: int, known: dict[tuple[Any, ...], float | None]) -> dict[str, Any]:
    """What a node has spent with so many steps, or updates. `known`: figures of others like it, which take long."""
    own = private.sampling[node]
    assert own is not None
    against = {}
    for who, noise in private.seen.items():
        kind = noise[node], own, steps
        if kind not in known:
            known[kind] = private.spent(node, steps, who)
        against[who] = known[kind]
    return {
        "rows": own.rows,
        "steps": steps,
        "epsilon": against["neighbours"],
        "against": {who: spent for who, spent in against.items() if spent is not None},
        "noise": private.noise[node],
        "stopped": steps >= private.allowed[node] < private.planned[node],
    }


def _at_most(federation: Federation, private: PrivateSteps, out: Path, node: int) -> int:
    """How many steps (or updates) a node that is not there at the end can have taken.

    What it has written down before it took them. Else those of all rounds in which it was planned to be there (a trace
    may lack some), or of those in its trace and one more of each life (which may have been cut short), if that is more.
    """
    directory, rounds = out / "nodes" / str(node), federation.experiment.rounds
    written = directory / SPENT
    if written.exists():
        steps = int(json.loads(written.read_text("utf-8"))["steps"])
    else:
        planned = int(timeline(federation.churn, len(federation.graph), rounds).present[:, node].sum())
        begun = {(row["life"], row["round"]) for row in records.read(directory / "trace.jsonl") if "round" in row}
        traced = len(begun) + len({life for life, _ in begun})
        steps = -(-private.planned[node] // rounds) * max(planned, traced)
    return min(steps, private.allowed[node])


def _coalition(federation: Federation, private: PrivateSteps) -> dict[str, Any] | None:
    """What the nodes that `adversary` names see together, by the linear view; None where they are not named."""
    named = private.table.adversary
    if isinstance(named, str) or not federation.pooled:
        return None
    most, found = most_for(private, private.against), {}
    for key, asks in _asking(federation):
        seen = by_view(federation.experiment, federation.topology, private, {*named}, most, asks)
        if seen is not None:
            found[key] = {str(node): each for node, each in seen.items()}
    return {"nodes": sorted({*named}), "rests_on": TAKEN, **found} if "epsilon" in found else None


def _single(federation: Federation, private: PrivateSteps) -> dict[str, dict[str, dict[str, float]]] | None:
    """What each single other node sees, by the linear view; None where that is not to be had."""
    found = {}
    for key, asks in _asking(federation) if federation.pooled else ():
        seen = by_distance(federation.experiment, federation.topology, private, asks)
        if seen is not None:
            found[key] = seen
    return found if "epsilon" in found else None


def _asking(federation: Federation) -> tuple[tuple[str, bool], ...]:
    """Figures by their key, and whether they are for who asks for models, too."""
    figures = ("epsilon", True), (QUIET, False)
    return figures if noise_on_messages(federation.experiment) else figures[:1]


def _spent(nodes: Mapping[int, Mapping[str, Any]], private: PrivateSteps, pooled: bool) -> list[str]:
    if not nodes:
        return []
    delta, what = private.table.delta, "each training row" if private.table.of == "rows" else "all rows of a node"
    worst = max(nodes.values(), key=lambda each: float(each["epsilon"]))
    gone = sum(each["bound"] for each in nodes.values())
    who_sees = "all its neighbours together"
    if private.table.correlated is None:  # else a stranger sees less than they
        who_sees += "; anybody where links are not encrypted"
    left = f", of {gone} of which a bound is known, no count" if gone else ""
    whose = f" ({worst['name']}, the most of the {len(nodes)} nodes{left})" if len(nodes) > 1 else ""
    said = [
        f"privacy: for who sees all that a node has sent ({who_sees}) epsilon is {worst['epsilon']:.3g}{whose} at "
        f"delta {delta:g}, for {what}"
        + ("; its noise follows from the seed, so it protects nobody: a study" if pooled else "")
    ]
    for who in [who for who in private.seen if who != "neighbours"]:
        most = max((each["against"][who] for each in nodes.values() if who in each["against"]), default=None)
        if most is not None and (private.table.correlated is not None or who not in WHO):
            said.append(
                f"privacy: for {WHO.get(who, who)} epsilon is {most:.3g} at most, of all nodes, at delta {delta:g}"
            )
    ended = [each["name"] for each in nodes.values() if each["stopped"]]
    if ended:
        said.append(f"privacy: the budget is used up at {', '.join(ended[:10])}, which train no more and go on mixing")
    return said


def _seen(federation: Federation, single: Mapping[str, Mapping[str, Mapping[str, float]]] | None) -> list[str]:
    """Say what a single other node sees, by its distance in the graph."""
    if single is None:
        return []
    listed = _by_distance(federation, single["epsilon"])
    said = [f"privacy: for a single other node epsilon is {listed}, {TAKEN}"] if listed else []
    if QUIET in single and listed:
        quiet = _by_distance(federation, single[QUIET])
        said.append(
            "privacy: for a single other node that asks for no model (it would get it without the noise on messages) "
            f"epsilon is {quiet}"
        )
    return said


def _by_distance(federation: Federation, single: Mapping[str, Mapping[str, float]]) -> str:
    """The largest figure of each distance in the graph, in words; none where nobody is linked."""
    length = dict(nx.all_pairs_shortest_path_length(federation.graph))
    worst: dict[int, float] = defaultdict(float)
    for node, others in single.items():
        for other, found in others.items():
            away = length[int(node)].get(int(other))
            if away is not None:
                worst[away] = max(worst[away], found)
    return ", ".join(f"{found:.3g} at distance {away}" for away, found in sorted(worst.items()))
