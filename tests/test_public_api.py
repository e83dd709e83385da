"""Everything public is documented, and the public names are there."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import p2pfl

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(p2pfl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ROOMS = ("algorithms", "topology", "learning", "methods", "data", "churn")


def undocumented(node: Documented, name: str) -> Iterator[str]:
    """Public classes, functions and methods below `node` without a docstring, and `node` itself."""
    if not ast.get_docstring(node):
        yield name
    if not isinstance(node, ast.Module | ast.ClassDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from undocumented(child, f"{name}.{child.name}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(ast.parse(path.read_text("utf-8")), path.stem)) == []


def static_names() -> dict[str, str]:
    """What p2pfl/__init__.py brings in below TYPE_CHECKING, for checkers: name -> "module:name there"."""
    syntax = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    (guarded,) = (
        node for node in syntax.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    assert all(isinstance(node, ast.ImportFrom) for node in guarded.body)
    return {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in guarded.body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip


def test_the_lazy_names_are_the_static_ones() -> None:
    """A checker, completion, `import *` and what is there when a name is used: one list."""
    static = static_names()
    assert static.keys() == set(p2pfl.__all__) == set(dir(p2pfl))
    assert len(set(p2pfl.__all__)) == len(p2pfl.__all__)
    for name, home in static.items():
        module, _, attribute = home.partition(":")
        there = importlib.import_module(f"p2pfl.{name}" if module == "p2pfl" else module)
        assert getattr(p2pfl, name) is (there if module == "p2pfl" else getattr(there, attribute)), name
        assert getattr(p2pfl, name).__doc__, name


def test_a_misspelt_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'p2pfl' has no attribute 'dsdg'"):
        p2pfl.dsdg  # noqa: B018


def exported() -> dict[str, Callable[..., Any]]:
    """Every public function: of the front door, and of each room."""
    rooms = {name: getattr(p2pfl, name) for name in ROOMS} | {"methods.objectives": p2pfl.methods.objectives}
    rooms |= {
        f"data.{name}": importlib.import_module(f"p2pfl.data.{name}") for name in ("csv", "folder", "medmnist", "npz")
    }
    result = {}
    for room, module in {"": p2pfl, **rooms}.items():
        for name in getattr(module, "__all__", ["load"]):
            if inspect.isfunction(getattr(module, name)):
                result[f"{room}.{name}".lstrip(".")] = getattr(module, name)
    return result


@pytest.mark.parametrize("name", exported())
def test_a_public_function_is_explained_with_an_example(name: str) -> None:
    """One line, Args with every parameter, Returns, and an example."""
    function = exported()[name]
    assert wrong(function) == [], name


def wrong(function: Callable[..., Any]) -> list[str]:
    """What the docstring of a public function lacks."""
    first, *rest = inspect.cleandoc(function.__doc__ or "").splitlines()
    parts = {head: [*lines] for head, lines in sections(rest)}
    signature = inspect.signature(function)
    said = [line.partition(":")[0].strip() for line in parts.get("Args", ()) if re.match(r"    \w+: \S", line)]
    result = [] if first.endswith((".", ":")) and (not rest or not rest[0]) else ["its first line is no sentence"]
    result += [f"Args: {name}" for name in signature.parameters if name not in said]
    result += [f"Args: no parameter {name}" for name in said if name not in signature.parameters]
    if signature.return_annotation not in ("None", None) and not parts.get("Returns"):
        result.append("Returns")
    return result if any(">>> " in line for line in parts.get("Example", ())) else [*result, "Example"]


def sections(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(head, lines) of "Args:" and the like."""
    heads = [i for i, line in enumerate(lines) if re.fullmatch(r"(Args|Returns|Raises|Example):", line)]
    for start, end in itertools.pairwise([*heads, len(lines)]):
        yield lines[start].removesuffix(":"), [line for line in lines[start + 1 : end] if line]


def test_a_bad_docstring_is_seen() -> None:
    def silent(x: int) -> int:
        """Return it"""
        return x

    def told(x: int) -> None:
        """Do it.

        Args:
            x: a number.
            y: another one.

        Example:
            >>> told(1)
        """

    assert wrong(silent) == ["its first line is no sentence", "Args: x", "Returns", "Example"]
    assert wrong(told) == ["Args: no parameter y"]


def module(path: Path) -> ModuleType:
    """The module of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return importlib.import_module(".".join(("p2pfl", *parts)).removesuffix(".__init__"))


EXAMPLES = [
    pytest.param(example, id=example.name)
    for path in FILES if ">>> " in path.read_text("utf-8")
    for example in doctest.DocTestFinder().find(module(path)) if example.examples
]  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_does_what_it_says(
    example: doctest.DocTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every `>>>` line of the package, as a user types it."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_all_examples_of_the_source_are_run() -> None:
    """No `>>>` stands where doctest does not look."""
    written = sum(len(re.findall(r"^\s*>>> ", path.read_text("utf-8"), re.MULTILINE)) for path in FILES)
    assert sum(len(param.values[0].examples) for param in EXAMPLES) == written  # type: ignore[attr-defined]
    assert written > 150


def test_what_is_missing_is_seen() -> None:
    source = '"""M."""\nclass A:\n    """A."""\n    def f(self): pass\n    def _g(self): pass\ndef h(): pass'
    assert list(undocumented(ast.parse(source), "m")) == ["m.A.f", "m.h"]


def test_every_name_in_the_tables_is_its_own() -> None:
    algorithms = importlib.import_module("p2pfl.algorithms").ALGORITHMS
    assert all(maker.__name__ == name for name, maker in algorithms.items())
