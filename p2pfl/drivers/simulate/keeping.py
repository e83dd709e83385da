"""Checkpoints of a simulation: all that a round leaves behind, from which another process goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.drivers.simulate.plan import Clock
from p2pfl.drivers.simulate.shapes import Carry, Shape, table_rows
from p2pfl.drivers.simulate.simulation import Evaluated, How
from p2pfl.errors import ConfigError
from p2pfl.node.checkpoint import Store, Table

_SHARE = 20
"""Between two checkpoints a simulation computes for at least so many times as long as the first of them took ..."""
_LEAST = 1.0
"""... and for so many seconds."""


class Timed(NamedTuple):
    """The time of a simulation up to a round, in all its processes."""

    first: float = 0.0  # seconds until its first round was done
    seconds: float = 0.0  # of the rounds that are counted
    rounds: int = 0
    steps: int = 0


class KeptSimulation(NamedTuple):
    """A simulation after a round."""

    round: int
    carry: Carry  # `spare` is nothing but room
    since: np.ndarray  # of voids.Divergence
    before: list[np.ndarray]  # of voids.Voids
    voided: int
    last: Evaluated | None  # the latest evaluation
    timed: Timed


Begun = Callable[[int, Table, Evaluated | None], None]
"""Takes the round after which a simulation goes on (0: it begins), the table that `beside` had made, and its latest
evaluation; before any progress is told."""


class Keeper:
    """Keeps a simulation in a store, and brings it back."""

    def __init__(
        self,
        store: Store,
        every: int,
        now: Clock,
        beside: Callable[[], Table],
        begun: Begun,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`every`: rounds from one checkpoint to the next, at least. `beside`: what else the table is to hold, of JSON
        values; called before a checkpoint is written. `say` takes a line for a person.
        """
        self._store, self._every, self._now = store, every, now
        self._beside, self._begun, self._say = beside, begun, say
        self._saved, self._ended, self._took = 0, now(), 0.0

    def chosen(self, how: How) -> How:
        """Compute as many nodes at once, on as many devices, as before, unless told otherwise: bits depend on it."""
        table: Table = next(iter(self._store.tables()), {})
        return how._replace(chunk=how.chunk or table.get("chunk"), devices=how.devices or table.get("devices"))

    def due(self, round: int, rounds: int, late: int) -> bool:
        """Return whether a checkpoint is to be written after a round.

        None in the last `late` rounds: what is open there depends on how many rounds there are, and more may be asked
        for later. One at the end, and else one in a while, so that they cost little of the time.
        """
        if round > rounds - late or round == self._saved:
            return False
        patient = self._now() - self._ended >= max(_LEAST, _SHARE * self._took)
        return round == rounds - late or (round - self._saved >= self._every and patient)

    def save(self, shape: Shape, kept: KeptSimulation) -> float:
        """Write a checkpoint; returns the seconds that it took. What goes wrong is said, and the simulation goes on."""
        began, at, carry = self._now(), shape.layout, kept.carry
        last = {} if kept.last is None else {k: np.asarray(v) for k, v in kept.last._asdict().items() if v is not None}
        cut = {"state": carry.state, "models": carry.models}
        state = {
            "nodes": jax.tree.map(lambda leaf: leaf[: at.nodes], cut) if at.places > at.nodes else cut,
            "apart": {"history": carry.history, "drift": carry.drift},
            "since": kept.since,
            "before": kept.before,
            "last": last,
        }
        table = {
            **self._beside(),
            "round": kept.round,
            "chunk": at.chunk,
            "devices": at.devices,
            "rows": table_rows(shape),
            "voided": kept.voided,
            "timed": kept.timed._asdict(),
            "before": [_like(each) for each in kept.before],
            "last": {name: _like(array) for name, array in last.items()},
        }
        if (wrong := self._store.save(state, table)) is not None:
            self._say(f"no checkpoint after round {kept.round}: {wrong}")
        self._saved, self._ended = kept.round, self._now()
        self._took = self._ended - began
        return self._took

    def load(self, shape: Shape, carry: Carry, rounds: int, late: int) -> KeptSimulation | None:
        """Return the latest that can be used; None where a simulation is to begin, with this carry.

        Raises ConfigError where what is on its way can't be laid over other devices.
        """
        self._store.rewind(rounds - late)
        saved, notes = self._store.load(lambda table: _wanted(table, shape, carry))
        for note in notes:
            self._say(note)
        if saved is None:
            self._begun(0, {}, None)
            return None
        table, state = saved.table, saved.state
        self._saved = table["round"]
        last = _evaluated(state["last"]) if state["last"] else None
        self._begun(table["round"], table, last)
        return KeptSimulation(
            round=table["round"],
            carry=_placed(carry, state, shape, table),
            since=state["since"],
            before=state["before"],
            voided=table["voided"],
            last=last,
            timed=Timed(**table["timed"]),
        )


def _like(array: np.ndarray) -> list[Any]:
    return [array.dtype.str, [*array.shape]]


def _empty(like: list[Any]) -> np.ndarray:
    return np.empty(like[1], np.dtype(like[0]))


def _wanted(table: Table, shape: Shape, carry: Carry) -> Any:
    """The state that a checkpoint with this table should hold."""
    nodes, devices = shape.layout.nodes, table["devices"]

    def of(leaf: Any, axis: int, many: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leaf.shape[:axis], many, *leaf.shape[axis + 1 :]), leaf.dtype)

    if carry.history != () and (devices, table["rows"]) != (shape.layout.devices, table_rows(shape)):
        raise ConfigError(
            f"driver.devices={shape.layout.devices}: with network.late a simulation that began on {devices} devices "
            f"goes on on as many; set driver.devices={devices}"
        )
    return {
        "nodes": jax.tree.map(lambda leaf: of(leaf, 0, nodes), {"state": carry.state, "models": carry.models}),
        "apart": {"history": carry.history, "drift": jax.tree.map(lambda leaf: of(leaf, 0, devices), carry.drift)},
        "since": np.empty(nodes, np.int64),
        "before": [_empty(like) for like in table["before"]],
        "last": {name: _empty(like) for name, like in table["last"].items()},
    }


def _placed(carry: Carry, state: Any, shape: Shape, table: Table) -> Carry:
    """The first carry with what was kept in the place of what it holds."""

    def rows(first: Any, kept: Any) -> Any:
        whole = jnp.concatenate([kept, first[kept.shape[0] :]]) if len(first) > len(kept) else kept
        return jax.device_put(whole, first.sharding)

    def sums(first: Any, kept: Any) -> Any:  # of the devices, whose sum alone counts
        if len(first) != len(kept):
            kept = jnp.zeros_like(first).at[0].set(kept.sum(axis=0))
        return jax.device_put(kept, first.sharding)

    nodes, apart = state["nodes"], state["apart"]
    return Carry(
        state=jax.tree.map(rows, carry.state, nodes["state"]),
        spare=carry.spare,
        history=jax.tree.map(lambda first, kept: jax.device_put(kept, first.sharding), carry.history, apart["history"]),
        drift=jax.tree.map(sums, carry.drift, apart["drift"]),
        models=jax.tree.map(rows, carry.models, nodes["models"]),
    )


def _evaluated(kept: dict[str, np.ndarray]) -> Evaluated:
    arrays: dict[str, Any] = {name: kept.get(name) for name in Evaluated._fields}
    return Evaluated(**{**arrays, "round": int(kept["round"]), "consensus_distance": float(kept["consensus_distance"])})
