"""The laws of the house that can be read off the source: who imports whom, no pickle, no clock, no catch-all.

The path is the floor: a package of p2pfl imports from packages above it in FLOORS and from no other, and no module
imports itself by way of others. docs/architecture.md says what lives where.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "p2pfl"
WORDS = ("types", "errors", "packages", "shipped", "check", "tree", "random_bits")
ABOVE: Mapping[str, tuple[str, ...]] = {
    "types": (),
    "errors": (),
    "packages": ("errors",),
    "shipped": (),
    "check": ("errors",),
    "tree": ("types",),
    "random_bits": (),
    "topology": WORDS,
    "churn": WORDS,
    "data": WORDS,
    "protocol": ("errors",),
    "trust": ("errors",),
    "config": (*WORDS, "churn", "data"),
    "reporting": (*WORDS, "topology"),
    "learning": (*WORDS, "data"),
    "algorithms": (*WORDS, "topology", "learning"),
    "methods": (*WORDS, "topology", "churn", "data", "learning", "algorithms"),
    "node": (*WORDS, "churn", "protocol", "learning"),
    "drivers": (*WORDS, "topology", "churn", "protocol", "trust", "learning", "node"),
    "federation": (
        *WORDS, "topology", "churn", "data", "protocol", "trust", "config", "learning", "algorithms", "methods", "node",
    ),
}  # fmt: skip
"""What each package may import: never a sibling that is not named, never one below."""
TOP = ("runs", "sweeps", "console", "cli_federation", "cli", "__main__", "__init__")
"""Each may import all before it, and everything in ABOVE."""
DRIVERS = ("live", "virtual", "simulate")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
NETWORK = ("asyncio", "socket", "zmq")
CLOCKS = {
    *(f"time.{name}{ns}" for name in ("time", "monotonic", "perf_counter", "process_time") for ns in ("", "_ns")),
    *(f"{owner}.{name}" for owner in ("datetime", "datetime.datetime") for name in ("now", "utcnow", "today")),
    "time.localtime", "time.gmtime", "time.ctime", "datetime.date.today", "date.today",
}  # fmt: skip
MAY_READ_A_CLOCK = ("drivers.live.clock", "runs", "sweeps", "cli")
FILES = sorted(path for path in ROOT.rglob("*.py"))
LONGEST = 60
"""Lines of a function without its docstring, at most."""


def module(path: Path) -> str:
    """`node.task` for p2pfl/node/task.py, `data` for p2pfl/data/__init__.py, `__init__` for p2pfl/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module(path) for path in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(syntax: ast.AST) -> Iterator[str]:
    """Every imported name in full, wherever it stands: `p2pfl.node.task.Task`, `numpy`. No relative imports here."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a name lives"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """Of an imported name, the module of p2pfl that holds it: `node.worker`; None for other packages."""
    top, *rest = name.split(".")
    if top != "p2pfl":
        return None
    return next((".".join(rest[:n]) for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in MODULES), "__init__")


def allowed(package: str) -> tuple[str, ...]:
    """The packages that one may import besides itself."""
    return ABOVE[package] if package in ABOVE else (*ABOVE, *TOP[: TOP.index(package)])


def breaches(importer: str, syntax: ast.AST) -> list[str]:
    """What is wrong with the imports of a module of p2pfl."""
    package, result = importer.split(".")[0], []
    for name in imports(syntax):
        target = own(name)
        if target is not None:
            other = target.split(".")[0]
            if other != package and other not in allowed(package):
                result.append(f"{importer} imports {name}: {package} stands on {', '.join(allowed(package))}")
            elif package == other == "drivers" and one_driver(target) not in ("", one_driver(importer)):
                result.append(f"{importer} imports {name}: drivers never import one another")
        elif name.split(".")[0] in PICKLES:
            result.append(f"{importer} imports {name}: no pickle, anywhere, ever")
        elif package == "protocol" and not allowed_in_protocol(name.split(".")[0]):
            result.append(
                f"{importer} imports {name}: protocol is pure: the standard library without clocks, and msgpack"
            )
        elif name.split(".")[0] in NETWORK and package not in (*TOP, "drivers"):
            result.append(f"{importer} imports {name}: the network belongs to p2pfl/drivers/live")
    return result


def one_driver(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def allowed_in_protocol(top: str) -> bool:
    return top == "msgpack" or (top in sys.stdlib_module_names and top not in ("time", "datetime", "asyncio", "socket"))


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of imports, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


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


def too_long(syntax: ast.AST) -> list[str]:
    """Functions of more than LONGEST lines without their docstring."""
    result = []
    for node in ast.walk(syntax):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            result += [f"{node.name}: {lines} lines"] if lines > LONGEST else []
    return result


def test_every_module_has_a_floor() -> None:
    homeless = {name for name in MODULES if name.split(".")[0] not in (*ABOVE, *TOP)}
    assert not homeless, f"give {sorted(homeless)} a floor"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_keeps_the_laws(path: Path) -> None:
    name, syntax = module(path), parsed(path)
    assert breaches(name, syntax) == []
    assert catches_all(syntax) == [], "say which exceptions"
    assert unpickles(syntax) == []
    assert too_long(syntax) == []
    if name not in MAY_READ_A_CLOCK and name.split(".")[0] not in MAY_READ_A_CLOCK:
        assert clock_reads(syntax) == [], "time is an argument; only drivers/live/clock.py reads a clock"


def test_packages_stand_on_one_another_without_a_circle() -> None:
    assert circle({package: set(above) for package, above in ABOVE.items()}) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module(path): {own(name) or "" for name in imports(parsed(path))} - {"", module(path)} for path in FILES}
    assert circle(graph) == []


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(module(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    assert circle({"config": {"churn"}, "churn": {"config"}}) != []  # two siblings that may meet


@pytest.mark.parametrize(
    "importer, source",
    [
        ("tree", "from p2pfl.algorithms.mixing import exchange_mix"),
        ("learning.flax", "def f():\n    from p2pfl import drivers"),
        ("drivers.simulate.loop", "from p2pfl.drivers.live import clock"),
        ("drivers.live.node", "import p2pfl.runs.run"),
        ("learning.models", "from p2pfl import ALGORITHMS"),  # the public face stands above all
        ("churn.models", "from p2pfl.config.churn import expand"),  # no siblings
        ("reporting.page", "from p2pfl.config import experiment"),
        ("runs.run", "from p2pfl.sweeps import plan"),
        ("protocol.peer", "from p2pfl.types import NodeId"),
        ("protocol.peer", "import numpy as np"),
        ("protocol.peer", "import time"),
        ("protocol.peer", "from p2pfl.trust.keyring import Keyring"),  # functions are handed in
        ("trust.keys", "import socket"),
        ("node.program", "import zmq"),
        ("runs.run", "from pickle import loads"),
    ],
)
def test_a_breach_is_seen(importer: str, source: str) -> None:
    assert len(breaches(importer, ast.parse(source))) == 1


def test_what_is_allowed_is_no_breach() -> None:
    for importer, source in [
        ("algorithms.mixing", "import jax\nfrom p2pfl.types import Array\nfrom p2pfl import tree"),
        ("runs.run", "from p2pfl import churn\nfrom p2pfl.drivers.live import clock"),
        ("drivers.live.node", "from p2pfl.node.task import Task\nimport time\nfrom p2pfl.protocol.peer import Peer"),
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
    assert too_long(ast.parse("def f():\n" + "    x = 1\n" * 61)) == ["f: 61 lines"]
