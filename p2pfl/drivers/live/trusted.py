"""A node's copy of the federation file while it runs: what others have signed comes in, what is signed here goes out.

The file is looked at once a second, so that what a person does with `p2pfl federation` takes effect without a restart;
what members tell is checked, brought together with it, and written into it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from p2pfl.errors import ConfigError
from p2pfl.trust import assembly, keyring, merging, store, tables
from p2pfl.trust.document import Change, Document
from p2pfl.trust.keyring import Keyring
from p2pfl.trust.keys import PrivateKey

_LOOK_EVERY = 1.0
"""Seconds between looks at the file."""


class Trusted:
    """What a node goes by. `keyring` is that of now; None: this node is no member any more."""

    def __init__(self, path: Path, signer: PrivateKey, say: Callable[[str], None]) -> None:
        """Raises ConfigError for a file or a key that is no good."""
        self._path, self._signer, self._say = path, signer, say
        self._seen, self._looked = self._stamp(), 0.0
        self._document = store.read(path)
        self._forked = False  # it has been said
        self.keyring: Keyring | None = keyring.of_document(self._document, signer)

    @property
    def packed(self) -> bytes:
        """Return the copy as it travels."""
        return tables.pack(self._document)

    @property
    def revoked(self) -> frozenset[int]:
        """Return who was a member."""
        return frozenset(assembly.read(self._document).head.former)

    @property
    def members(self) -> frozenset[int]:
        """Return who is one."""
        return frozenset(assembly.read(self._document).head.sites)

    @property
    def places(self) -> dict[str, int]:
        """Return the nodes at the addresses that the file names, of those that can be called."""
        sites = assembly.read(self._document).head.sites.values()
        return {site.address: site.node for site in sites if site.reachable}

    @property
    def uncallable(self) -> str:
        """Return the path of the file, where it has no other member that this node could call; "" where it has."""
        own = None if self.keyring is None else self.keyring.node
        return "" if own is None or {*self.places.values()} - {own} else str(self._path)

    @property
    def nodes(self) -> int:
        """Return a number above the id of every member there was: none is used again."""
        return assembly.read(self._document).head.next_node

    def look(self, now: float) -> bool:
        """See whether the file has changed, now and then; return whether the copy has."""
        if now - self._looked < _LOOK_EVERY:
            return False
        self._looked = now
        if (stamp := self._stamp()) == self._seen:
            return False
        self._seen = stamp
        return self._keep(self._document)

    def hear(self, packed: bytes) -> bool:
        """Take in what a member has told; return whether the copy has changed. Raises RemoteError."""
        other = tables.unpack(packed, self._document)
        followed = merging.follow(self._document, other)
        if followed.forked and not self._forked:
            self._forked = True  # whoever has gone another way tells of it again and again
            text = "the federation file of another has followed other changes than ours, and neither goes back"
            self._say(f"{text}: compare them with p2pfl federation list")
        if not followed.changed:
            return False
        self._undone(followed.undone)
        changed = self._taken(followed.document)
        self._keep(followed.document)
        return changed

    def _keep(self, own: Document) -> bool:
        """Bring file and copy together. A file that can't be read or written is said, and the copy goes on."""
        try:
            followed = store.keep(self._path, own)
        except ConfigError as error:
            self._say(f"the federation file: {error}; this node goes on with what it knows")
            return False
        self._seen = self._stamp()
        if followed.forked:
            self._say(f"{self._path}: has followed other changes than this node, which keeps to its own")
            return False
        self._undone(followed.undone)
        return self._taken(followed.document)

    def _taken(self, document: Document) -> bool:
        if document == self._document:
            return False
        before, self._document = self._document, document
        self._tell(before)
        try:
            self.keyring = keyring.of_document(document, self._signer)
        except ConfigError:
            self.keyring = None
        return True

    def _tell(self, before: Document) -> None:
        """Say what has changed."""
        was, now = assembly.read(before).head, assembly.read(self._document).head
        for node in sorted(now.sites.keys() - was.sites.keys()):
            self._say(f"{now.sites[node].name} is a member from now on, as node {node}")
        for node in sorted(now.former.keys() - was.former.keys()):
            self._say(f"{now.former[node].name}, node {node}, is no member any more: the others have revoked it")
        known = {each.change for each in assembly.pending(before)}
        for each in assembly.pending(self._document):
            if each.change not in known:
                self._say(
                    f"proposed: {each.change}; {len(each.by)} of {each.needed} have signed it: "
                    f"p2pfl federation list {self._path}"
                )

    def _undone(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            self._say(f"undone, since another change came before it: {change}; sign it again if it is wanted")

    def _stamp(self) -> tuple[int, ...]:
        try:
            seen = os.stat(self._path)
        except OSError:
            return ()
        return seen.st_mtime_ns, seen.st_size, seen.st_ino
