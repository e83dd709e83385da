"""A site as the others know it: its name, key and address, and the card by which it says so itself."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from p2pfl.errors import ConfigError, RemoteError, nearest
from p2pfl.trust.keys import SIGNATURE, PrivateKey, PublicKey, Purpose

_NAME = re.compile(r"[^\W_][\w.-]{0,63}")
_ADDRESS = re.compile(
    r"tcp://([\w.-]{1,253}|\[[0-9a-f:.]{2,45}(%[\w.-]{1,32})?\]):([0-9]{1,5})", re.ASCII | re.IGNORECASE
)
LARGEST_PORT = 65534
"""The port after it is used as well."""


class Site(NamedTuple):
    """A member of a federation."""

    node: int  # its id, which is never used again
    name: str
    key: PublicKey
    address: str  # tcp://HOST:PORT, as the others reach it
    reachable: bool = True  # the others can connect to it; else it connects to them


class Card(NamedTuple):
    """What a site says of itself, signed with its key: public, and made to be sent to another site."""

    name: str
    key: PublicKey
    address: str
    reachable: bool
    signature: bytes

    @classmethod
    def of(cls, key: PrivateKey, name: str, address: str, reachable: bool = True) -> Card:
        """Return a card that is signed. Raises ConfigError."""
        try:
            check_name(name, "name")
            check_address(address, "address")
        except RemoteError as error:
            raise ConfigError(error.detail) from error
        unsigned = cls(name, key.public, address, reachable, b"")
        return unsigned._replace(signature=key.sign(Purpose.CARD, unsigned.message))

    @property
    def message(self) -> bytes:
        """What is signed."""
        return canonical("card", self.name, str(self.key), self.address, self.reachable)

    @property
    def genuine(self) -> bool:
        """Return whether the owner of the key has signed it."""
        return self.key.verify(Purpose.CARD, self.message, self.signature)

    def site(self, node: int) -> Site:
        """Return the member that it is of, with this id."""
        return Site(node, self.name, self.key, self.address, self.reachable)

    def table(self) -> dict[str, Any]:
        """Return it as a table of TOML."""
        table = {"name": self.name, "key": str(self.key), "address": self.address, "reachable": self.reachable}
        return {**table, "signature": text_of(self.signature)}


def card_of(table: object) -> Card:
    """Return the card in a table. Raises RemoteError: `format`, or `card` where its signature is not its own."""
    given = fields(table, "", {"name": str, "key": str, "address": str, "signature": str}, {"reachable": bool})
    check_name(given["name"], "name")
    check_address(given["address"], "address")
    card = Card(
        given["name"], key_of(given["key"], "key"), given["address"], given.get("reachable", True),
        signature_of(given["signature"], "signature"),
    )  # fmt: skip
    if not card.genuine:
        raise RemoteError(
            "card", "signature: does not go with what stands there: the card was changed after it was made; ask the "
            "site for it again"
        )  # fmt: skip
    return card


def canonical(*values: object) -> bytes:
    """Return the bytes of values that are signed and digested: one way to write them, whatever file they come from.

    >>> canonical("card", "köln", 1, True)
    b'["card","k\\\\u00f6ln",1,true]'
    """
    return json.dumps(values, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def fields(
    table: object, where: str, must: Mapping[str, type], may: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Return the fields of a table, each of its type. `where`: what the name of a field begins with.

    Raises RemoteError `format` where one is missing, unknown, or something else than it must be.
    """
    if not isinstance(table, dict):
        raise RemoteError("format", f"{where.rstrip('.') or 'the file'}: must be a table")
    known = {**must, **(may or {})}
    for name, value in table.items():
        if name not in known:
            shown = str(name)[:40] if str(name).isprintable() else repr(str(name)[:40])  # it may come from anybody
            raise RemoteError("format", f"{where}{shown}: no such field; {nearest(str(name)[:40], known)}")
        if type(value) is not known[name]:
            said = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}[known[name]]
            raise RemoteError("format", f"{where}{name}: must be {said}")
    for name in must:
        if name not in table:
            raise RemoteError("format", f"{where}{name}: missing; it must be given")
    return table


def check_name(name: str, where: str) -> None:
    """Raises RemoteError unless this can be the name of a site or a federation."""
    if not _NAME.fullmatch(name) or unicodedata.normalize("NFC", name) != name:
        raise RemoteError(
            "format", f"{where}={name[:64]!r}: must be letters, digits, '_', '.' or '-', at most 64, the first no sign"
        )


def check_address(address: str, where: str) -> None:
    """Raises RemoteError unless others could be told this address."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise RemoteError(
            "format", f"{where}={address[:64]!r}: must be written tcp://HOST:PORT, as in tcp://north.example.org:5700"
        )
    if not 1 <= int(found[3]) <= LARGEST_PORT:
        raise RemoteError("format", f"{where}={address[:64]!r}: the port must be from 1 to {LARGEST_PORT}")


def key_of(text: str, where: str) -> PublicKey:
    """Return the public key of a text. Raises RemoteError `format`."""
    try:
        return PublicKey.parse(text)
    except ConfigError as error:
        raise RemoteError("format", f"{where}={error}") from error


def text_of(signature: bytes) -> str:
    """Return a signature as text."""
    return base64.b64encode(signature).decode()


def signature_of(text: str, where: str) -> bytes:
    """Return the signature of a text. Raises RemoteError `format`."""
    with contextlib.suppress(binascii.Error, ValueError):
        raw = base64.b64decode(text, validate=True)
        if len(raw) == SIGNATURE:
            return raw
    raise RemoteError("format", f"{where}: is no signature; one is 88 characters")
