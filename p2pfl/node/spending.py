"""The private steps that a node has taken, across its processes: written down before they are taken."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

SPENT, PARTIAL = "spent.json", "spent.partial"

_LOST = "says how many private steps were taken, and can't be read; bring it back (elsewhere none would be known)"
AHEAD = 16
"""Rounds whose steps are written down at once: as many a process that ends too early may have counted for nothing."""


class SpendingFile:
    """The private local steps that a node may have taken, in its directory, in a file that is whole or not there.

    An upper bound, whatever becomes of a process: steps are taken only after it says so.
    """

    def __init__(self, directory: Path) -> None:
        self._path, self._partial = directory / SPENT, directory / PARTIAL

    def read(self, terms: str) -> int:
        """Return the steps that may have been taken; 0 where none were.

        `terms`: what a step costs, in words. Raises ValueError for a damaged file, and for steps on other terms.
        """
        try:
            table = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._path}: {_LOST}: {error}") from error
        steps = table.get("steps") if isinstance(table, dict) else None
        if type(steps) is not int or steps < 0:
            raise ValueError(f"{self._path}: {_LOST}: must be a whole number of steps")
        if table.get("terms") != terms:
            raise ValueError(
                f"{self._path}: counts steps on other terms ({table.get('terms')}) than now ({terms}); go on with "
                "those, or give another directory, and count what was spent here yourself"
            )
        return steps

    def write(self, steps: int, terms: str) -> None:
        """Keep it. Raises ValueError: a node that could not remember a step must not take it."""
        try:
            with self._partial.open("w", encoding="utf-8") as file:
                file.write(json.dumps({"steps": steps, "terms": terms}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)
            raise ValueError(
                f"{self._path}: private steps could not be written down, so none is taken: {error.strerror}; make room"
            ) from error
