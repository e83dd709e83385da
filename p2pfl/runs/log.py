"""The log of a process, as text or as lines of JSON, from a level on: all that is said goes through one `Log`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from p2pfl.node.said import Said, whole
from p2pfl.reporting import terminal
from p2pfl.reporting.terminal import View

FORMS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


def utc() -> datetime:
    """The time of day."""
    return datetime.now(UTC)


class Log:
    """Writes down what is said: `say` takes it, `write` gets one line for each.

    In JSON a line has time (UTC), level, node, round, event, text, and fields where there are some; node and round are
    null where nobody knows them.
    """

    def __init__(
        self, write: Callable[[str], None], form: str = "text", level: str = "info",
        now: Callable[[], datetime] = utc,
    ) -> None:  # fmt: skip
        """`form`: one of FORMS; `level`: the least of LEVELS that is written."""
        self._write, self.json, self.level, self._now = write, form == "json", LEVELS.index(level), now

    def takes(self, text: str) -> bool:
        """Return whether a line is written at all."""
        level = text.level if isinstance(text, Said) else logging.INFO
        return level >= 10 * (self.level + 1)  # as `logging` numbers them

    def say(self, text: str) -> None:
        """Write a line, if it is of the level."""
        if self.takes(text):
            self._write(self.line(text) if self.json else text)

    def line(self, text: str) -> str:
        """Return a line of JSON."""
        line = whole(text)
        table: dict[str, Any] = {
            "time": self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": logging.getLevelName(line.level).lower(),
            "node": line.node,
            "round": line.round,
            "event": line.event,
            "text": str(line),
        }
        return json.dumps(table | ({"fields": line.fields} if line.fields else {}), default=str)

    def failed(self, text: str) -> None:
        """Write what a process ends with, which stands on standard error as well; as text it stands there alone."""
        if self.json:
            self.say(Said(text, "failed", logging.ERROR))

    def view(self, console: Console, quiet: bool) -> View:
        """Return a view of a run that says what it says through this log.

        `quiet`: nothing is shown; lines of JSON, where they are asked for, are written all the same.
        """
        if self.json:
            return terminal.lines(
                self.say,
                lambda text, status: self.say(Said(text, "progress", round=status.round, rounds=status.rounds)),
            )
        return terminal.make(console, quiet, self.takes)
