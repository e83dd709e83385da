"""The lifeline of a started process: a pipe that whoever started it holds, and whose end tells that they are gone.

A kill of the starter at any moment, by whatever signal, closes its end of the pipe; the kernel does that, so that
nothing needs to be told. A process that holds on to its lifeline outlives its starter by `GRACE` seconds at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading

GRACE = 4.0
"""Seconds that a process may take to end in good order, with a checkpoint, once its starter is gone."""

_PR_SET_PDEATHSIG = 1


class Lifeline:
    """Watches the pipe `file` in a thread of its own, whatever the rest of the process is doing.

    At its end the process gets SIGTERM, and after `GRACE` seconds SIGKILL. Start it after the process has forked what
    it forks: a thread is not inherited.
    """

    def __init__(self, file: int = 0) -> None:
        self._file = file
        self._told = threading.Event()
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def wait(self) -> None:
        """Until the other end has said something: a line with "go"."""
        self._told.wait()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):  # of a terminal that is gone
            while os.read(self._file, 4096):
                self._told.set()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(GRACE)  # nobody sets it: by then the process has ended, or does not answer
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, which has started it, ends: it may be anywhere in an import.

    Of a parent with threads, the one that has started it: it must be one that lasts.
    """
    _death_signal(signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before that was said
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_parent() -> None:
    """Take `die_with_parent` back: from here on this process sees for itself."""
    _death_signal(0)


def _death_signal(number: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
