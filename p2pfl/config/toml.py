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
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from p2pfl.config.unions import NONE, RULE, fields_of, members, tagged
from p2pfl.errors import ConfigError, nearest

NAME, ADDRESS = r"^[\w.-]+$", r"^tcp://([A-Za-z0-9_.*-]+|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]):[0-9]{1,5}$"
HOST_PORT = r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"
GIVEN = "it must be given"
MISSING_PLACE = f"missing; {GIVEN}, or federation and key"
Place = tuple[str | int, ...]


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises ConfigError naming file and line."""
    text = ""
    try:
        text = path.read_text("utf-8-sig")
        return _without_0(tomllib.loads(text), str(path))
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


def _without_0(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The table, in which no text has the character 0: no name of a file can. Raises ConfigError."""

    def places(value: Any, place: Place) -> Iterator[Place]:
        if isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from places(item, (*place, key))
        elif isinstance(value, str) and "\0" in value:
            yield place

    found = next(places(table, ()), None)
    if found is not None:
        raise ConfigError(f"{where}: {_path(found)}: has the character 0 in it, which no field takes; leave it out")
    return table


def located(name: str, beside: Path) -> Path:
    """A file named in a file: beside that file, or else in the current directory. ConfigError: no file is named so."""
    first = (beside / name).resolve()
    here = Path(name).resolve()
    try:
        return here if here.exists() and not first.exists() else first
    except OSError as error:  # above all a name that is too long for any
        raise ConfigError(f"{_shown(name)}: can't be looked for: {error.strerror}; give another path") from error


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
        parsed = _without_0(tomllib.loads(f"value = {text}"), f"--set {override!r}")
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


def parse(table: dict[str, Any], where: str, kind: type[Any], overridden: Sequence[tuple[str, ...]] = ()) -> Any:
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
            place, text = _fault(fault, kind, table)
            faults.setdefault(place, text)
    if not faults:
        return found
    lines = []
    for place, text in faults.items():
        from_set = any(all(a == b for a, b in zip(names, place, strict=False)) for names in overridden)
        lines.append(f"{where}{' with --set' if from_set else ''}: {text}")
    raise ConfigError("\n".join(lines))


def plain(value: Any) -> Any:
    """The table that a dataclass comes from, of dicts and lists; fields that are not set are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value), include_extras=True)
        table: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            own, union = plain(getattr(value, field.name)), tagged(hints[field.name])
            table.update(own if union and union.inline else {} if own is None else {field.name: own})
        return table
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _unfit(value: Any, place: Place) -> Iterator[tuple[Place, Any, str]]:
    """Find values that TOML can say and no field can mean: (place, value, rule)."""
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
    ADDRESS: "must be written tcp://HOST:PORT, as in tcp://192.168.0.7:5555 or tcp://[fd00::7]:5555",
    HOST_PORT: "must be written HOST:PORT, as in 127.0.0.1:9100 or [::1]:9100",
}


class _Spot(NamedTuple):
    """A place in a file, as pydantic's location leads there."""

    place: Place  # as a person writes it
    hint: Any  # the type of what stands there
    kind: type[Any] | None  # the dataclass of the table there; None where there is a plain value


def _spot(kind: type[Any], location: Sequence[str | int]) -> _Spot:
    place: list[str | int] = []
    hint: Any = kind
    own: type[Any] | None = kind
    inside: list[Any] = []  # of a table with names of the user's own, or a choice: what comes next
    for part in location:
        if inside:
            hint, named = inside.pop()
            own = next(iter(members(hint)), None)
            place += [part] if named else []
        elif own is None and any(part == each.__name__ for each in members(hint)):  # of a union: which one
            own = next(each for each in members(hint) if part == each.__name__)
        elif isinstance(part, int):
            place.append(part)
        elif part != NONE:
            hint = get_type_hints(own, include_extras=True).get(part) if own else None
            union, known = tagged(hint), members(hint)
            own = known[0] if len(known) == 1 else None
            place += [] if union and union.inline else [part]
            inside = _inside(hint)
    return _Spot(tuple(place), hint, own)


def _inside(hint: Any) -> list[tuple[Any, bool]]:
    """Of a field that is a table of dataclasses, or one of several plain types: (type, whether a name leads to it)."""
    choices = (
        [each for each in get_args(hint) if each is not type(None)]
        if get_origin(hint) in (Union, UnionType)
        else [hint]
    )
    if len(choices) > 1 and not members(hint):
        return [(None, False)]
    only = choices[0]
    return [(get_args(only)[1], True)] if get_origin(only) is dict and members(only) else []


def _fault(fault: Any, kind: type[Any], table: dict[str, Any]) -> tuple[Place, str]:
    """One of pydantic's findings in our words, and its place."""
    *outer, name = fault["loc"] or ("",)
    around, spot = _spot(kind, outer), _spot(kind, fault["loc"])
    if fault["type"] == RULE:
        field = fault["ctx"]["field"]
        place = (*spot.place, field) if field else spot.place
        value = fault["input"].get(field) if field else fault["input"]
        shown = "" if value is None or (not field and isinstance(value, dict)) else f"={_shown(value)}"
        return place, f"{_path(place)}{shown}: {fault['ctx']['text']}"
    place = (*around.place, name) if fault["type"] == "unexpected_keyword_argument" else spot.place
    field, value, context = _path(place), _shown(fault["input"]), fault.get("ctx", {})
    if fault["type"] == "unexpected_keyword_argument":
        known = _fields(around.kind)
        if any(name in _fields(each) for each in members(around.hint)):
            own = vars(around.kind).get("__annotations__", {})  # what other kinds have too comes last
            uses = [each for each in sorted(known, key=lambda each: each not in own) if not _is_tag(around, each)]
            said = f"it uses: {', '.join(uses)}" if uses else "leave it out, or change that"
            return place, f"{field}={value}: {_said(around, table)} does not use it; {said}"
        return place, f"{field}={value}: no such field; {nearest(name, fields_of(around.kind) if around.kind else ())}"
    if fault["type"] == "missing":
        if _said(around, table):
            return place, f"{field}: missing; {_said(around, table)} needs it"
        return place, f"{field}: missing; " + (f"a table [{field}] must be given" if members(spot.hint) else GIVEN)
    return place, f"{field}={value}: {_rule(fault, spot, context)}"


def _rule(fault: Any, spot: _Spot, context: dict[str, Any]) -> str:
    if fault["type"] == "literal_error":
        expected = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return nearest(fault["input"], expected)
    if fault["type"] == "dataclass_type":
        return f"must be a table with the fields {', '.join(_fields(spot.kind))}"
    if fault["type"] == "string_pattern_mismatch":
        return _PATTERNS[context["pattern"]]
    return _RULES.get(fault["type"], fault["msg"].replace("Input should be", "must be")).format(**context)


def _said(spot: _Spot, table: Any) -> str:
    """Return the text that names the kind of a table: source='csv'; nothing where it is no member of a union."""
    union = tagged(spot.hint)
    if union is None or spot.kind is None:
        return ""
    for part in spot.place:
        table = table[part]
    defaults = {field.name: field.default for field in dataclasses.fields(spot.kind)}
    named = [(field, table.get(field, defaults[field])) for field in union.fields if field in defaults]
    return " with ".join(f"{field}={value!r}" for field, value in named)


def _is_tag(spot: _Spot, field: str) -> bool:
    """Return whether a field of a table says of what kind the table is, or holds an inlined table."""
    union, own = tagged(spot.hint), tagged(get_type_hints(spot.kind, include_extras=True)[field])
    return (union is not None and field in union.fields) or (own is not None and own.inline)


def _path(place: Sequence[str | int]) -> str:
    """The field at a place as a person writes it: churn[0].event."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _shown(value: Any) -> str:
    """A value of the file in an error's text."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(kind: type[Any] | None) -> list[str]:
    """The fields of a table."""
    return [field.name for field in dataclasses.fields(kind)] if kind else []
