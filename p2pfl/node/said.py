"""Lines that a node says to a person, with what a program wants to know of each: its level, its event, its fields.

Whoever takes lines takes them as text (`say: Callable[[str], None]`); only who writes them down looks for more.
"""

from __future__ import annotations

import logging
from typing import Any, Self

SAID = "said"
"""The event of a line that names none."""

WORTH_A_WARNING = frozenset(
    {"absent", "alone", "conflict", "crash", "detected", "differs", "late", "membership", "paused", "reborn", "removed",
     "returned", "skipped", "waiting"}
)  # fmt: skip
"""Events of events.jsonl that cost something, or that somebody should look into."""


class Said(str):
    """A line of text that also says what it is about.

    `level`: of `logging`. `node`: that says it; None: not a node, or not known here. `round`: that the node is in.
    """

    event: str
    level: int
    node: int | None
    round: int | None
    fields: dict[str, Any]

    def __new__(
        cls, text: str, event: str = SAID, level: int = logging.INFO, node: int | None = None,
        round: int | None = None, **fields: Any,
    ) -> Self:  # fmt: skip
        """`fields`: what else a program wants to know, as JSON has it."""
        made = super().__new__(cls, text)
        made.event, made.level, made.node, made.round, made.fields = event, level, node, round, fields
        return made


def whole(text: str, node: int | None = None, round: int | None = None) -> Said:
    """Return any line as `Said`, with the node and the round where it does not have them.

    >>> line = whole(Said("leaving", "leaving", logging.WARNING, round=3), node=7, round=4)
    >>> line, line.event, line.node, line.round
    ('leaving', 'leaving', 7, 3)
    """
    if not isinstance(text, Said):
        return Said(text, node=node, round=round)
    there = text.node if text.node is not None else node, text.round if text.round is not None else round
    return Said(text, text.event, text.level, *there, **text.fields)


def level_of(event: str) -> int:
    """Return the level of an event of events.jsonl."""
    return logging.WARNING if event in WORTH_A_WARNING else logging.INFO
