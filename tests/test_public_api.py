"""Everything public is documented, and the public names are there."""

from __future__ import annotations

import ast
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import p2pfl

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(p2pfl.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def undocumented(node: Documented, name: str) -> Iterator[str]:
    """Public classes, functions and methods below `node` without a docstring, and `node` itself."""
    if not ast.get_docstring(node):
        yield name
    if not isinstance(node, ast.Module | ast.ClassDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from undocumented(child, f"{name}.{child.name}")


def constants(path: Path) -> Iterator[str]:
    """Names assigned at the top of a module with a string right below."""
    body = ast.parse(path.read_text("utf-8")).body
    for statement, below in itertools.pairwise(body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path: Path) -> None:
    assert list(undocumented(ast.parse(path.read_text("utf-8")), path.stem)) == []


def test_the_exported_names_exist_and_are_documented() -> None:
    """__all__ holds every public name that p2pfl/__init__.py brings in, and no other."""
    syntax = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    brought = {
        alias.asname or alias.name
        for node in syntax.body if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }  # fmt: skip
    exported = list(getattr(p2pfl, "__all__", []))
    assert len(set(exported)) == len(exported)
    assert {name for name in brought if not name.startswith("_")} <= set(exported)
    documented = {name for path in FILES for name in constants(path)}
    for name in exported:
        value = getattr(p2pfl, name)
        own = callable(value) or hasattr(value, "__path__") or hasattr(value, "__spec__")
        assert value.__doc__ if own else name in documented or name == "__version__", name


def test_what_is_missing_is_seen() -> None:
    source = '"""M."""\nclass A:\n    """A."""\n    def f(self): pass\n    def _g(self): pass\ndef h(): pass'
    assert list(undocumented(ast.parse(source), "m")) == ["m.A.f", "m.h"]


def test_every_name_in_the_tables_is_its_own() -> None:
    algorithms = importlib.import_module("p2pfl.algorithms").ALGORITHMS
    assert all(maker.__name__ == name for name, maker in algorithms.items())
