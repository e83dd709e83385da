"""Why a node is not reached at an address: looked at in threads, by calling there as a node of the federation does.

ZeroMQ connects in silence, again and again, whatever is wrong. A person has to know whether it is the name, the port, a
firewall, or another federation.
"""

from __future__ import annotations

import socket
import threading

from p2pfl.drivers.live import addresses, zmtp

_AGAIN = 10.0
"""Seconds after which an address is looked at again."""

_AT_ONCE = 8
"""Addresses that are looked at, at once."""

_PATIENCE = 2.0
"""Seconds that a connection may take to come about, and the other end to say what it is."""

_HANGS_UP = 0.5
"""Seconds in which a node of another federation hangs up."""

REACHED = ""
"""A node of this federation takes connections there."""


class Reachability:
    """Knows what was last seen at addresses."""

    def __init__(self, introduction: bytes) -> None:
        self._introduction = introduction
        self._known: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._under_way: set[str] = set()

    def why(self, address: str, now: float) -> str | None:
        """Return why nobody is reached there, or REACHED; None while it is not known."""
        due = now >= self._due.get(address, now)
        if due and address not in self._under_way and len(self._under_way) < _AT_ONCE:
            self._due[address] = now + _AGAIN
            self._under_way.add(address)
            threading.Thread(target=self._look, args=(address,), name="reach", daemon=True).start()
        return self._known.get(address)

    def _look(self, address: str) -> None:
        try:
            self._known[address] = look(address, self._introduction)
        finally:
            self._under_way.discard(address)


def look(address: str, introduction: bytes) -> str:
    """Return why nobody is reached at an address by who introduces itself so, or REACHED. Takes seconds."""
    host, port = addresses.parsed(address)
    try:
        places = addresses.lookup(host, port)
    except (OSError, UnicodeError) as error:
        return f"can't be resolved: {error.strerror if isinstance(error, OSError) else 'no name'}"
    seen = [_call(family, where, introduction) for family, _, _, _, where in places]
    return REACHED if REACHED in seen else "; ".join(dict.fromkeys(seen))


def _call(family: int, where: tuple[str, int], introduction: bytes) -> str:
    port = f"port {where[1]}"
    with socket.socket(family) as link:
        link.settimeout(_PATIENCE)
        try:
            link.connect(where)
        except ConnectionRefusedError:
            return f"refused: nothing listens at {port}"
        except TimeoutError:
            return f"no answer from {port}: a firewall, or the machine is off"
        except OSError as error:
            return f"{error.strerror}"
        try:
            link.sendall(zmtp.GREETING + zmtp.ready(b"DEALER", introduction))
            if link.recv(1) != zmtp.GREETING[:1]:
                return f"what listens at {port} is no node"
        except TimeoutError:
            return f"what listens at {port} says nothing"
        except OSError:
            return f"what listens at {port} is no node"
        link.settimeout(_HANGS_UP)
        try:
            while link.recv(4096):
                pass
        except TimeoutError:
            return REACHED
        except OSError:
            pass
        return f"the node at {port} is of another federation: its experiment differs from this one"
