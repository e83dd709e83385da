"""Addresses of nodes, tcp://HOST:PORT: taken apart, bound, and looked up where HOST is a name.

An IPv6 address stands in brackets, as in tcp://[fd00::7]:5700. Names are looked up in threads, never where a loop would
wait: a name server that does not answer takes many seconds. ZeroMQ is given numbers alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

_AT_ONCE, _MOST = 8, 4096
"""Names that are looked up at once, and that are kept: others can make them up."""

_NUMBERS = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV

_AGAIN = 3.0
"""Seconds after which a name where no connection comes about is looked up again, and its next address tried."""


class Address(NamedTuple):
    """An address taken apart."""

    host: str  # without brackets
    port: int

    @property
    def numeric(self) -> bool:
        """The host is no name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def anywhere(self) -> bool:
        """It stands for all addresses of a machine."""
        return self.host in ("*", "") or (self.numeric and ipaddress.ip_address(self.host).is_unspecified)

    @property
    def loopback(self) -> bool:
        """It means the machine where it is read."""
        return self.host == "localhost" or (self.numeric and ipaddress.ip_address(self.host).is_loopback)

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parsed(address: str) -> Address:
    """Take an address apart."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def bound(address: str) -> socket.socket:
    """Return a socket that is bound there and does not listen yet; raises OSError.

    `*` and [::] stand for all addresses of the machine, of IPv4 and of IPv6; 0.0.0.0 for those of IPv4.
    """
    host, port = parsed(address)
    if host in ("*", ""):
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    family, kind, protocol, _, where = lookup(host, port)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::" and socket.has_dualstack_ipv6():
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(where)
    except OSError:
        made.close()
        raise
    return made


def lookup(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return what `socket.getaddrinfo` has of a host, those of IPv4 first; raises OSError."""
    return sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda each: each[0] != socket.AF_INET)


def local(host: str) -> bool:
    """Return whether this machine itself has an address of the host."""
    try:
        places = lookup(host, 0)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, where in places:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as tried:
            tried.bind(where)
            return True
    return False


class Names:
    """What the names in addresses stand for, as far as that is known."""

    def __init__(self) -> None:
        self._known: dict[str, Sequence[str]] = {}  # addresses in numbers, by address
        self._tried: dict[str, int] = {}  # which of them is used
        self._due: dict[str, float] = {}  # when to look up again
        self.under_way: set[str] = set()  # being looked up

    def numbers(self, address: str, now: float) -> str | None:
        """Return the address in numbers; None while it is not known."""
        known = self._known.get(address)
        if known:
            return known[self._tried.get(address, 0) % len(known)]
        if parsed(address).numeric:
            self._bound()
            self._known[address] = [address]
            return address
        if now >= self._due.get(address, now):
            self._look_up(address, now)
        return None

    def blocked(self, address: str, since: float, now: float) -> None:
        """No connection comes about there since then: after a while, look up again and try the next."""
        if self._known.get(address, [address]) != [address] and now >= max(since + _AGAIN, self._due.get(address, 0.0)):
            self._tried[address] = self._tried.get(address, 0) + 1
            self._look_up(address, now)

    def _look_up(self, address: str, now: float) -> None:
        if len(self.under_way) >= _AT_ONCE or address in self.under_way:
            return
        self._bound()
        self._due[address] = now + _AGAIN
        self.under_way.add(address)
        threading.Thread(target=self._find, args=(address,), name="name", daemon=True).start()

    def _bound(self) -> None:
        if max(len(self._known), len(self._due)) >= _MOST:
            for kept in (self._known, self._tried, self._due):
                kept.clear()

    def _find(self, address: str) -> None:
        host, port = parsed(address)
        try:
            places = [socket.getnameinfo(each[4], _NUMBERS)[0] for each in lookup(host, port)]
            self._known[address] = [str(Address(place, port)) for place in dict.fromkeys(places)]
        except (OSError, UnicodeError):  # what was known of it stays; a name that is too long for any is none
            return
        finally:
            self.under_way.discard(address)
