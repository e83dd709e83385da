"""Checkpoints of one node: its state and a small table, in one file that is whole or not there.

The file is safetensors: whoever may read it (its owner alone) can look into it. Its metadata carry the table, what the
format has no word for, and a digest over everything, so that a torn or changed file is known as such. The checkpoint
before stays beside it. A crash between any two operations leaves at least one that can be read:

    write the partial file, sync it; current -> previous; partial -> current; sync the directory
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

from p2pfl import tree
from p2pfl.types import State

CURRENT, PREVIOUS, PARTIAL = "checkpoint.safetensors", "checkpoint.previous.safetensors", "checkpoint.partial"
FORMAT, VERSION = "p2pfl checkpoint", "1"

Table = dict[str, Any]


class Checkpoint(NamedTuple):
    """A checkpoint: the algorithm's state, a tree of arrays, and a table of JSON values."""

    state: State
    table: Table


class _Opened(NamedTuple):
    """A file that is whole, and of this federation."""

    table: Table
    schema: list[tuple[str, str, tuple[int, ...]]]
    parts: list[bytes]  # of the leaves
    keys: dict[str, str]  # of leaves that are random keys, the name of their algorithm


class _Unusable(ValueError):
    """A file that is there and can't be used; the text says why and what to do."""


class Store:
    """The checkpoints of one node in a directory. `federation`: digest of what all its nodes have in common."""

    def __init__(self, directory: Path, federation: str) -> None:
        self.directory, self._federation = directory, federation
        self._keep = True  # the current file is worth to be kept as the previous one

    def save(self, state: State, table: Table) -> str | None:
        """Write a checkpoint. None, or for a person what went wrong; then the older checkpoints are still there."""
        whole = self._file(state, table)
        partial, current = self.directory / PARTIAL, self.directory / CURRENT
        placed = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _write(partial, whole)
            if self._keep and current.exists():
                os.replace(current, self.directory / PREVIOUS)
            os.replace(partial, current)
            placed = self._keep = True
            _sync(self.directory)
        except OSError as error:
            if placed:
                return f"{current}: saved, but a power failure may undo it: {error.strerror}"
            with contextlib.suppress(OSError):
                os.unlink(partial)
            return (
                f"{current}: this checkpoint could not be saved: {error.strerror}; the node goes on, and would come "
                "back from an older one; make room or repair the disk"
            )
        return None

    def load(self, like: State | Callable[[Table], State]) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be used, and for a person why a newer one can't.

        `like`: a state of the same structure, dtypes and shapes (arrays or jax.ShapeDtypeStruct), or a function that
        makes one from the table, for states whose shape depends on it. (None, []) where nothing has been saved.
        """
        notes: list[str] = []
        for name in (CURRENT, PREVIOUS):
            path = self.directory / name
            try:
                found = _made(self._opened(path), like)
            except FileNotFoundError:
                continue
            except (_Unusable, OSError) as error:
                why = str(error) if isinstance(error, _Unusable) else f"can't be read: {error.strerror}; see to that"
                notes.append(f"{path}: {why}")
                self._keep = self._keep and name != CURRENT
                continue
            if notes:
                notes.append(f"{path}: used instead")
            return found, notes
        return None, notes

    def tables(self) -> list[Table]:
        """The tables of the checkpoints that are whole, the newest first."""
        found = []
        for name in (CURRENT, PREVIOUS):
            with contextlib.suppress(_Unusable, OSError):
                found.append(self._opened(self.directory / name).table)
        return found

    def rewind(self, round: int) -> None:
        """Drop the checkpoints that are from after a later round, by the table's `round`; one that is torn stays."""
        current, previous = self.directory / CURRENT, self.directory / PREVIOUS
        for path in (previous, current):
            with contextlib.suppress(_Unusable, FileNotFoundError):
                if self._opened(path).table.get("round", 0) > round:
                    path.unlink()
        if previous.exists() and not current.exists():
            os.replace(previous, current)

    # --- the file

    def _file(self, state: State, table: Table) -> bytes:
        """Return the whole file."""
        leaves = _leaves(state)
        arrays = {name: _data(leaf) for name, leaf in leaves}
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "federation": self._federation,
            "table": json.dumps(table, allow_nan=False),
            "schema": json.dumps(_schema(leaves)),
            "keys": json.dumps({name: str(jax.random.key_impl(leaf)) for name, leaf in leaves if _is_key(leaf)}),
        }
        meta["digest"] = _digest(meta, map(_bytes, arrays.values()))
        return save({name: array if _has_name(array.dtype) else _bytes(array) for name, array in arrays.items()}, meta)

    def _opened(self, path: Path) -> _Opened:
        raw = path.read_bytes()
        try:
            with safetensors.safe_open(path, "np") as file:
                meta = dict(file.metadata() or {})
            data = {name: tensor["data"] for name, tensor in safetensors.deserialize(raw)}
        except safetensors.SafetensorError as error:
            raise _Unusable(f"is torn or garbled ({error}); remove it") from error
        if (meta.get("format"), meta.get("version")) != (FORMAT, VERSION):
            raise _Unusable(
                f"is of format {meta.get('format')!r}, version {meta.get('version')!r}; this is {FORMAT!r}, version "
                f"{VERSION!r}; use the version of p2pfl that wrote it"
            )
        if meta.get("federation") != self._federation:
            raise _Unusable(
                f"is of another federation, {meta.get('federation')}; this one is {self._federation}: experiments "
                "differ; use the same experiment file, or another directory"
            )
        try:
            schema = [(str(name), str(dtype), tuple(shape)) for name, dtype, shape in json.loads(meta["schema"])]
            table, keys = dict(json.loads(meta["table"])), dict(json.loads(meta["keys"]))
            parts = [data[name] for name, _, _ in schema]
            whole = meta.pop("digest") == _digest(meta, parts)
        except (KeyError, ValueError, TypeError) as error:
            raise _Unusable(f"is torn or garbled ({error}); remove it") from error
        if not whole:
            raise _Unusable("is garbled: its contents are not those that were written; remove it")
        return _Opened(table, schema, parts, keys)


def _made(opened: _Opened, like: State | Callable[[Table], State]) -> Checkpoint:
    """The checkpoint in a file, if it holds such a state."""
    table, schema, parts, keys = opened
    wanted = like(table) if callable(like) else like
    leaves = _leaves(wanted)
    if differing := sorted(set(schema) ^ set(_schema(leaves))):
        name = differing[0][0]
        was, now = (next((each[1:] for each in s if each[0] == name), "nothing") for s in (schema, _schema(leaves)))
        raise _Unusable(
            f"holds another state: {name} is {was} there, {now} here ({len(differing)} differences); use the same "
            "model, algorithm and dtype"
        )
    made = [_restored(leaf, part, keys.get(name)) for (name, leaf), part in zip(leaves, parts, strict=True)]
    return Checkpoint(jax.tree.unflatten(jax.tree.structure(wanted), made), table)


def _write(path: Path, whole: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(whole)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _sync(directory: Path) -> None:
    """Let the names in a directory outlive a power failure."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _digest(meta: dict[str, str], parts: Iterable[Any]) -> str:
    """BLAKE2 of the metadata and all leaves, 32 hex digits."""
    h = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
    for part in parts:
        h.update(part)
    return h.hexdigest()


# --- leaves


def _leaves(state: State) -> list[tuple[str, Any]]:
    """Leaves by path, in the tree's own order; equal paths get a number."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = base = tree.path_name(path) or "state"
        while name in found or name == "__metadata__":
            name = f"{base}#{len(found)}"
        found[name] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return list(found.items())


def _schema(leaves: Sequence[tuple[str, Any]]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, str(leaf.dtype), tuple(leaf.shape)) for name, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _data(leaf: Any) -> np.ndarray:
    """A leaf in host memory; of random keys, the integers behind them."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")


def _bytes(array: np.ndarray) -> np.ndarray:
    """A view of its bytes."""
    return array.reshape(-1).view(np.uint8)


def _has_name(dtype: np.dtype) -> bool:
    """Return whether every safetensors has a name for a dtype; of any other a file holds the bytes."""
    return dtype == jnp.bfloat16 or (dtype.isbuiltin == 1 and dtype.kind in "biuf")


def _restored(like: Any, part: bytes, impl: str | None) -> Any:
    """The leaf like this one whose bytes these are. `impl`: of random keys, the name of their algorithm."""
    if impl is not None:
        data = jax.eval_shape(jax.random.key_data, like)
        return jax.random.wrap_key_data(jnp.array(np.frombuffer(part, data.dtype).reshape(data.shape)), impl=impl)
    array = np.frombuffer(part, np.dtype(like.dtype)).reshape(like.shape)
    return array.copy() if isinstance(like, np.ndarray | np.generic) else jnp.array(array)
