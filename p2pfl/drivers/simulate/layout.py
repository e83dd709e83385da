"""The layout of nodes over devices and of devices in chunks, and who must be shown to other devices.

Node i lies on device i // m, at place i % m. Places behind the last node are filled with nodes without neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2pfl.topology import reverse
from p2pfl.types import Schedule


class NodeLayout(NamedTuple):
    """Shape of the simulation. `size`: places a device has, a multiple of `chunk`."""

    nodes: int
    devices: int
    size: int
    chunk: int

    @property
    def places(self) -> int:
        """Of all devices."""
        return self.devices * self.size

    def padded(self, array: np.ndarray, fill: object = 0, axis: int = 0) -> np.ndarray:
        """The array with its node axis filled up to all places."""
        gap = self.places - array.shape[axis]
        if not gap:
            return array
        width = [(0, 0)] * array.ndim
        width[axis] = (0, gap)
        return np.pad(array, width, constant_values=fill)  # type: ignore[call-overload]


def layout(nodes: int, devices: int, chunk: int) -> NodeLayout:
    """As even as can be: no more devices than nodes, and no more places than needed."""
    devices = max(1, min(devices, nodes))
    least = -(-nodes // devices)
    chunks = -(-least // min(chunk, least))
    size = -(-least // chunks)
    return NodeLayout(nodes, devices, size * chunks, size)


class Tables(NamedTuple):
    """Rows of a schedule as devices see them: whom to gather from, in a table of payloads.

    The table of a device holds its own places and behind them what others exported to it (`halo`), or all places of all
    devices (not `halo`). Axis 1 of the arrays is the place, over all devices, but for `export`, where it is the device.
    """

    halo: bool
    row: np.ndarray  # [T, places, K] int32: row of the device's table; 0 for empty slots
    other: np.ndarray  # [T, places, K] int32: the neighbour's slot that stands for this node
    weight: np.ndarray  # [T, places, K]
    out_weight: np.ndarray  # [T, places, K]
    export: np.ndarray  # [T, devices, E] int32: places whose payload other devices need


def tables(
    schedule: Schedule, shape: NodeLayout, rows: Sequence[int] | None = None, exports: int | None = None
) -> Tables:
    """The tables of these rows (all unless given); with room for `exports` rows of each device (see `exported`)."""
    picked = slice(None) if rows is None else np.asarray(rows)
    neighbor, weight, out = (part[picked] for part in schedule[:3])
    empty = neighbor < 0
    other = np.maximum(reverse(schedule._replace(neighbor=neighbor, weight=weight, out_weight=out)), 0)
    target = np.where(empty, 0, neighbor)
    needed = exported(schedule, shape, rows)
    width = max((len(part) for row in needed for part in row), default=0) if exports is None else exports
    halo = shape.devices > 1 and width * 2 <= shape.size
    export = np.zeros((len(neighbor), shape.devices, width if halo else 1), np.int32)
    index = np.where(empty, 0, target)
    if shape.devices > 1 and halo:
        place = np.arange(shape.nodes)
        owner = target // shape.size
        mine = (place // shape.size)[None, :, None]
        at = np.zeros((len(neighbor), shape.nodes), np.int64)
        for t, row in enumerate(needed):
            for device, ids in enumerate(row):
                export[t, device, : len(ids)] = ids % shape.size
                at[t, ids] = np.arange(len(ids))
        far = np.take_along_axis(at[:, None, :].repeat(1, axis=1)[:, 0], target.reshape(len(neighbor), -1), axis=1)
        index = np.where(owner == mine, target % shape.size, shape.size + owner * width + far.reshape(target.shape))
        index = np.where(empty, 0, index)

    def pad(array: np.ndarray) -> np.ndarray:
        return shape.padded(array, axis=1)

    return Tables(halo, pad(index.astype(np.int32)), pad(other.astype(np.int32)), pad(weight), pad(out), export)


def exported(schedule: Schedule, shape: NodeLayout, rows: Sequence[int] | None = None) -> list[list[np.ndarray]]:
    """Per row and device: the nodes of the device whose payload another device needs."""
    if shape.devices == 1:
        return [[np.zeros(0, np.int64)]] * (len(schedule.neighbor) if rows is None else len(rows))
    found = []
    device = np.arange(shape.nodes) // shape.size
    for t in range(len(schedule.neighbor)) if rows is None else rows:
        neighbor, heard = schedule.neighbor[t], schedule.weight[t] > 0
        crossing = heard & (neighbor // shape.size != device[:, None])
        ids = np.unique(neighbor[crossing])
        found.append([ids[device[ids] == d].astype(np.int64) for d in range(shape.devices)])
    return found


def samples(rows: Sequence[np.ndarray], shape: NodeLayout) -> tuple[np.ndarray, np.ndarray]:
    """The training rows of each device in one list, node after node, and where in it each node's begin.

    Returns (index [devices, R] into the data set, first [places]); shorter lists are filled with their first row.
    """
    lists, first = [], np.zeros(shape.places, np.int64)
    for device in range(shape.devices):
        ids = range(device * shape.size, min((device + 1) * shape.size, shape.nodes))
        sizes = [len(rows[i]) for i in ids]
        first[[*ids]] = np.cumsum([0, *sizes[:-1]]) if sizes else 0
        lists.append(np.concatenate([rows[i] for i in ids]) if sizes else np.zeros(0, np.int64))
    width = max(max(map(len, lists)), 1)
    return np.stack([np.pad(each, (0, width - len(each))) for each in lists]), first
