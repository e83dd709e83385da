"""Files that a person writes, with anything in them: a ConfigError that says what is wrong, or what stands there."""

from __future__ import annotations

import datetime
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fuzzing import LATER, Draw, Take, bent, fuzz, said, twisted

from p2pfl.config import experiment
from p2pfl.data import dictionary, layout
from p2pfl.errors import ConfigError
from p2pfl.sweeps import plan
from p2pfl.topology import files

ROOT = Path(__file__).resolve().parent.parent

VALUES: list[Any] = [
    "", "x", "a:b", "ring", "digits", "csv", "\0", "../..", "/", "/dev/null", "~", "e" * 300, "tcp://h:1",
    "tcp://[::1]:70000", 0, 1, -1, 7, 1 << 62, 10**30, 0.0, -0.5, 1e308, math.nan, math.inf, True, False, [], [[]],
    [1, "a"], {}, {"a": {"b": 1}}, {"": ""}, [{}],
    datetime.date(2026, 1, 1), datetime.time(1, 2), {"name": "x"}, {"source": "csv"}, {"graph": "ring"},
]  # fmt: skip


def changed(draw: Draw, table: Any) -> Any:
    """Return a table with other values in one place or two."""
    for _ in range(draw.randint(1, 2)):
        table = _plain(twisted(draw, table)) if draw.randrange(3) == 0 else _other(draw, table)
    return table


def _other(draw: Draw, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.randrange(6):
        name = draw.choice(sorted(value))
        if not draw.randrange(6):
            return {key: each for key, each in value.items() if key != name}
        if not draw.randrange(6):
            return value | {draw.choice(["", "x", name.upper(), name + "s", "path", "name"]): draw.choice(VALUES)}
        return value | {name: _other(draw, value[name])}
    if isinstance(value, list) and value and draw.randrange(3):
        at = draw.randrange(len(value))
        return [*value[:at], _other(draw, value[at]), *value[at + 1 :]]
    return draw.choice(VALUES)


def _plain(value: Any) -> Any:
    """What TOML can say of a value."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | bool | int | float | datetime.date | datetime.time) else repr(value)


def written(draw: Draw, table: dict[str, Any]) -> bytes:
    """A TOML file, nearly right; sometimes none at all."""
    result = changed(draw, table)
    raw = tomli_w.dumps(result if isinstance(result, dict) else {"x": result}).encode("utf-8", "replace")
    return raw if draw.randrange(4) else bent(draw, raw)


def there(pattern: str) -> list[dict[str, Any]]:
    """The files of a kind that the project itself has."""
    return [tomllib.loads(file.read_text("utf-8")) for file in sorted(ROOT.glob(pattern))]


NODE = {
    "experiment": "experiment.toml", "node": 0, "listen": "tcp://0.0.0.0:5700", "address": "tcp://h:5700",
    "peers": ["tcp://g:5700"], "out": "here",
    "data": {"source": "csv", "path": "rows.csv", "label": "ill", "layout": "l"},
}  # fmt: skip
GRAPHS = [{"edges": [[0, 1], [1, 2, 0.5]], "nodes": 3}, {"generator": "ring", "arguments": {"nodes": 4}}]
ROWS = {
    "format": 1, "kind": "classes", "predicts": ["ill"], "classes": ["no", "yes"],
    "columns": [{"name": "age", "kind": "number"}, {"name": "sex", "kind": "category", "categories": ["f", "m"]}],
}  # fmt: skip

READ: dict[str, tuple[list[dict[str, Any]], Callable[[Path], object]]] = {
    "experiment": (there("experiments/*/experiment.toml"), lambda file: experiment.load(file, find=True)),
    "node": ([NODE], experiment.load_node),
    "sweep": (there("experiments/*/sweep*.toml"), plan.read),
    "graph": ([*GRAPHS, *there("topologies/*.toml")], files.load),
    "dictionary": ([ROWS], dictionary.load),
    "layout": (there("experiments/data/*.toml"), layout.read),
}
"""Kinds of files: what stands in a good one, and what reads it."""


def reading(kind: str, folder: Path) -> Take:
    tables, read = READ[kind]
    (folder / "experiment.toml").write_text(tomli_w.dumps(READ["experiment"][0][0]))

    def take(draw: Draw) -> None:
        file = folder / "file.toml"
        file.write_bytes(written(draw, draw.choice(tables)))
        try:
            read(file)
        except ConfigError as error:
            assert str(error)

    return take


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("frames", LATER)
def test_a_file_with_anything_in_it_is_read_or_refused(
    frames: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back in the end
    fuzz(frames, lambda: reading(kind, tmp_path))


@pytest.mark.more
def test_a_graph_in_any_file_is_read_or_refused(tmp_path: Path) -> None:
    """What others write: GraphML, node-link, lists of edges."""
    good = {
        ".json": json.dumps(
            {"nodes": [{"id": 0}, {"id": "b"}], "edges": [{"source": 0, "target": "b", "weight": 0.5}]}
        ),
        ".graphml": (
            '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="w" for="edge" attr.name="weight" '
            'attr.type="double"/><graph edgedefault="undirected"><node id="a"/><node id="b"/><edge source="a" '
            'target="b"><data key="w">0.5</data></edge></graph></graphml>'
        ),
        ".csv": "source,target\na,b,0.5\nb,c\n",
        ".txt": "a b {'weight': 0.5}\nb;c\n",
    }

    def take(draw: Draw) -> None:
        ending = draw.choice([*good])
        raw = bent(draw, good[ending].encode())
        if ending == ".json" and draw.randrange(2):
            raw = said(twisted(draw, json.loads(good[ending]))).encode()
        file = tmp_path / f"graph{ending}"
        file.write_bytes(raw)
        try:
            files.load(file)
        except ConfigError as error:
            assert str(error)

    fuzz(4000, lambda: take)
