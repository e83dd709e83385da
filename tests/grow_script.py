"""`p2pfl node FILE` that is told on its standard input how many nodes there can be: a number a line, as it grows.

python grow_script.py FILE ADMITTED [--resume]
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from p2pfl.drivers.live import node as live
from p2pfl.node.result import NodeResult
from p2pfl.runs import node


class Told(live.LiveNode):
    """A node that whoever vouches for newcomers tells of them while it runs."""

    def run(self, ready: Callable[[], None], listening: Callable[[], None] = lambda: None) -> NodeResult:
        threading.Thread(target=self._listen, daemon=True).start()
        return super().run(ready, listening)

    def _listen(self) -> None:
        for line in sys.stdin:
            self.grow(int(line))


if __name__ == "__main__":
    live.LiveNode = Told  # type: ignore[misc]
    file, admitted, *more = sys.argv[1:]
    resume = "--resume" in more
    ended = node.run(Path(file), None, hold=False, resume=resume, say=print, admitted=int(admitted))
    sys.exit(ended.verdict.code)
