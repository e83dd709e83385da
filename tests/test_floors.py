"""The laws of the house that can be read off the source: who imports whom, no pickle, no clock, no catch-all."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "p2pfl"
FLOORS = {
    0: "types errors check tree records draws",
    1: "algorithms mixing wrap learner models batching topology churn partition data program task quadratic demands "
    "own targets metrics share sites objective objectives statistics predict weigh partial",
    2: "protocol",
    3: "wire work turns store notes",
    4: "live simulate virtual",
    5: "toml experiment learning planned build epoch assess draw tasks simulation replay summary ledger watch view "
    "report plots run node sweep sweep_run sweep_view sweep_plot virtual_run cli __main__ __init__",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
SIBLINGS_MAY_MEET = {0, 1, 3, 5}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CLOCKS = {
    *(f"time.{name}{ns}" for name in ("time", "monotonic", "perf_counter", "process_time") for ns in ("", "_ns")),
    *(f"{owner}.{name}" for owner in ("datetime", "datetime.datetime") for name in ("now", "utcnow", "today")),
    "time.localtime", "time.gmtime", "time.ctime", "datetime.date.today", "date.today",
}  # fmt: skip
FILES = sorted(path for path in ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """`live.node` for p2pfl/live/node.py, `data` for p2pfl/data/__init__.py, `__init__` for p2pfl/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module(path) for path in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(syntax: ast.AST) -> Iterator[str]:
    """Every imported name in full, wherever it stands: `p2pfl.live.node.Task`, `numpy`. No relative imports here."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name lives"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """Of an imported name, the module of p2pfl that holds it: `live.work`; None for other packages."""
    top, *rest = name.split(".")
    if top != "p2pfl":
        return None
    return next((".".join(rest[:n]) for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in MODULES), "__init__")


def breaches(importer: str, syntax: ast.AST) -> list[str]:
    """What is wrong with the imports of a module of p2pfl."""
    package, found = importer.split(".")[0], []
    floor = FLOOR[package]
    for name in imports(syntax):
        target = own(name)
        if target is not None:
            other = target.split(".")[0]
            same = FLOOR[other] == floor and (other == package or floor in SIBLINGS_MAY_MEET)
            if not (same or FLOOR[other] < floor):
                found.append(f"{importer} (floor {floor}) imports {name} (floor {FLOOR[other]})")
            if floor == 2 and other not in ("protocol", "errors"):
                found.append(
                    f"{importer} imports {name}: protocol knows itself, p2pfl.errors and nothing else of p2pfl"
                )
        elif name.split(".")[0] in PICKLES:
            found.append(f"{importer} imports {name}: no pickle, anywhere, ever")
        elif floor < 2 and name.split(".")[0] in ("asyncio", "socket", "zmq"):
            found.append(f"{importer} imports {name}: no network below floor 3")
        elif floor == 2 and not allowed_in_protocol(name.split(".")[0]):
            found.append(
                f"{importer} imports {name}: protocol is pure: the standard library without clocks, and msgpack"
            )
    return found


def allowed_in_protocol(top: str) -> bool:
    return top == "msgpack" or (top in sys.stdlib_module_names and top not in ("time", "datetime", "asyncio", "socket"))


def clock_reads(syntax: ast.AST) -> list[str]:
    named = [ast.unparse(node) for node in ast.walk(syntax) if isinstance(node, ast.Attribute)]
    return sorted(name for name in [*named, *imports(syntax)] if name in CLOCKS)


def catches_all(syntax: ast.AST) -> list[int]:
    """Lines of bare excepts and of excepts that name (among others) Exception or BaseException."""
    lines = []
    for node in ast.walk(syntax):
        if isinstance(node, ast.ExceptHandler):
            names = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)] if node.type else ["Exception"]
            lines += [node.lineno] if {"Exception", "BaseException"} & set(names) else []
    return lines


def unpickles(syntax: ast.AST) -> list[int]:
    return [
        node.value.lineno
        for node in ast.walk(syntax)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
    ]


def test_every_module_has_a_floor() -> None:
    homeless = {name for name in MODULES if name.split(".")[0] not in FLOOR}
    assert not homeless, f"give {sorted(homeless)} a floor in FLOORS"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_keeps_the_laws(path: Path) -> None:
    name, syntax = module(path), parsed(path)
    assert breaches(name, syntax) == []
    assert catches_all(syntax) == [], "say which exceptions"
    assert unpickles(syntax) == []
    assert len(path.read_text("utf-8").splitlines()) <= 400
    if FLOOR[name.split(".")[0]] < 5 and name != "live.clock":
        assert clock_reads(syntax) == [], "time is an argument; only live/clock.py reads a clock"


@pytest.mark.parametrize(
    "importer, source",
    [
        ("tree", "from p2pfl.mixing import exchange_mix"),
        ("mixing", "def f():\n    from p2pfl import live"),
        ("simulate.loop", "from p2pfl.live.node import Task"),
        ("live.node", "import p2pfl.run"),
        ("models", "from p2pfl import ALGORITHMS"),  # the public face is floor 4
        ("protocol.peer", "from p2pfl.types import NodeId"),
        ("protocol.peer", "import numpy as np"),
        ("protocol.peer", "import time"),
        ("program", "import zmq"),
        ("run", "from pickle import loads"),
    ],
)
def test_a_breach_is_seen(importer: str, source: str) -> None:
    assert len(breaches(importer, ast.parse(source))) == 1


def test_what_is_allowed_is_no_breach() -> None:
    for importer, source in [
        ("mixing", "import jax\nfrom p2pfl.types import Array\nfrom p2pfl import tree"),
        ("build", "from p2pfl import churn, run\nfrom p2pfl.live import clock"),
        ("live.node", "from p2pfl.work import Task\nimport time\nfrom p2pfl.protocol.peer import Peer"),
        ("protocol.peer", "import msgpack\nfrom p2pfl.errors import RemoteError\nfrom p2pfl.protocol import exchange"),
    ]:
        assert breaches(importer, ast.parse(source)) == []


def test_other_faults_are_seen() -> None:
    assert catches_all(ast.parse("try:\n    pass\nexcept (OSError, Exception):\n    pass")) == [3]
    assert catches_all(ast.parse("try:\n    pass\nexcept:\n    pass")) == [3]
    assert catches_all(ast.parse("try:\n    pass\nexcept OSError:\n    pass")) == []
    assert clock_reads(ast.parse("import time\nx = time.monotonic")) == ["time.monotonic"]
    assert clock_reads(ast.parse("from time import time_ns, sleep")) == ["time.time_ns"]
    assert clock_reads(ast.parse("import datetime\ndatetime.datetime.now()")) == ["datetime.datetime.now"]
    assert unpickles(ast.parse("np.load(f, allow_pickle=True)")) == [1]
