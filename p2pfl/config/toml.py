"""From TOML to frozen dataclasses. Every error names file, field, value, rule and way out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from p2pfl.errors import ConfigError, nearest

NAME, ADDRESS = r"^[\w.-]+$", r"^tcp://[^/\s]+:\d{1,5}$"
Tables = Sequence[type[Any]]
"""The dataclasses that may stand for tables of a file."""


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises ConfigError naming file and line."""
    text = ""
    try:
        text = path.read_text("utf-8-sig")
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; the full path is {path.resolve()}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a directory; give the file, as in {path / 'experiment.toml'}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text in UTF-8 (byte {error.start}); a TOML file is needed") from error
    except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
        line = re.search(r"at line (\d+)", str(error))
        shown = text.split("\n")[int(line[1]) - 1].strip()[:60] if line else ""
        raise ConfigError(f"{path}: not TOML: {error}{shown and f': {shown}'}") from error


def located(name: str, beside: Path) -> Path:
    """A file named in a file: beside that file, or else in the current directory."""
    first = (beside / name).resolve()
    here = Path(name).resolve()
    return here if here.exists() and not first.exists() else first


def not_found(path: Path, field: str, name: str | None, full: str) -> str:
    """`name`: as it stands in the file; None where --set has given it."""
    if name is None or Path(name).is_absolute():
        return f"{path}: {field}={full!r}: no such file; give another path, or put the file there"
    beside, here = (path.parent / name).resolve(), Path(name).resolve()
    places = f"beside this file ({beside}) and in the current directory ({here})"
    return f"{path}: {field}={name!r}: no such file; looked for it {places}"


_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=(.*)""", re.DOTALL)


def overridden_by(table: dict[str, Any], override: str) -> tuple[str, ...]:
    """Apply one `a.b=VALUE`; VALUE is TOML, and a bare word that is no TOML is a string. Returns (a, b)."""
    match = _KEY.fullmatch(override)
    if not match:
        raise ConfigError(f"--set {override!r}: must be written a.b=VALUE, as in training.batch_size=32")
    key, text = match.groups()
    names = tuple(part.strip("\"'") for part in re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", key))
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed.pop("value")
    except (ValueError, RecursionError) as error:
        if not text.strip() or any(mark in text for mark in "\"'[]{}=\n"):
            said = str(error).replace("at line 1, column", "at column")
            raise ConfigError(
                f"--set {override!r}: {text!r} is not TOML: {said}; text with special characters stands in quotes"
            ) from error
        parsed, value = {}, text.strip()
    if parsed:
        raise ConfigError(f"--set {override!r}: holds more than one value; give --set once for each")
    for depth, name in enumerate(names[:-1]):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            whole = ".".join(names[: depth + 1])
            raise ConfigError(f"--set {override!r}: {whole} is no table; set it as a whole, as in churn=[]")
        table = inner
    table[names[-1]] = value
    return names


def parse(
    table: dict[str, Any], where: str, kind: type[Any], tables: Tables, overridden: Sequence[tuple[str, ...]] = ()
) -> Any:
    """The dataclass `kind` from a table. Raises ConfigError with a line for every fault.

    `overridden`: the fields that don't stand in the file but come from --set; an error says so.
    """
    faults = {place: f"{_path(place)}={_shown(value)}: {rule}" for place, value, rule in _unfit(table, ())}
    found = None
    try:
        # by way of JSON: there, strict means no guessing of scalars, and tables still become dataclasses
        found = TypeAdapter(kind).validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            faults.setdefault(fault["loc"], _fault(fault, kind, tables))
    if not faults:
        return found
    lines = []
    for place, text in faults.items():
        from_set = any(all(a == b for a, b in zip(names, place, strict=False)) for names in overridden)
        lines.append(f"{where}{' with --set' if from_set else ''}: {text}")
    raise ConfigError("\n".join(lines))


def _unfit(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any, str]]:
    """What TOML can say and no field can mean: (place, value, rule)."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _unfit(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unfit(item, (*place, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value, "must be a finite number"
    elif isinstance(value, datetime.date | datetime.time):
        yield place, str(value), f'no field takes a date or time; as text it stands in quotes: "{value}"'


_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text, in quotes",
    "tuple_type": "must be a list, in square brackets",
    "dict_type": "must be a table, as in {{ name = VALUE }}",
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt}",
    "too_long": "must hold at most {max_length}",
}
_PATTERNS = {
    NAME: "must be one or more letters, digits, '_', '.' or '-'",
    ADDRESS: "must be written tcp://HOST:PORT, as in tcp://192.168.0.7:5555",
}


def _fault(fault: Any, kind: type[Any], tables: Tables) -> str:
    """One of pydantic's findings in our words."""
    *table, name = fault["loc"]
    field, value, context = _path(fault["loc"]), _shown(fault["input"]), fault.get("ctx", {})
    if fault["type"] == "unexpected_keyword_argument":
        return f"{field}={value}: no such field; {nearest(name, _fields(kind, table, tables))}"
    if fault["type"] == "missing":
        inner = _kind(kind, fault["loc"], tables)
        return f"{field}: missing; " + (f"a table [{field}] must be given" if inner else "it must be given")
    if fault["type"] == "literal_error":
        expected = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{field}={value}: {nearest(fault['input'], expected)}"
    if fault["type"] == "dataclass_type":
        return f"{field}={value}: must be a table with the fields {', '.join(_fields(kind, fault['loc'], tables))}"
    if fault["type"] == "string_pattern_mismatch":
        return f"{field}={value}: {_PATTERNS[context['pattern']]}"
    rule = _RULES.get(fault["type"], fault["msg"].replace("Input should be", "must be"))
    return f"{field}={value}: {rule.format(**context)}"


def _path(place: Sequence[str | int]) -> str:
    """The field at a place as a person writes it: churn[0].event."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _shown(value: Any) -> str:
    """A value of the file in an error's text."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(kind: type[Any], place: Sequence[str | int], tables: Tables) -> type[Any] | None:
    """The dataclass of the table at a place in a file; None where there is a plain value."""
    found: type[Any] | None = kind
    for part in place:
        if isinstance(part, str):
            types = {field.name: str(field.type) for field in dataclasses.fields(found)} if found else {}
            words = re.findall(r"\w+", types.get(part, ""))
            found = next((each for each in tables if each.__name__ in words), None)
    return found


def _fields(kind: type[Any], place: Sequence[str | int], tables: Tables) -> list[str]:
    """The fields of the table at a place in a file."""
    return [field.name for field in dataclasses.fields(_kind(kind, place, tables) or kind)]
