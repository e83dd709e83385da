"""The graph of an epoch: what becomes of a federation's schedule when only some of its nodes are members.

An epoch is a set of members. Every node computes the same schedule from it, so that nobody has to be in charge: a named
graph is made anew for as many nodes as there are, a graph from a file is restricted to its members and healed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np

from p2pfl import demands, topology
from p2pfl.build import Federation
from p2pfl.errors import TopologyError
from p2pfl.types import Planning, Schedule


class Epoch(NamedTuple):
    """The schedule among members. Rows of nodes that are no members are empty; `note`: what a person should know."""

    schedule: Schedule
    note: str = ""


def planner(federation: Federation) -> Callable[[Sequence[int]], Epoch]:
    """A function from members (ids, ascending) to their epoch. The same members give the same epoch, everywhere."""
    made: dict[tuple[int, ...], Epoch] = {tuple(range(len(federation.graph))): Epoch(federation.schedule)}

    def plan(members: Sequence[int]) -> Epoch:
        key = tuple(members)
        if key not in made:
            made[key] = _planned(federation, key)
        return made[key]

    return plan


def _planned(federation: Federation, members: tuple[int, ...]) -> Epoch:
    algorithm, wanted = federation.algorithm, federation.experiment
    schedule, note = _graph(federation, members)
    empty = Schedule(
        schedule.neighbor[..., :0], schedule.weight[..., :0], schedule.out_weight[..., :0], schedule.trains
    )
    samples = np.array([len(federation.partition.train[i]) for i in members], np.int64)
    if not federation.pooled and federation.task is None:  # a machine that holds one node's rows
        samples = np.where(samples > 0, samples, -1)
    try:
        if algorithm.plan is not None:
            schedule = algorithm.plan(schedule, Planning(wanted.rounds, wanted.seed, samples))
        demands.check(algorithm, schedule, f"the graph of the {len(members)} members that are left")
    except TopologyError as error:
        note = f"nobody mixes while only these are members: {error}"
        schedule = empty
    if algorithm.per_edge:
        schedule = topology.stable(schedule)
    elif algorithm.link == "none":
        schedule = empty
    return Epoch(_spread(schedule, members, len(federation.graph)), note)


def _graph(federation: Federation, members: tuple[int, ...]) -> tuple[Schedule, str]:
    """The schedule among the members, with rows and ids 0 ... m - 1."""
    table, wanted = federation.experiment.topology, federation.experiment
    note = ""
    if table.graph is not None:
        try:
            return (
                topology.plan(
                    table.graph,
                    len(members),
                    arguments=table.arguments,
                    weights=table.weights,
                    seed=wanted.seed,
                    rounds=wanted.rounds,
                ),
                "",
            )
        except TopologyError as error:
            note = f"the graph is the old one without those who are gone, healed: {error}"
        whole = topology.union(topology.plan(
            table.graph, len(federation.graph), arguments=table.arguments, weights=table.weights, seed=wanted.seed,
            rounds=wanted.rounds,
        ))  # fmt: skip
        heal, weights = True, table.weights
    else:
        whole = topology.load(Path(str(table.file)), wanted.seed)
        heal, weights = table.heal, table.weights
    left = topology.restricted(whole, members, heal)
    bare = [edge for edge in left.edges if "weight" not in left.edges[edge]]
    if (weights in (None, "file")) and bare and len(bare) < left.number_of_edges():
        weights = "uniform_out" if left.is_directed() else "metropolis"  # a new edge has no weight of the file
    renumbered = nx.relabel_nodes(left, {node: i for i, node in enumerate(members)})
    ordered = renumbered.__class__()
    ordered.add_nodes_from(range(len(members)))
    ordered.add_edges_from(renumbered.edges(data=True))
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
