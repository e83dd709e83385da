"""Ports of nodes on this machine: reserved for as long as somebody holds them, and waited for where they are taken.

A reservation is a socket that is bound and never listens. Bound as it is, exclusively, no other process gets the port:
not another run's reservation, not the kernel's choice for an outgoing connection. Then it sets SO_REUSEADDR, and only
who sets that too, as a node does, and names the very port, may bind it: the node, and after its death its next life.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from p2pfl.drivers.live import addresses, clock
from p2pfl.errors import ConfigError, LocalError
from p2pfl.node.said import Said

_RANGE = range(10_000, 32_000, 2)
"""Below the ports of outgoing connections: a node that is called while it is away answers nobody, not even itself."""

_RELEASE = 15.0
"""Seconds that a node waits for its ports, if something holds them: what is left of an earlier process of it, as a
rule, which ends as soon as it sees that it is alone."""

_AT_LAST = 2.0
"""Seconds for which a port is tried that was free a moment ago."""

_LOOK_EVERY = 0.02

_USUAL = 0.5
"""Seconds for which nobody is told: the membership process of a node that died has a last word to say."""

T = TypeVar("T")


class Reservation:
    """A port of the loopback address and the next one, held until `close`."""

    def __init__(self, port: int) -> None:
        """Raises OSError where either is taken."""
        self.port = port
        with contextlib.ExitStack() as opened:
            for number in (port, port + 1):
                held = opened.enter_context(socket.socket())
                held.bind(("127.0.0.1", number))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let go of the ports."""
        self._opened.close()


@contextlib.contextmanager
def reserved(count: int) -> Iterator[list[int]]:
    """Hold so many pairs of ports on the loopback address; the numbers of the first of each.

    Which ones is drawn by the operating system's random numbers: no two runs try the same ones in the same order.
    """
    with contextlib.ExitStack() as opened:
        ports: list[int] = []
        for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):  # it is taken
                opened.callback(Reservation(port).close)
                ports.append(port)
        if len(ports) < count:
            raise LocalError(f"no {count} pairs of free ports between 10000 and 32000", node=-1, round=0, part="start")
        yield ports


def await_free(wanted: Sequence[str], say: Callable[[str], None]) -> None:
    """Wait until these addresses, tcp://HOST:PORT, can be bound, and say so; not for ever.

    Whoever binds them then is told in its own words what is wrong, be it this or anything else.
    """
    began, said = clock.now(), False
    for address in wanted:
        while _taken(address) and (left := began + _RELEASE - clock.now()) > 0:
            if not said and clock.now() - began >= _USUAL:
                said = True
                text = f"{address} is held by another process: waiting up to {_RELEASE:g} s for it to be free"
                say(Said(text, "ports", logging.WARNING))
            clock.pause(min(left, _LOOK_EVERY))


def demand(wanted: Sequence[str], say: Callable[[str], None]) -> None:
    """See that these addresses can be bound, waiting if need be, before anything is computed. Raises ConfigError."""
    await_free(wanted, say)
    for address in wanted:
        try:
            addresses.bound(address).close()
        except OSError as error:
            raise ConfigError(refusal(address, error)) from error


def listening(address: str, open: Callable[[], T]) -> T:
    """Listen there: what `open` returns, called again for some seconds while something holds the port.

    Raises ConfigError.
    """
    limit = clock.now() + _AT_LAST
    while True:
        try:
            return open()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or clock.now() > limit:
                raise ConfigError(refusal(address, error)) from error
        clock.pause(_LOOK_EVERY)


def refusal(address: str, error: OSError) -> str:
    """Say why nobody can listen at an address."""
    ways_out = {
        errno.EADDRNOTAVAIL: "This machine has no such address: listen at one that it has, or at 0.0.0.0, and let "
        "`address` say how the others reach it.",
        errno.EACCES: "Choose a port from 1024 on.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    }
    way_out = "Write a name that this machine knows, or the numbers." if isinstance(error, socket.gaierror) else None
    way_out = way_out or ways_out.get(error.errno or 0, "Free the port or choose another.")
    return f"listen={address!r}: can't listen there: {error.strerror}. {way_out}"


def _taken(address: str) -> bool:
    """Another process listens there. False where that can't be told: a name of an interface, an address not ours."""
    try:
        addresses.bound(address).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False
