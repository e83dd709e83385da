"""TOML files that say something of data, as dataclasses. Every error names file, field, value and rule."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from p2pfl.errors import DataError


def table(file: Path, what: str) -> dict[str, Any]:
    """Return what stands in a file. `what` it should be: "a layout". Raises DataError."""
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as exc:
        raise DataError(f"{file}: can't be read: {exc.strerror}") from exc
    except ValueError as exc:  # not UTF-8, or not TOML
        raise DataError(f"{file}: not {what} in TOML: {exc}") from exc


def made(kind: type[Any], table: dict[str, Any], file: Path, what: str) -> Any:
    """Make a dataclass of `kind` from what stands in a file. Raises DataError, a line for each fault."""
    try:
        # by way of JSON: there, strict means no guessing of scalars, and tables still become dataclasses
        return TypeAdapter(kind).validate_json(json.dumps(table, default=str))
    except ValidationError as exc:
        faults = dict.fromkeys(_fault(fault, what) for fault in exc.errors(include_url=False))
        raise DataError("\n".join(f"{file}: {fault}" for fault in faults)) from exc


def _fault(fault: Any, what: str) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).removeprefix(".")
    value = repr(fault["input"])
    value = value if len(value) <= 60 else f"{value[:57]}..."
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{place}={value}: no such field of {what}; docs/data.md lists them"
    if fault["type"] == "missing":
        return f"{place}: missing; it must be given"
    return f"{place}={value}: {fault['msg'].replace('Input should be', 'must be')}"
