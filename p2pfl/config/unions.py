"""Tagged unions: which dataclass a table of a file is, by the fields of it that name a kind.

`Annotated[A | B, Tagged("kind")]` is A where the field `kind` has a value of A's Literal, and B where it has one of
B's. So each kind has its own fields, and no table says which fields fit which kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import GetCoreSchemaHandler
from pydantic_core import ArgsKwargs, PydanticCustomError, core_schema

from p2pfl.errors import nearest
from p2pfl.packages import registered

FUNCTION = "module:function"
"""What a tag that is text, and no Literal, may be beside the names of the other kinds."""
NONE = "no kind"
"""Stands in the location of a fault where a table is of no kind."""
RULE = "rule"
"""The type of a fault that has its own text, of `refusal`."""


def refusal(text: str, field: str = "") -> PydanticCustomError:
    """A fault of a table, or of one of its fields, that no type expresses; the text is the rule and the way out."""
    return PydanticCustomError(RULE, "{text}", {"text": text, "field": field})


class Tag(NamedTuple):
    """The values of a field that name a kind."""

    names: tuple[str, ...]
    function: bool  # "module:function" is one, too, and what packages have registered
    required: bool
    group: str = ""  # of their entry points

    def fits(self, table: Mapping[str, Any], field: str) -> bool:
        """Return whether the table is of this kind, as far as the field says it."""
        if field not in table:
            return not self.required
        value = table[field]
        if not self.function or not isinstance(value, str):
            return value in self.names
        return ":" in value or (bool(self.group) and value in registered(self.group))


@dataclasses.dataclass(frozen=True)
class Tagged:
    """Annotates a union of dataclasses: `fields` narrow it down to one; a member without one of them stays.

    `missing`: what is said of a table in which no field names a kind. `inline`: the fields of the union's table stand
    in the table around it (see `inlined`). `group`: of entry points whose names the kind may have, which is that of a
    function of the user's own.
    """

    fields: tuple[str, ...]
    missing: str = "missing; it must be given"
    inline: bool = False
    group: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """The schema of the union."""
        kinds = members(source)
        tags = {kind.__name__: tags_of(kind, self.fields, self.group) for kind in kinds}
        known = {name for kind in kinds for name in fields_of(kind)}

        def choose(value: Any) -> str:
            if dataclasses.is_dataclass(value):
                return type(value).__name__
            left = self._narrowed(value, tags) if isinstance(value, dict) else []
            return left[0] if len(left) == 1 else NONE

        def refuse(value: Any) -> Any:
            raise self._refused(value, tags, known)

        choices: dict[Any, core_schema.CoreSchema] = {kind.__name__: handler.generate_schema(kind) for kind in kinds}
        choices[NONE] = core_schema.no_info_plain_validator_function(refuse)
        return core_schema.tagged_union_schema(choices, choose)

    def _narrowed(self, table: Mapping[str, Any], tags: Mapping[str, Mapping[str, Tag]]) -> list[str]:
        left = list(tags)
        for field in self.fields:
            left = [kind for kind in left if field not in tags[kind] or tags[kind][field].fits(table, field)]
        return left

    def _refused(
        self, value: Any, tags: Mapping[str, Mapping[str, Tag]], fields: Collection[str]
    ) -> PydanticCustomError:
        """Why a value is of no kind. `fields`: of all kinds."""
        if not isinstance(value, dict):
            return refusal(f"must be a table with {' or '.join(self.fields)}")
        for field in self.fields:
            known = [own[field] for own in tags.values() if field in own]
            if field in value and not any(tag.fits(value, field) for tag in known):
                if not isinstance(value[field], str) and any(tag.function for tag in known):
                    return refusal("must be text, in quotes", field)
                more = f'; or "{FUNCTION}"' if any(tag.function for tag in known) else ""
                names = [name for tag in known for name in tag.names]
                names += registered(self.group) if more else ()
                return refusal(nearest(value[field], names) + more, field)
        near = {name: nearest(name, self.fields) for name in value if name not in fields}
        for name, text in near.items():
            if text.startswith("did you mean"):
                return refusal(f"no such field; {text}", name)
        return refusal(self.missing, self.fields[0] if len(self.fields) == 1 else "")


def fields_of(kind: type[Any]) -> list[str]:
    """The fields that stand in the table of a dataclass, with those of inlined tables."""
    hints, result = get_type_hints(kind, include_extras=True), []
    for field in dataclasses.fields(kind):
        union = tagged(hints[field.name])
        inner = members(hints[field.name]) if union and union.inline else ()
        result += [name for each in inner for name in fields_of(each)] or [field.name]
    return list(dict.fromkeys(result))


def members(hint: Any) -> tuple[type[Any], ...]:
    """The dataclasses that a value of this type may be or hold."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return (hint,)
    inner = get_args(hint)[:1] if hasattr(hint, "__metadata__") else get_args(hint)
    return tuple(each for part in inner for each in members(part))


def tagged(hint: Any) -> Tagged | None:
    """The annotation of a union, wherever it stands in a type."""
    own = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Tagged)), None)
    inner = (tagged(part) for part in get_args(hint) if not isinstance(part, Tagged))
    return own or next((each for each in inner if each), None)


def tags_of(kind: type[Any], fields: Sequence[str], group: str = "") -> dict[str, Tag]:
    """The tags of a member of a union, by field. `group`: see `Tagged`."""
    hints = get_type_hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    found = {}
    for field in fields:
        if field in hints:
            names = get_args(hints[field]) if get_origin(hints[field]) is Literal else ()
            found[field] = Tag(names, not names, field in required, group)
    return found


def inlined(field: str, names: Sequence[str]) -> Callable[[Any], Any]:
    """A validator to run before a dataclass's own: of its table, these names make up the table `field`."""

    def gather(table: Any) -> Any:
        if isinstance(table, ArgsKwargs) or not isinstance(table, dict):
            return table
        own = {name: table[name] for name in names if name in table}
        return {**{name: value for name, value in table.items() if name not in own}, field: own}

    return gather
