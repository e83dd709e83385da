"""The graph of an epoch: what becomes of a federation's schedule when only some of its nodes are members.

An epoch is a set of members. Every node computes the same schedule from it, so that nobody has to be in charge: a named
graph is made anew for as many nodes as there are, a graph from a file is restricted to its members and healed. Nodes
whose ids lie beyond those of the experiment have joined a federation that grows: a named graph is made for their number
as well, and in a graph from a file each is given two neighbours (`topology.attached`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from p2pfl import topology
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError, TopologyError
from p2pfl.federation import secure
from p2pfl.federation.plugins import called, chosen, seeded
from p2pfl.packages import registered
from p2pfl.topology import requirements
from p2pfl.topology.graphs import checked
from p2pfl.topology.sampled import taking_part
from p2pfl.topology.schedules import sound
from p2pfl.types import Algorithm, Planning, Schedule


class Epoch(NamedTuple):
    """The schedule among members. Rows of nodes that are no members are empty; `note`: what a person should know."""

    schedule: Schedule
    note: str = ""


def suited(algorithm: Algorithm, graph: Schedule, planning: Planning, where: str) -> Schedule:
    """The schedule that an algorithm makes of a graph, if it fits. Raises TopologyError; `where` names the graph."""
    plan = graph if algorithm.plan is None else algorithm.plan(graph, planning)
    plan = taking_part(plan, planning)
    requirements.check(algorithm, plan, where)
    if algorithm.per_edge:
        return topology.stable(plan)
    return _empty(plan) if algorithm.link == "none" else plan


def named(experiment: Experiment, nodes: int) -> Schedule:
    """The graph that the experiment names, of so many nodes. Raises TopologyError."""
    table = experiment.topology
    return plan(
        str(table.graph),
        nodes,
        arguments=table.arguments,
        weights=table.weights,
        seed=experiment.seed,
        rounds=experiment.rounds,
    )


def plan(
    graph: str, nodes: int, *, arguments: Mapping[str, Any], weights: str | None, seed: int, rounds: int
) -> Schedule:
    """Return the schedule of a graph by name, as `topology.plan` does; of a user's or a package's function, too.

    The function is called with the number of nodes, its arguments, and the seed and the rounds if it has parameters of
    these names. It returns a graph of networkx on nodes 0 ... n - 1, whose edges may have an attribute `weight`, or a
    Schedule. Every node calls it by itself, so that it must return the same for the same arguments. Raises
    TopologyError.
    """
    if graph in topology.GRAPHS or not (":" in graph or registered("p2pfl.graphs")):
        return topology.plan(graph, nodes, arguments=arguments, weights=weights, seed=seed, rounds=rounds)
    where = f"topology.graph={graph!r}"
    try:
        maker = chosen(graph, "topology.graph", dict.fromkeys(topology.GRAPHS, topology.plan), "p2pfl.graphs")
        given = seeded(maker, arguments, seed=seed, rounds=rounds)
        made = called(maker, "its function", where, 1, given, nodes)
    except ConfigError as error:
        raise TopologyError(str(error)) from error
    if isinstance(made, Schedule):
        if weights is not None:
            raise TopologyError(f"topology.weights={weights!r}: {graph} returns a schedule, which has its own")
        made = sound(made, nodes, where)
        checked(topology.union(made), where)
        return made
    if not isinstance(made, nx.Graph):
        raise TopologyError(f"{where}: returned a {type(made).__name__}; must be a graph of networkx or a Schedule")
    if set(made) != {*range(nodes)}:
        shown = ", ".join(map(str, [*made][:5])) + (", ..." if len(made) > 5 else "")
        raise TopologyError(f"{where}: has the nodes {shown}; must be 0 to {nodes - 1} for nodes={nodes}")
    return topology.schedule(checked(made, where), weights)


def planner(
    experiment: Experiment, algorithm: Algorithm, whole: Schedule, samples: np.ndarray
) -> Callable[[Sequence[int]], Epoch]:
    """A function from members (ids, ascending) to their epoch. The same members give the same epoch, everywhere.

    `whole`: the schedule of all nodes; `samples` [n] int64: training rows of each, -1 where only the node knows.
    Members may have ids from n on: then so have the rows of their schedule.
    """
    nodes = whole.neighbor.shape[1]
    made: dict[tuple[int, ...], Epoch] = {tuple(range(nodes)): Epoch(whole)}

    def planned(members: tuple[int, ...]) -> Epoch:
        graph, note = among(experiment, members)
        planning = Planning(experiment.rounds, experiment.seed, known(samples, members), experiment.topology.take_part)
        able = algorithm._replace(demands=algorithm.demands._replace(models=0))  # who has too few keeps its own model
        try:
            schedule = suited(able, graph, planning, f"the graph of the {len(members)} members that are left")
        except TopologyError as error:
            note, schedule = f"nobody mixes while only these are members: {error}", _empty(graph)
        schedule, said = secure.resting(experiment, schedule, members)
        note = "; ".join(each for each in (note, said) if each)
        asked = algorithm.demands
        if asked.rests:
            schedule, resting = _rested(schedule, asked.models - 1)
            if resting:
                listed = ", ".join(str(members[i]) for i in resting)
                said = (
                    f"too few neighbours for {asked.rule}, which needs {asked.models - 1}, has node {listed}: it mixes "
                    "with nobody until there are more"
                )
                note = f"{note}; {said}" if note else said
        few = [str(members[i]) for i in np.flatnonzero(requirements.short(algorithm, schedule).any(axis=0))]
        if few:
            said = (
                f"too few neighbours for {asked.rule}, which needs {asked.models} models, has node {', '.join(few)}: "
                "it keeps its own until there are more"
            )
            note = f"{note}; {said}" if note else said
        return Epoch(_spread(schedule, members, max(nodes, members[-1] + 1)), note)

    def plan(members: Sequence[int]) -> Epoch:
        key = tuple(members)
        if key not in made:
            made[key] = planned(key)
        return made[key]

    return plan


def _rested(schedule: Schedule, least: int) -> tuple[Schedule, tuple[int, ...]]:
    """The part of each round in which every node that mixes has so many neighbours, and who is in some round not in it.

    In slots that stand for the same neighbour in every round.
    """
    if not schedule.neighbor.shape[2]:
        return schedule, ()
    rounds = [Schedule(*(part[t : t + 1] for part in schedule)) for t in range(len(schedule.neighbor))]
    left, resting = zip(*(secure.core(each, least) for each in rounds), strict=True)
    whole = Schedule(*(np.concatenate(parts) for parts in zip(*left, strict=True)))
    return topology.stable(whole), tuple(sorted({node for each in resting for node in each}))


def _empty(schedule: Schedule) -> Schedule:
    """The same without neighbours."""
    return Schedule(schedule.neighbor[..., :0], schedule.weight[..., :0], schedule.out_weight[..., :0], schedule.trains)


def known(samples: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """[m] int64 the training rows of members; -1 of one that has joined beyond those that are planned."""
    return np.array([samples[node] if node < len(samples) else -1 for node in members], np.int64)


def among(experiment: Experiment, members: tuple[int, ...]) -> tuple[Schedule, str]:
    """The graph among the members, with rows and ids 0 ... m - 1; and what a person should know of it.

    Raises TopologyError.
    """
    table, note = experiment.topology, ""
    heal, weights = table.heal, table.weights
    if table.graph is None:
        whole = topology.load(Path(str(table.file)), experiment.seed)
    else:
        try:
            return named(experiment, len(members)), ""
        except TopologyError as error:
            nodes = experiment.topology.nodes or len(members)
            grown = ", with those who have joined attached" if members[-1] >= nodes else ""
            note = f"the graph is the old one without those who are gone, healed{grown}: {error}"
            whole = topology.union(named(experiment, nodes))
    old = [node for node in members if node in whole]
    left = topology.attached(topology.restricted(whole, old, heal), members[len(old) :])
    bare = [edge for edge in left.edges if "weight" not in left.edges[edge]]
    if bare and (weights == "file" or (weights is None and len(bare) < left.number_of_edges())):
        weights = "uniform_out" if left.is_directed() else "metropolis"  # a new edge has no weight of the file
    ordered = left.__class__()
    ordered.add_nodes_from(range(len(members)))
    ordered.add_edges_from(nx.relabel_nodes(left, {node: i for i, node in enumerate(members)}).edges(data=True))
    return topology.schedule(ordered, weights), note


def _spread(schedule: Schedule, members: tuple[int, ...], nodes: int) -> Schedule:
    """The rows of the members among those of all nodes, with their own ids."""
    ids = np.asarray(members, np.int32)
    rounds, _, slots = schedule.neighbor.shape
    neighbor = np.full((rounds, nodes, slots), -1, np.int32)
    weight, out_weight = np.zeros((2, rounds, nodes, slots))
    trains = np.zeros((rounds, nodes), bool)
    trains[:] = np.asarray(schedule.trains).any(axis=1, keepdims=True)
    neighbor[:, ids] = np.where(schedule.neighbor >= 0, ids[schedule.neighbor], np.int32(-1))
    weight[:, ids], out_weight[:, ids], trains[:, ids] = schedule.weight, schedule.out_weight, schedule.trains
    return Schedule(neighbor, weight, out_weight, trains)
