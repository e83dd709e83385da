"""The shapes that decide the compiled program of a simulation, and the arrays that it is given."""

from __future__ import annotations

from typing import NamedTuple

from jax.sharding import PartitionSpec

from p2pfl.drivers.simulate.layout import NodeLayout
from p2pfl.types import Array, Params, State, Tree

AXIS = "nodes"
"""The mesh axis that nodes are spread over."""
OVER, WHOLE = PartitionSpec(AXIS), PartitionSpec()
ROWS = PartitionSpec(None, AXIS)  # [round or schedule row, place, ...]


class Shape(NamedTuple):
    """The facts that decide the compiled program, besides the algorithm and the model."""

    layout: NodeLayout
    slots: int
    halo: bool
    exports: int  # rows that a device shows to the others
    mixed: int  # nodes that are mixed at once; divides the places of a device
    mixing: str  # mean | dense | edges | inbox
    ages: int  # the largest age of an exchange
    keep: bool  # the models from before mixing come back
    resting: bool  # there are rounds in which nobody trains
    restarts: bool = False  # there are rounds in which nodes enter another epoch
    back: int = 0  # nodes that come in one round with nothing, at most


class Graph(NamedTuple):
    """Tables of the schedule on the devices (see layout.Tables)."""

    index: Array
    other: Array
    weight: Array
    out_weight: Array
    export: Array


class Rounds(NamedTuple):
    """The arrays of a stretch of at most R rounds; entries that its Shape does not use are None."""

    number: Array  # [R] int32
    row: Array  # [R] int32: of the tables
    trains: Array  # [R] bool: somebody trains
    rows: Array  # [R, places, S, B] int32: samples, in the device's list
    steps: Array | None  # [R, places] int32
    active: Array | None  # [R, places] bool
    arrived: Array | None  # [R, places, K] bool
    age: Array | None  # [R, places, K] int32
    present: Array | None  # [R, places, K] bool: the neighbour is there
    enters: Array | None = None  # [R, places] bool: the node enters another epoch
    back: Array | None = None  # [R, back] int32: places of nodes that come with nothing, then -1
    donor: Array | None = None  # [R, back] int32: places of those whose models they take; -1: nobody's


class Stretch(NamedTuple):
    """The inputs of a stretch of rounds."""

    count: Array  # the first `count` >= 1 of its rounds are real
    graph: Graph
    rounds: Rounds
    x: Array  # samples: [devices, rows, ...]
    y: Array
    seed: Array  # [] uint32; no constant of the program, which all seeds of a sweep have in common
    first: Params | None = None  # the model that all begin with, where nodes come with nothing


class Carry(NamedTuple):
    """The state that goes from stretch to stretch."""

    state: State  # [places, ...]
    spare: Tree  # [places, ...] the states after the local steps, and of their payloads what is not in them
    history: Tree  # [ages + 1, table, ...] payloads of the latest rounds and whether they are finite, and with them the
    # slots' own; () without ages
    drift: Tree  # [devices, ...] sum over rounds and the device's nodes of what mixing did to the mass
    models: Tree  # [places, ...] after the local steps of the last round; () unless kept


def table_rows(shape: Shape) -> int:
    """Payloads that a device gathers from."""
    layout = shape.layout
    if layout.devices == 1:
        return layout.size
    return layout.size + layout.devices * shape.exports if shape.halo else layout.places
