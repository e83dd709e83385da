"""Columns made of others, by a few declared forms: nothing of the user's is executed.

    { of = "age", cut = [40, 60], labels = ["young", "middle", "old"] }   categories: below 40, from 40 to below 60, 60
                                                                         and more; without labels "<40", "40-60", ">=60"
    { of = "sex", map = { "1" = "m", "2" = "f" } }                        other cells for these; others = "..." for all
                                                                         that are not named, which else are refused
    { of = "height", scale = 0.01, offset = 0 }                           scale * x + offset
    { days_from = "diagnosis", to = "death", or_to = "last_contact" }     days (with years_from: years of 365.2425 days)
                                                                         to the second date, or to the third where the
                                                                         second is empty
    { any_of = { cause = ["1", "2"], status = ["dead"] } }                1 where one of the columns is one of its
                                                                         values, else 0
    { given = "death" }                                                   1 where the column is filled, else 0
    { first_of = ["weight", "weight_2"] }                                 the first that is not empty
    { absent = true }                                                     missing in all rows: this site does not have
                                                                         it, and others do

A cell that is missing stays missing in what is made of it, but for `given` and `first_of`; `any_of` is missing where no
column has one of its values and one of them is empty.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Texts
from p2pfl.data.table import Table, is_number, same
from p2pfl.errors import ConfigError, DataError, nearest

Value = TypeVar("Value")
YEAR = 365.2425
"""Days of a year, in the mean of the calendar."""
FORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cut": ("of", "labels"),
        "map": ("of", "others"),
        "scale": ("of", "offset"),
        "days_from": ("to", "or_to"),
        "years_from": ("to", "or_to"),
        "any_of": (),
        "given": (),
        "first_of": (),
        "absent": (),
    }
)
"""Field that names a form -> what else it takes."""
_NEEDS = ("of", "to")


@dataclass(frozen=True, config=STRICT)
class Derived:
    """A column of [data.derive]; the head of this module explains the forms."""

    of: str | None = None
    cut: Annotated[tuple[float, ...], LIST] | None = None
    labels: Texts | None = None
    map: dict[str, str] | None = None
    others: str | None = None
    scale: float | None = None
    offset: float | None = None
    days_from: str | None = None
    years_from: str | None = None
    to: str | None = None
    or_to: str | None = None
    any_of: dict[str, Texts] | None = None
    given: str | None = None
    first_of: Texts | None = None
    absent: Literal[True] | None = None

    @property
    def form(self) -> str:
        """The field that says which form this is. Raises ConfigError where it is none, or two."""
        found = [name for name in FORMS if getattr(self, name) is not None]
        if len(found) != 1:
            raise ConfigError(f"give one of {', '.join(FORMS)}" + (f"; given: {', '.join(found)}" if found else ""))
        return found[0]

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that it is made of."""
        named = (self.of, self.days_from, self.years_from, self.to, self.or_to, self.given)
        return (*(name for name in named if name is not None), *(self.any_of or ()), *(self.first_of or ()))

    @property
    def categories(self) -> tuple[str, ...] | None:
        """The values that a category can have, in order; None where the column is one of numbers, or of any text."""
        if self.cut is not None:
            return self.labels or _labels(self.cut)
        if self.map is None:
            return None
        values = tuple(dict.fromkeys((*self.map.values(), *(() if self.others is None else (self.others,)))))
        return None if all(map(is_number, values)) else tuple(value for value in values if value)


def judge(derive: Mapping[str, Derived]) -> None:
    """Raises ConfigError for a form that is none, lacks something, or has a field that it does not use."""
    for name, wanted in derive.items():
        try:
            _judge(wanted)
        except ConfigError as exc:
            raise ConfigError(f"derive.{name}: {exc}") from exc


def _judge(wanted: Derived) -> None:
    form = wanted.form
    for field in ("of", "labels", "others", "offset", "to", "or_to"):
        if field in FORMS[form] and field in _NEEDS and getattr(wanted, field) is None:
            raise ConfigError(f"{field}: missing; {form} needs it")
        if field not in FORMS[form] and getattr(wanted, field) is not None:
            raise ConfigError(f"{field}={getattr(wanted, field)!r}: {form} does not use it; leave it out")
    cut = wanted.cut or (0.0,)
    if form == "cut" and (not wanted.cut or list(cut) != sorted(set(cut))):
        raise ConfigError(f"cut={list(wanted.cut or ())!r}: must be one number or more, each greater than the last")
    if wanted.labels is not None and len(set(wanted.labels)) != len(cut) + 1:
        raise ConfigError(f"labels={list(wanted.labels)!r}: must be {len(cut) + 1} different names")
    for field in ("map", "any_of", "first_of"):
        if form == field and not getattr(wanted, field):
            raise ConfigError(f"{field}: is empty; name what it is made of")


def derived(table: Table, derive: Mapping[str, Derived], dates: str | None) -> Table:
    """The table with the columns that are derived, in their order: one may be made of one before it.

    dates: how days are written, as strptime has it; None: year-month-day, or day.month.year. Raises DataError with the
    line of a cell that does not fit.
    """
    for name, wanted in derive.items():
        for source in wanted.sources:
            if source not in table.names:
                raise DataError(
                    f"{table.where}: derive.{name}: {source!r} is not a column; {nearest(source, table.names)}"
                )
        table = table.with_column(name, np.array(_cells(table, name, wanted, dates), object))
    return table


def _cells(table: Table, name: str, wanted: Derived, dates: str | None) -> Sequence[str]:
    if wanted.absent:
        return [""] * len(table.cells)
    if wanted.first_of is not None:
        rows = zip(*(table.column(source) for source in wanted.first_of), strict=True)
        return [next(filter(None, row), "") for row in rows]
    if wanted.given is not None:
        return [str(int(cell != "")) for cell in table.column(wanted.given)]
    if wanted.any_of is not None:
        return _any_of(table, wanted.any_of)
    if wanted.of is None:
        return _between(table, name, wanted, dates)
    if wanted.map is not None:
        return _mapped(table, name, wanted.of, wanted.map, wanted.others)
    numbers = _each(table, name, wanted.of, _number)
    if wanted.cut is not None:
        labels, cut = wanted.categories or (), wanted.cut
        return ["" if number is None else labels[bisect.bisect_right(cut, number)] for number in numbers]
    scale, offset = wanted.scale or 0.0, wanted.offset or 0.0
    return ["" if number is None else _shown(scale * number + offset) for number in numbers]


def _labels(cut: Sequence[float]) -> tuple[str, ...]:
    between = (f"{low:g}-{high:g}" for low, high in itertools.pairwise(cut))
    return (f"<{cut[0]:g}", *between, f">={cut[-1]:g}")


def _shown(number: float) -> str:
    return f"{number:.12g}"


def _any_of(table: Table, wanted: Mapping[str, Sequence[str]]) -> list[str]:
    hit, gap = np.zeros(len(table.cells), bool), np.zeros(len(table.cells), bool)
    for source, values in wanted.items():
        known = set(map(same, values))
        hit |= np.array([cell != "" and same(cell) in known for cell in table.column(source)])
        gap |= table.column(source) == ""
    return np.where(hit, "1", np.where(gap, "", "0")).tolist()


def _mapped(table: Table, name: str, of: str, mapping: Mapping[str, str], others: str | None) -> list[str]:
    known = {same(key): value for key, value in mapping.items()}
    cells = []
    for row, cell in enumerate(table.column(of)):
        value = known.get(same(cell), others if cell else "")
        if value is None:
            raise DataError(
                f"{table.where}: line {table.lines[row]}: {of} is {cell!r}, which derive.{name}.map does not name; "
                f'{nearest(cell, mapping)}. Add it, or others = "..."'
            )
        cells.append(value)
    return cells


def _each(table: Table, name: str, of: str, read: Callable[[str], Value]) -> list[Value | None]:
    """The cells of a column as what `read` makes of them, None where they are empty."""
    found: list[Value | None] = []
    for row, cell in enumerate(table.column(of)):
        try:
            found.append(read(cell) if cell else None)
        except ValueError as exc:
            raise DataError(f"{table.where}: line {table.lines[row]}: {of} is {cell!r}; derive.{name} {exc}") from exc
    return found


def _number(cell: str) -> float:
    if not is_number(cell):
        raise ValueError("needs a number")
    return float(cell)


def _between(table: Table, name: str, wanted: Derived, dates: str | None) -> list[str]:
    def read(cell: str) -> datetime.datetime:
        return day(cell, dates)

    ends = [wanted.days_from or wanted.years_from, wanted.to, wanted.or_to]
    start, end, other = (_each(table, name, of, read) if of else [None] * len(table.cells) for of in ends)
    unit = datetime.timedelta(days=1 if wanted.days_from else YEAR)
    cells = []
    for first, last, late in zip(start, end, other, strict=True):
        until = last if last is not None else late
        cells.append("" if first is None or until is None else _shown((until - first) / unit))
    return cells


def day(cell: str, dates: str | None) -> datetime.datetime:
    """A date, with or without a time of day. Raises ValueError that says what is needed."""
    for form in (dates, None) if dates else (None, "%d.%m.%Y"):
        try:
            found = datetime.datetime.fromisoformat(cell) if form is None else datetime.datetime.strptime(cell, form)
        except ValueError:
            continue
        return found.replace(tzinfo=None)
    said = dates or '1950-12-31 or 31.12.1950; say how days are written, as in dates = "%m/%d/%Y"'
    raise ValueError(f"needs a date such as {said}")
