"""Checkpoints: every state comes back bit for bit, and no crash, torn file or full disk costs more than the newest."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors

from p2pfl import tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.learning.quadratic import learner
from p2pfl.node import checkpoint
from p2pfl.node.checkpoint import CURRENT, PARTIAL, PREVIOUS, Store
from p2pfl.node.program import compile

FEDERATION = "f" * 32


def state(value: float) -> dict[str, Any]:
    return {"x": jnp.full((3, 2), value, jnp.float32), "n": np.full(4, int(value))}


def same(a: Any, b: Any) -> bool:
    """Bitwise, with structure, dtypes and kinds of leaves."""

    def plain(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    one, other = jax.tree.map(plain, a), jax.tree.map(plain, b)
    kinds = [type(x) is type(y) and x.dtype == y.dtype for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    return (
        bool(jax.tree.structure(a) == jax.tree.structure(b)) and tree.digest(one) == tree.digest(other) and all(kinds)
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_state_of_every_algorithm_comes_back(name: str, tmp_path: Path, optax_promotes: None) -> None:
    plain = optax.sgd(0.1)
    gathers = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    for slots, optimizer in ((3, plain if name == "qg_dsgdm" else gathers), (0, plain)):
        program = compile(ALGORITHMS[name](learner(3), optimizer), learner(3), slots, seed=1)
        kept = jax.tree.map(lambda leaf: leaf + 1 if leaf.dtype.kind == "f" else leaf, program.init(5))
        kept_by = Store(tmp_path, FEDERATION)
        assert kept_by.save(kept, {"round": 7}) is None
        for like in (program.init(1), jax.eval_shape(lambda made=program: made.init(1))):
            found, notes = Store(tmp_path, FEDERATION).load(like)
            assert found is not None
            assert found.table == {"round": 7}
            assert same(found.state, kept)
            assert not notes


def test_every_kind_of_leaf_comes_back(tmp_path: Path) -> None:
    class Pair(NamedTuple):
        a: Any
        b: Any

    rng = np.random.default_rng(0)
    nan = np.frombuffer(b"\x01\x00\x00\x00\x00\x00\xf8\x7f" * 2, np.float64)  # a NaN with bits of its own
    kept = {
        "float64": rng.normal(size=(2, 3)),
        "nan": nan,
        "bfloat16": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "float8": jnp.arange(5).astype(jnp.float8_e4m3fn),
        "complex": np.array([1 + 2j]),
        "ints": [np.array([-1], np.int8), np.array([2**64 - 1], np.uint64), jnp.int32(3), np.array([True, False])],
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        "empty": (jnp.zeros((0, 3)), None, {}),
        "none": Pair(None, np.array([[1.5]], np.float32)),
        "a/b": np.ones(1),
        "a": {"b": np.zeros(1)},
        "__metadata__": np.ones(2),
        "order": np.asfortranarray(rng.normal(size=(3, 4))),
    }
    assert Store(tmp_path, FEDERATION).save(kept, {"text": "ü", "list": [1, 0.1, None, {"x": True}]}) is None
    found, notes = Store(tmp_path, FEDERATION).load(kept)
    assert found is not None
    assert not notes
    assert same(found.state, kept)
    assert found.state["nan"].tobytes() == nan.tobytes()
    assert found.table == {"text": "ü", "list": [1, 0.1, None, {"x": True}]}
    assert jax.random.key_impl(found.state["keys"]) == "rbg"
    found.state["float64"][0] = 0  # what is given back may be written to
    assert Store(tmp_path, FEDERATION).save(np.ones(2), {}) is None
    single, _ = Store(tmp_path, FEDERATION).load(np.zeros(2))
    assert single is not None
    assert same(single.state, np.ones(2))


def test_others_can_read_the_file(tmp_path: Path) -> None:
    Store(tmp_path, FEDERATION).save({"w": np.arange(3.0), "b": jnp.ones(2, jnp.bfloat16)}, {"round": 7})
    with safetensors.safe_open(tmp_path / CURRENT, "np") as file:
        assert set(file.keys()) == {"w", "b"}
        assert file.get_tensor("w").tolist() == [0, 1, 2]
        assert json.loads(file.metadata()["table"]) == {"round": 7}
        assert file.metadata()["federation"] == FEDERATION


def test_the_shape_of_a_state_may_depend_on_the_table(tmp_path: Path) -> None:
    Store(tmp_path, FEDERATION).save(np.arange(5), {"slots": 5})
    found, _ = Store(tmp_path, FEDERATION).load(lambda table: np.zeros(table["slots"], np.int64))
    assert found is not None
    assert found.state.tolist() == [0, 1, 2, 3, 4]


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    """With the leaves in the order of the state, as the first versions wrote them; the library sorts them otherwise."""
    kept = {
        "a": np.array([1.5, -2.0, 0.1]), "b": np.array([True, False]), "h": jnp.array([1, 2], jnp.bfloat16),
        "key": jax.random.key(3), "odd": jnp.arange(3).astype(jnp.float8_e4m3fn),
    }  # fmt: skip
    leaves = [  # name; dtype and shape in the file; dtype and shape in the state; bytes
        ("a", "F64", [3], "float64", [3], b"".join(struct.pack("<d", value) for value in (1.5, -2.0, 0.1))),
        ("b", "BOOL", [2], "bool", [2], b"\x01\x00"),
        ("h", "BF16", [2], "bfloat16", [2], b"\x80\x3f\x00\x40"),
        ("key", "U32", [2], "key<fry>", [], b"\x00\x00\x00\x00\x03\x00\x00\x00"),
        ("odd", "U8", [3], "float8_e4m3fn", [3], b"\x00\x38\x40"),
    ]
    meta = {
        "format": "p2pfl checkpoint", "version": "1", "federation": FEDERATION, "table": '{"round": 7}',
        "schema": json.dumps([[name, dtype, shape] for name, _, _, dtype, shape, _ in leaves]),
        "keys": '{"key": "threefry2x32"}',
    }  # fmt: skip
    data = b"".join(leaf[-1] for leaf in leaves)
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode() + data, digest_size=16).hexdigest()
    entries: dict[str, Any] = {"__metadata__": {**meta, "digest": digest}}
    at = 0
    for name, word, shape, _, _, part in leaves:
        entries[name] = {"dtype": word, "shape": shape, "data_offsets": [at, at + len(part)]}
        at += len(part)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / CURRENT).write_bytes(len(header).to_bytes(8, "little") + header + data)
    found, notes = Store(tmp_path, FEDERATION).load(kept)
    assert notes == []
    assert found is not None
    assert same(found.state, kept)
    assert found.table == {"round": 7}


def test_nothing_there_is_a_first_start(tmp_path: Path) -> None:
    kept_by = Store(tmp_path / "not" / "made", FEDERATION)
    assert kept_by.load(state(0)) == (None, [])
    assert kept_by.save(state(1), {}) is None  # makes the directory
    found, notes = kept_by.load(state(0))
    assert found is not None
    assert same(found.state, state(1))
    assert not notes


# --- crashes: what is written up to any operation leads to a checkpoint


OPERATIONS = ("open", "write", "fsync", "close", "replace")


class Crash(BaseException):
    """The process ends here: nothing that would clean up runs, so no `except` of the product may catch it."""


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, fault: BaseException) -> Iterator[str]:
    """Raise `fault` instead of the operation number `at`; yields the names of operations as they come."""
    count, seen = itertools.count(), []

    def wrapped(name: str) -> Any:
        true = getattr(os, name)

        def operation(*arguments: Any) -> Any:
            seen.append(name)
            if next(count) == at:
                if name == "write":  # half of it
                    true(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise fault
            return true(*arguments)

        return operation

    with monkeypatch.context() as patched:
        for name in OPERATIONS:
            patched.setattr(os, name, wrapped(name))
        yield "begun"
    yield from seen


def saves(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, fault: BaseException, value: float) -> Any:
    """Save a state with a fault at operation `at`. (what save said, how many operations there were)."""
    steps = interrupted(monkeypatch, at, fault)
    next(steps)
    try:
        said: Any = Store(folder, FEDERATION).save(state(value), {"round": value})
    except Crash as crash:
        said = crash
    return said, len(list(steps))


def loaded(folder: Path) -> float | None:
    found, _ = Store(folder, FEDERATION).load(state(0))
    assert found is None or same(found.state, state(found.table["round"]))
    return None if found is None else found.table["round"]


def all_operations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    for value in (1.0, 2.0, 3.0):
        said, count = saves(folder, monkeypatch, -1, Crash(), value)
        assert said is None
    return int(count)


def test_a_crash_between_any_two_operations_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = all_operations(tmp_path / "whole", monkeypatch)
    assert count == len(["open", "write", "fsync", "close", *["replace"] * 2, "open", "fsync", "close"])
    for before, at in itertools.product(range(3), range(count)):
        folder = tmp_path / f"{before}-{at}"
        for value in range(1, before + 1):
            assert Store(folder, FEDERATION).save(state(value), {"round": value}) is None
        saves(folder, monkeypatch, at, Crash(), 9.0)
        assert loaded(folder) in ({before, 9.0} if before else {None, 9.0})
        assert Store(folder, FEDERATION).save(state(10), {"round": 10}) is None  # the next one is as good as any
        assert loaded(folder) == 10
        assert not (folder / PARTIAL).exists() and not (folder / CURRENT).stat().st_mode & 0o077
        (folder / CURRENT).unlink()
        assert loaded(folder) in {None, before, 9.0}
        assert before == 0 or loaded(folder) is not None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_fault_of_the_disk_costs_this_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    count = all_operations(tmp_path / "whole", monkeypatch)
    for at in range(count):
        folder = tmp_path / str(at)
        for value in (1, 2):
            assert Store(folder, FEDERATION).save(state(value), {"round": value}) is None
        said, _ = saves(folder, monkeypatch, at, OSError(code, os.strerror(code)), 3.0)
        assert CURRENT in said
        assert os.strerror(code) in said
        assert loaded(folder) == (3 if "power failure" in said else 2)
        assert not (folder / PARTIAL).exists()
        assert Store(folder, FEDERATION).save(state(4), {"round": 4}) is None
        assert loaded(folder) == 4


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="there is no /dev/full here")
def test_a_full_disk(tmp_path: Path) -> None:
    """A device that is always full stands for the partial file."""
    kept_by = Store(tmp_path, FEDERATION)
    assert kept_by.save(state(1), {"round": 1}) is None
    (tmp_path / PARTIAL).symlink_to("/dev/full")
    said = kept_by.save(state(2), {"round": 2})
    assert said is not None
    assert "could not be saved: No space left on device; the node goes on" in said
    assert loaded(tmp_path) == 1
    assert kept_by.save(state(3), {"round": 3}) is None
    assert loaded(tmp_path) == 3


def test_what_no_table_can_hold_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store(tmp_path, FEDERATION).save(state(1), {"x": float("nan")})
    assert not list(tmp_path.iterdir())


# --- files that can't be used


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A directory with a current and a previous checkpoint."""
    for value in (1, 2):
        assert Store(tmp_path, FEDERATION).save(state(value), {"round": value}) is None
    return tmp_path


def test_a_file_torn_at_any_length_gives_way_to_the_one_before(two: Path) -> None:
    whole = (two / CURRENT).read_bytes()
    for length in [0, 1, 7, 8, 9, 100, 400, *range(len(whole) - 60, len(whole))]:
        (two / CURRENT).write_bytes(whole[:length])
        found, notes = Store(two, FEDERATION).load(state(0))
        assert found is not None
        assert found.table["round"] == 1
        assert [CURRENT in notes[0], PREVIOUS in notes[1]] == [True, True]
        assert "is torn or garbled" in notes[0]
        assert notes[1].endswith("used instead")


def test_any_changed_byte_is_seen(two: Path) -> None:
    whole = bytearray((two / CURRENT).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 7), *range(header, len(whole), 5)]
    for place in places:
        if whole[place : place + 1] == b" " and place > header - 8:
            continue  # what fills the header up
        changed = whole.copy()
        changed[place] ^= 1 << place % 7
        (two / CURRENT).write_bytes(changed)
        found, notes = Store(two, FEDERATION).load(state(0))
        assert found is not None
        assert found.table["round"] == 1, place
        assert len(notes) == 2


def test_a_torn_file_does_not_take_the_place_of_a_good_one(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (two / CURRENT).write_bytes(b"torn")
    kept_by = Store(two, FEDERATION)
    kept_by.load(state(0))
    assert kept_by.save(state(3), {"round": 3}) is None
    assert loaded(two) == 3
    (two / CURRENT).unlink()
    assert loaded(two) == 1
    assert kept_by.save(state(4), {"round": 4}) is None
    assert kept_by.save(state(5), {"round": 5}) is None
    (two / CURRENT).unlink()
    assert loaded(two) == 4


def test_neither_usable_is_said_for_both(two: Path) -> None:
    for name in (CURRENT, PREVIOUS):
        (two / name).write_bytes(b"torn")
    found, notes = Store(two, FEDERATION).load(state(0))
    assert found is None
    assert [CURRENT in notes[0], PREVIOUS in notes[1]] == [True, True]


@pytest.mark.parametrize(
    "other, like, why",
    [
        ({"federation": "0" * 32}, state(0), "is of another federation, 0000.*use the same experiment file"),
        ({"version": "2"}, state(0), "version '2'; this is .*version '1'; use the version of p2pfl that wrote it"),
        ({"format": "pt"}, state(0), "is of format 'pt'"),
        ({}, {**state(0), "x": jnp.zeros((3, 3))}, r"x is \('float32', \(3, 2\)\) there, \('float32', \(3, 3\)\) here"),
        ({}, {"x": state(0)["x"]}, r"n is \('int64', \(4,\)\) there, nothing here \(1 differences\); use the same"),
        ({}, {**state(0), "x": jnp.zeros((3, 2), jnp.bfloat16)}, "holds another state: x"),
        ({}, {**state(0), "m": jnp.zeros(1)}, r"m is nothing there"),
    ],
)
def test_a_foreign_file_says_so(two: Path, monkeypatch: pytest.MonkeyPatch, other: Any, like: Any, why: str) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "VERSION", other.get("version", checkpoint.VERSION))
        patched.setattr(checkpoint, "FORMAT", other.get("format", checkpoint.FORMAT))
        Store(two, other.get("federation", FEDERATION)).save(state(3), {"round": 3})
    found, notes = Store(two, FEDERATION).load(like)
    assert len(notes) == 2
    assert re.search(why, notes[0])
    assert found is None if not other else found is not None and found.table["round"] == 2


def test_a_directory_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / CURRENT).mkdir()
    found, notes = Store(tmp_path, FEDERATION).load(state(0))
    assert found is None
    assert "can't be read: Is a directory" in notes[0]
