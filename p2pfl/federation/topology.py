"""The first stage: who may talk to whom, and what is planned to happen."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import networkx as nx

from p2pfl import churn, topology
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import epochs
from p2pfl.federation.events import newcomers, planned
from p2pfl.types import Schedule


class Topology(NamedTuple):
    """The graph that an experiment names."""

    graph: nx.Graph  # who may ever talk to whom
    schedule: Schedule  # the same, round by round; an algorithm may make another of it
    events: tuple[churn.Event, ...]  # [[churn]], but for what depends on the data

    @property
    def nodes(self) -> int:
        """The number of nodes that ever take part, as planned."""
        return len(self.graph)


def resolve_topology(experiment: Experiment) -> Topology:
    """The graph and the events that the experiment names. Raises ConfigError."""
    schedule = _schedule(experiment)
    if more := newcomers(experiment):
        schedule, _ = epochs.among(experiment, tuple(range(schedule.neighbor.shape[1] + more)))
    return Topology(topology.union(schedule), schedule, planned(experiment, schedule))


def _schedule(experiment: Experiment) -> Schedule:
    table = experiment.topology
    if (table.graph is None) == (table.file is None):
        raise ConfigError("topology: give either graph or file")
    if table.graph is not None:
        if not table.heal:
            raise ConfigError(
                "topology.heal=false: a graph by name is made anew for those who are left; leave heal out"
            )
        if table.nodes is None:
            raise ConfigError(
                "topology.nodes: missing; it must be given with topology.graph, unless one machine has all data and "
                'partition = "by_site" counts their sites'
            )
        return epochs.named(experiment, table.nodes)
    if table.arguments:
        raise ConfigError("topology.arguments: goes with topology.graph; a .toml file holds its own arguments")
    graph = topology.load(Path(str(table.file)), experiment.seed)
    if table.nodes not in (None, len(graph)):
        raise ConfigError(f"topology.nodes={table.nodes}: the graph in {table.file} has {len(graph)}; leave nodes out")
    return topology.schedule(graph, table.weights)
