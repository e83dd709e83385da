"""What the links and the membership of one node know of keys: its own, those of the members, those of former ones."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from p2pfl.errors import ConfigError
from p2pfl.trust import assembly
from p2pfl.trust.document import Document
from p2pfl.trust.keys import PrivateKey, PublicKey, Purpose


class Keyring(NamedTuple):
    """The keys that one node goes by; a change of the federation makes a new one. Made by `of`."""

    node: int  # this node's id
    secret: bytes  # of its own connections (X25519, 32 bytes)
    public: bytes  # the public key of `secret`
    members: Mapping[int, bytes]  # public key of each member's connections, this node's among them
    names: Mapping[int, str]  # of each member
    former: Mapping[bytes, str]  # keys of the connections of members that were revoked -> their names
    federation: str  # its id
    verify_keys: Mapping[int, PublicKey]  # what each member signs with
    signer: PrivateKey  # what this node signs with

    def __repr__(self) -> str:
        return f"Keyring(node={self.node}, federation={self.federation!r}, members={sorted(self.members)})"

    def key_of(self, node: int) -> bytes | None:
        """Return the public key of a member's connections; None where there is no such member."""
        return self.members.get(node)

    def node_of(self, key: bytes) -> int | None:
        """Return the member whose connections have this key; None where it is no member's."""
        return next((node for node, known in self.members.items() if known == key), None)

    def sign(self, message: bytes) -> bytes:
        """Return this node's signature of a statement: for this federation, and worth nothing in another."""
        return self.signer.sign(Purpose.STATEMENT, self.federation.encode() + b"\0" + message)

    def verify(self, node: int, message: bytes, signature: bytes) -> bool:
        """Return whether a member has signed a statement in this federation; nobody else's signature is one."""
        key = self.verify_keys.get(node)
        signed = self.federation.encode() + b"\0" + message
        return key is not None and key.verify(Purpose.STATEMENT, signed, signature)


def of(
    signer: PrivateKey,
    node: int,
    keys: Mapping[int, PublicKey],
    names: Mapping[int, str],
    federation: str,
    former: Mapping[PublicKey, str] = MappingProxyType({}),
) -> Keyring:
    """Make the keyring of one node.

    Args:
        signer: its own key.
        node: its id; `keys` has its public key.
        keys: of every member.
        names: of every member.
        federation: its id, which every signature of a statement holds.
        former: keys of members that were revoked, and their names.

    Returns:
        The keyring.

    Example:
        >>> from p2pfl.trust import keyring, keys
        >>> private = [keys.PrivateKey(bytes([i]) * 32) for i in (0, 1)]
        >>> public = {i: each.public for i, each in enumerate(private)}
        >>> first, second = (keyring.of(private[i], i, public, {0: "north", 1: "south"}, "f") for i in (0, 1))
        >>> second.verify(0, b"alive", first.sign(b"alive")), second.verify(1, b"alive", first.sign(b"alive"))
        (True, False)
        >>> second.node_of(first.public), first
        (0, Keyring(node=0, federation='f', members=[0, 1]))
    """
    links = {member: key.link for member, key in keys.items()}
    return Keyring(
        node=node,
        secret=signer.link_secret,
        public=signer.public.link,
        members=MappingProxyType(links),
        names=MappingProxyType(dict(names)),
        former=MappingProxyType({key.link: name for key, name in former.items()}),
        federation=federation,
        verify_keys=MappingProxyType(dict(keys)),
        signer=signer,
    )


def of_document(document: Document, signer: PrivateKey) -> Keyring:
    """Make the keyring of the member whose key this is.

    Args:
        document: a federation file, checked.
        signer: the key of a member.

    Returns:
        The keyring for the members of now.

    Raises:
        ConfigError: it is the key of no member, or of one that was revoked.

    Example:
        >>> from p2pfl.trust import document, keyring, keys, sites
        >>> key = keys.PrivateKey(bytes(32))
        >>> alone = document.founded("f", "all", (sites.Site(0, "a", key.public, "tcp://a:1"),))
        >>> keyring.of_document(alone, key).names[0]
        'a'
        >>> keyring.of_document(alone, keys.PrivateKey(bytes([1]) * 32))
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: the key with the fingerprint rgpl-... is no member's of f: ...
    """
    head = assembly.read(document).head
    node = next((each.node for each in head.sites.values() if each.key == signer.public), None)
    if node is None:
        shown, name = signer.public.fingerprint, document.founding.name
        gone = next((each.name for each in head.former.values() if each.key == signer.public), None)
        if gone is not None:
            raise ConfigError(
                f"the key with the fingerprint {shown} is that of {gone}, which {name} has revoked; with a new key the "
                "members can add the site again: p2pfl federation keygen, and a member's p2pfl federation invite"
            )
        known = ", ".join(f"{each.name} {each.key.fingerprint}" for each in head.sites.values())
        raise ConfigError(f"the key with the fingerprint {shown} is no member's of {name}: {known}")
    keys = {each.node: each.key for each in head.sites.values()}
    names = {each.node: each.name for each in head.sites.values()}
    former = {each.key: each.name for each in head.former.values()}
    return of(signer, node, keys, names, document.id, former)
