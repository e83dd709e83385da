"""The exceptions of p2pfl, by who is at fault.

    P2PFLError
    |-- ConfigError        the experiment can't mean this; raised before a socket opens or a compile starts
    |   |-- TopologyError  ... because of its graph
    |   `-- DataError      ... because of its data
    |-- LocalError         this node's own code failed; carries node, round and part
    `-- RemoteError        a peer broke the protocol; never raised into training: an event, a counter and a log line

A text says what, what was got, the rule, and the way out.
"""

from __future__ import annotations

import difflib
import enum
import signal
from collections.abc import Iterable


class Exit(enum.IntEnum):
    """The exit codes of every command; docs/commands.md has them as a table."""

    DONE = 0  # all in good order
    MISTAKE = 1  # what was given is wrong, and nothing was started
    USAGE = 2  # no such command or option
    NOT_WHOLE = 3  # it ended, but something that should be there is not: a node was lost, the books do not balance
    FAILED = 4  # this process's own failure: user code, disk, another process that took its place
    HANGUP = 128 + signal.SIGHUP  # a signal asked it to end, and it ended in as good an order as there was time for
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


class Stopped(KeyboardInterrupt):
    """A signal asks this process to end. `number`: of the signal.

    It is a KeyboardInterrupt, so that whoever tidies up after Ctrl-C does the same after SIGTERM and SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = signal.Signals(number)


def stopping(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that an interrupt stands for."""
    return error.number if isinstance(error, Stopped) else signal.SIGINT


class P2PFLError(Exception):
    """Any error that p2pfl itself raises."""


class ConfigError(P2PFLError):
    """The experiment can't mean this."""


class TopologyError(ConfigError):
    """The graph can't be what the experiment asks of it."""


class DataError(ConfigError):
    """The data can't be what the experiment asks of it."""


class LocalError(P2PFLError):
    """This node's own code failed.

    Attributes: `node` (id), `round` (the round it was in), `part` (what it was doing: "train", "mix", ...).
    """

    def __init__(self, text: str, *, node: int, round: int, part: str) -> None:
        super().__init__(f"node {node}, round {round}, {part}: {text}")
        self.node, self.round, self.part = node, round, part


class RemoteError(P2PFLError):
    """A peer broke the protocol. `reason` is one word per kind of fault; it is what gets counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


USER_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a user's code and data fail with. Others pass through: nothing here may catch all exceptions there are."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """The end of an error text: the nearest valid name, or all of them when none is near.

    >>> nearest("rign", ["ring", "star"])
    "did you mean 'ring'? Valid: ring, star"
    """
    names = sorted(valid)
    close = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    listed = "Valid: " + ", ".join(names)
    return f"did you mean {close[0]!r}? {listed}" if close else listed
