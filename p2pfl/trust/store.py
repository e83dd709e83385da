"""The federation file on disk, written so that a running node and a command never lose each other's records."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.trust import assembly, merging, tables
from p2pfl.trust.document import Document
from p2pfl.trust.merging import Followed
from p2pfl.trust.sites import Card, card_of

_MOST = 1024 * 1024  # bytes of a file that are read

_HEAD = """\
# Who takes part in a federation of p2pfl, signed by its members. It holds no secret: send it to whoever is to be one.
# Written by p2pfl federation; what is changed here by hand is refused. docs/federation.md says what it means.
"""
_CARD = """\
# The card of a site, signed with its key. It holds no secret: send it to whoever writes the federation file.
"""


def read(path: Path) -> Document:
    """Read a federation file and check all of it.

    Args:
        path: of the file.

    Returns:
        The document.

    Raises:
        ConfigError: it is missing, no such file, or something in it is not as its members have signed it.

    Example:
        >>> from pathlib import Path
        >>> from p2pfl.trust import store
        >>> store.read(Path("no-such.toml"))
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: no-such.toml: no such file; the full path is ...
    """
    table = _table(path)
    if "member" not in table and "signature" in table:
        raise ConfigError(f"{path}: is the card of a site; a federation file is made of cards: p2pfl federation init")
    try:
        document = tables.document_of(table)
        assembly.verify(document)
        tables.pack(document)
    except RemoteError as error:
        raise ConfigError(
            f"{path}: {error.detail}. The file is not as its members have signed it: take it from another member again"
        ) from error
    return document


def create(path: Path, document: Document) -> None:
    """Write a new federation file. Raises ConfigError where there is one already."""
    with _locked(path) as place:
        if place.exists():
            raise ConfigError(f"{path}: is there already, and nothing is overwritten; give another name")
        _write(place, _HEAD, tables.table_of(document))


def change(path: Path, how: Callable[[Document], Document]) -> Document:
    """Change a federation file, alone: nobody else reads what is about to be written over.

    Args:
        path: of the file.
        how: makes the new document of the one that is there; what it raises leaves the file as it is.

    Returns:
        The document that was written.

    Raises:
        ConfigError: as `read`; or the file is full, or can't be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from p2pfl.trust import document, keys, sites, store
        >>> key = keys.PrivateKey(bytes(32))
        >>> alone = document.founded("f", "all", (sites.Site(0, "a", key.public, "tcp://a:1"),))
        >>> file = Path(tempfile.mkdtemp()) / "f.toml"
        >>> store.create(file, alone)
        >>> sorted(store.change(file, lambda there: document.accepted(there, 0, key)).accepted)
        [0]
    """
    with _locked(path) as place:
        there = read(path)
        new = how(there)
        new = merging.merge(new, new)
        if new == there:
            return there
        try:
            tables.pack(new)
        except RemoteError as error:
            raise ConfigError(
                f"{path}: {error.detail}: it is full; found a new federation of the members of now"
            ) from error
        _write(place, _HEAD, tables.table_of(new))
    return new


def keep(path: Path, own: Document) -> Followed:
    """Bring a file and one's own copy together: what either has, both have then.

    Args:
        path: of the file.
        own: what this node goes by.

    Returns:
        The copy to go by, as of `merging.follow`; the file says the same, unless it has followed another chain.

    Raises:
        ConfigError: as `change`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from p2pfl.trust import document, keys, sites, store
        >>> key = keys.PrivateKey(bytes(32))
        >>> alone = document.founded("f", "all", (sites.Site(0, "a", key.public, "tcp://a:1"),))
        >>> file = Path(tempfile.mkdtemp()) / "f.toml"
        >>> store.create(file, alone)
        >>> kept = store.keep(file, document.accepted(alone, 0, key))
        >>> kept.document == store.read(file), kept.changed
        (True, False)
    """
    followed: list[Followed] = []

    def both(there: Document) -> Document:
        followed.append(merging.follow(own, there))
        return there if followed[-1].forked else followed[-1].document

    try:
        change(path, both)
    except RemoteError as error:
        why = "it was another file when this node began" if error.reason == "federation" else "it is full"
        raise ConfigError(f"{path}: {error.detail}; {why}") from error
    return followed[-1]


def read_card(path: Path) -> Card:
    """Read the card of a site and check its signature. Raises ConfigError."""
    table = _table(path)
    if "member" in table:
        raise ConfigError(f"{path}: is a federation file; give cards of sites, as p2pfl federation keygen writes them")
    try:
        return card_of(table)
    except RemoteError as error:
        raise ConfigError(f"{path}: {error.detail}") from error


def write_card(path: Path, card: Card) -> None:
    """Write the card of a site into a new file. Raises ConfigError."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{_CARD}{tomli_w.dumps(card.table())}")
    except FileExistsError as error:
        raise ConfigError(f"{path}: is there already, and nothing is overwritten; give another name") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from error


def _table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; the full path is {path.resolve()}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    if len(raw) > _MOST:
        raise ConfigError(f"{path}: is larger than {_MOST} bytes: no federation file is")
    if b"p2pfl-private-key:" in raw:
        raise ConfigError(
            f"{path}: holds a private key, and is a file for others: whoever has seen it can be that site. Make "
            "another with p2pfl federation keygen"
        )
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {str(error)[:100]}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Hold the lock of a file, which lies beside it; yields where the file itself is, if `path` is a link."""
    place = path.resolve()
    try:
        lock = os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {place.parent}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place
    finally:
        os.close(lock)


def _write(place: Path, head: str, table: dict[str, Any]) -> None:
    """Put a file into its place at once: whoever reads it reads the old or the new one."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        new = Path(name)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(f"{head}{tomli_w.dumps(table)}")
                file.flush()
                os.fsync(file.fileno())
            new.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o644)
            new.replace(place)
        except OSError:
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{place}: can't be written: {error.strerror}") from error
