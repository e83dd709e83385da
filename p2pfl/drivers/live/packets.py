"""What a node and its membership process say to each other: one JSON object a packet of a socket pair. No pickle.

What is larger than a packet goes as a file in memory, whose descriptor the packet carries: so it is taken in at once or
not at all, and a reader that is slow makes nobody wait in the middle of it. What is in memory is in memory only: a key
that is told so is in no argument, environment or file of a disk.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from typing import Any

from p2pfl.protocol.membership.table import Member
from p2pfl.trust import keyring
from p2pfl.trust.keyring import Keyring
from p2pfl.trust.keys import PrivateKey, PublicKey

PACKET = 1 << 17
"""Bytes of a packet at most."""

_MOST = 1 << 22
"""Bytes of an object at most."""


def send(link: socket.socket, what: dict[str, Any]) -> None:
    """Send an object. BlockingIOError: the other end has not taken in what was sent before. OSError: it is gone."""
    data = json.dumps(what).encode()
    if len(data) <= PACKET:
        link.send(data)
        return
    file = os.memfd_create("p2pfl", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as whole:
            whole.write(data)
        socket.send_fds(link, [b"{}"], [file])
    finally:
        os.close(file)


def receive(link: socket.socket) -> dict[str, Any] | None:
    """Return an object; None where the other end has closed. BlockingIOError when there is none."""
    data, files, _, _ = socket.recv_fds(link, PACKET, 1, socket.MSG_CMSG_CLOEXEC)
    if not files:
        return _read(data) if data else None
    with open(files[0], "rb") as whole:
        whole.seek(0)
        return _read(whole.read(_MOST))


def _read(data: bytes) -> dict[str, Any]:
    what: dict[str, Any] = json.loads(data)
    return what


def pack_keyring(keys: Keyring) -> dict[str, Any]:
    """Return a keyring as JSON has it, the key of the node with it."""
    return {
        "node": keys.node,
        "key": keys.signer.reveal().hex(),
        "members": [[node, key.raw.hex(), keys.names[node]] for node, key in keys.verify_keys.items()],
        "former": [[key.hex(), name] for key, name in keys.former.items()],
        "federation": keys.federation,
    }


def unpack_keyring(what: dict[str, Any]) -> Keyring:
    """Return the keyring that was packed."""
    keys = {node: PublicKey(bytes.fromhex(key)) for node, key, _ in what["members"]}
    names = {node: name for node, _, name in what["members"]}
    made = keyring.of(PrivateKey(bytes.fromhex(what["key"])), what["node"], keys, names, what["federation"])
    return made._replace(former={bytes.fromhex(key): name for key, name in what["former"]})


def pack_bytes(data: bytes) -> str:
    """Return bytes as JSON has them."""
    return base64.b64encode(data).decode()


def unpack_bytes(text: str) -> bytes:
    """Return the bytes that were packed."""
    return base64.b64decode(text)


def pack_member(member: Member) -> list[Any]:
    """Return a member as JSON has it."""
    return [*member[:-1], pack_bytes(member.signature)]


def unpack_member(row: list[Any]) -> Member:
    """Return the member that was packed."""
    return Member(*row[:-1])._replace(signature=unpack_bytes(row[-1]))
