"""The lives of a node, across its processes: each is greater than all before it, whatever the clock says."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from p2pfl.node.said import Said

LIFE, PARTIAL = "life.json", "life.partial"

_CAP = 1 << 62
"""What is kept is below this; a life fits into 63 bits on the wire."""


class LifeFile:
    """The last life of a node, in its directory, in a file that is whole or not there. `say` takes a line for a person.

    A life is max(the clock's milliseconds, the last life + 1, what the others hold for dead + 1). The last of the three
    is the peer's to say, once it has heard of it; it is kept as well.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory, self._say = directory, say

    def next(self, clock: int, kept: int = 0) -> int:
        """Return the life that begins now, and keep it. `kept`: of the checkpoint that it goes on from."""
        life = max(clock, self._last() + 1, kept + 1)
        self.keep(life)
        return life

    def keep(self, life: int) -> None:
        """Write it down: beside the file, and then in its place. What goes wrong is said, and the node goes on."""
        path, partial = self._directory / LIFE, self._directory / PARTIAL
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(json.dumps({"life": life}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            text = f"{path}: life {life} could not be kept: {error.strerror}; the next one begins by the clock alone"
            self._say(Said(text, "life", logging.WARNING))

    def _last(self) -> int:
        """Return the life that was kept; 0, and a word about it, where there is none that can be read."""
        path = self._directory / LIFE
        try:
            table = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return 0
        except OSError as error:
            text = f"{path}: can't be read: {error.strerror}; this life begins by the clock alone"
            self._say(Said(text, "life", logging.WARNING))
            return 0
        except ValueError:  # no JSON, or no text
            table = None
        life = table.get("life") if isinstance(table, dict) else None
        if type(life) is int and 0 <= life < _CAP:
            return life
        text = f"{path}: is garbled; this life begins by the clock alone, and the file is written anew"
        self._say(Said(text, "life", logging.WARNING))
        return 0
