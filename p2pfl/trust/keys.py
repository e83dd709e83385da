"""The key of a site: an Ed25519 seed in a file that its owner alone can read, and what follows from it.

One seed a site. It signs (Ed25519), and the key of its connections (X25519, for CURVE) is derived from it by
libsodium's conversion: the secret one from the seed, the public one from the public key, so that a federation names one
key a member. A private key appears in no error text, no `repr` and no traceback: what is wrong with one is told by its
file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import enum
import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

import nacl.exceptions
import nacl.signing

from p2pfl.errors import ConfigError

PUBLIC, _PRIVATE = "p2pfl-key:", "p2pfl-private-key:"
BYTES, SIGNATURE = 32, 64
"""Of a key, public or private; and of a signature."""
_SUM = 3  # bytes of the checksum: with them a key is 56 characters of base32, none of them half used
_MOST = 4096  # bytes of a key file that are read

_HEAD = """\
# The private key of a site of p2pfl. Whoever has it is that site: it stays on this machine, and nobody is sent it.
"""


class Purpose(enum.Enum):
    """What a signature says: one that was given for one purpose is worth nothing for another."""

    CARD = "card"  # this is my name, my key and my address
    FOUNDING = "founding"  # I am a founding member of this federation
    CHANGE = "change"  # I am for this change
    STATEMENT = "statement"  # what a member says of itself while it runs


def _signed(purpose: Purpose, message: bytes) -> bytes:
    return b"p2pfl " + purpose.value.encode() + b"\0" + message


class PublicKey(NamedTuple):
    """The public key of a site; made by `of` and `parse`, which refuse what is none."""

    raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> PublicKey | None:
        """Return the key of 32 bytes; None where they are none, as a point of small order is none."""
        if len(raw) != BYTES:
            return None
        with contextlib.suppress(RuntimeError, nacl.exceptions.CryptoError):
            nacl.signing.VerifyKey(raw).to_curve25519_public_key()
            return cls(raw)
        return None

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Return the key that a text stands for.

        Args:
            text: `p2pfl-key:` and 56 characters, the last of them a checksum.

        Returns:
            The key.

        Raises:
            ConfigError: it is no key, or a character of it is wrong. A private key is not shown.

        Example:
            >>> from p2pfl.trust.keys import PrivateKey, PublicKey
            >>> text = str(PrivateKey(bytes(32)).public)
            >>> text
            'p2pfl-key:hnvcppgow2sc2yvdvdicu3ynonsteflxdxrehjr2ybekdc2z3iu3ccfs'
            >>> PublicKey.parse(text.replace("hnvc", "hmvc"))
            Traceback (most recent call last):
            ...
            p2pfl.errors.ConfigError: 'p2pfl-key:hmvcppgo...': a character is wrong; take ...
        """
        if text.strip().lower().startswith(_PRIVATE):
            raise ConfigError(
                "a private key stands where a public one belongs: it is known to others now. Make another with "
                "p2pfl federation keygen, and remove this one here"
            )
        shown = repr(text if len(text) <= 18 else f"{text[:18]}...")
        if not text.startswith(PUBLIC):
            raise ConfigError(f"{shown}: is no public key; one begins with {PUBLIC!r}, as in a site's card")
        raw = _decoded(text.removeprefix(PUBLIC))
        if raw is None:
            raise ConfigError(f"{shown}: a character is wrong; take the key from the site's card again")
        key = cls.of(raw)
        if key is None:
            raise ConfigError(f"{shown}: is no key that anybody can have; take it from the site's card again")
        return key

    def __str__(self) -> str:
        return PUBLIC + _encoded(self.raw)

    def __repr__(self) -> str:
        return f"PublicKey({str(self)!r})"

    @property
    def fingerprint(self) -> str:
        """Sixteen characters of a digest of the key, to be compared by telephone."""
        text = base64.b32encode(hashlib.blake2b(self.raw, digest_size=10, person=b"p2pfl print").digest())
        return "-".join(text.decode().lower()[at : at + 4] for at in range(0, 16, 4))

    @property
    def link(self) -> bytes:
        """The public key of the site's connections (X25519, 32 bytes)."""
        return nacl.signing.VerifyKey(self.raw).to_curve25519_public_key().encode()

    def same_link(self, other: PublicKey) -> bool:
        """Return whether both keys have one key of connections, as two that differ in the last bit alone have."""
        return self.raw[:-1] == other.raw[:-1] and (self.raw[-1] ^ other.raw[-1]) & 0x7F == 0

    def verify(self, purpose: Purpose, message: bytes, signature: bytes) -> bool:
        """Return whether the owner of this key has signed a message for this purpose."""
        if len(signature) != SIGNATURE:
            return False
        with contextlib.suppress(nacl.exceptions.BadSignatureError):
            nacl.signing.VerifyKey(self.raw).verify(_signed(purpose, message), signature)
            return True
        return False


class PrivateKey:
    """The private key of a site, which shows nothing of itself."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        if len(seed) != BYTES:
            raise ConfigError(f"a private key of {len(seed)} bytes: it must have {BYTES}")
        self._key = nacl.signing.SigningKey(seed)

    @classmethod
    def generate(cls) -> PrivateKey:
        """Return a new key, from the operating system's random numbers."""
        return cls(nacl.signing.SigningKey.generate().encode())

    def __repr__(self) -> str:
        return "PrivateKey(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateKey) and self.public == other.public

    def __hash__(self) -> int:
        return hash(self.public)

    def __reduce__(self) -> str:
        raise TypeError("a private key is not copied")

    @property
    def public(self) -> PublicKey:
        """The public key."""
        return PublicKey(self._key.verify_key.encode())

    @property
    def link_secret(self) -> bytes:
        """The secret key of the site's connections (X25519, 32 bytes)."""
        return self._key.to_curve25519_private_key().encode()

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        """Return the signature of a message, 64 bytes."""
        return self._key.sign(_signed(purpose, message)).signature

    def reveal(self) -> bytes:
        """Return the seed, 32 bytes: to be handed to a process of the same node by a pipe, and to nothing else."""
        return self._key.encode()


def write(path: Path, key: PrivateKey) -> None:
    """Write a private key into a new file that its owner alone can read and write. Raises ConfigError.

    Nothing is ever overwritten: a key that is gone is a member that is gone.
    """
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path}: is there already, and a key is never overwritten; give another name") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from error
    try:
        os.fchmod(opened, 0o600)  # whatever the umask
        with open(opened, "w", encoding="ascii", closefd=False) as file:
            file.write(f"{_HEAD}{_PRIVATE}{_encoded(key.reveal())}\n")
        os.fsync(opened)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"{path}: can't be written: {error.strerror}") from error
    finally:
        os.close(opened)


def read(path: Path) -> PrivateKey:
    """Read a private key.

    Args:
        path: of the file, whose mode must be 600 or 400; 440 where it is root's and this process is not.

    Returns:
        The key.

    Raises:
        ConfigError: there is none, others can read it, or it is no key; with file, rule and way out, and nothing of it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from p2pfl.trust import keys
        >>> file, key = Path(tempfile.mkdtemp()) / "north.key", keys.PrivateKey.generate()
        >>> keys.write(file, key)
        >>> keys.read(file).public == key.public
        True
        >>> file.chmod(0o640)
        >>> keys.read(file)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: ...north.key: mode 640: others on this machine can read or change it; ...
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            _check_mode(path, found)
            raw = file.read(_MOST)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; the full path is {path.resolve()}. p2pfl federation keygen makes a key"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    lines = [line.strip() for line in raw.decode("ascii", "replace").splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    if len(texts) != 1 or not texts[0].startswith(_PRIVATE):
        raise ConfigError(f"{path}: holds no private key; it is the file NAME.key that p2pfl federation keygen wrote")
    seed = _decoded(texts[0].removeprefix(_PRIVATE))
    if seed is None:
        raise ConfigError(f"{path}: the private key in it is damaged; take it from a backup, or make another")
    return PrivateKey(seed)


def _check_mode(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: is no file; give the file NAME.key that p2pfl federation keygen wrote")
    mode = stat.S_IMODE(found.st_mode)
    # of root's, to a service that is not root: it is lent by an access list (systemd) or to a group (Kubernetes)
    lent = found.st_uid == 0 and os.geteuid() != 0
    if mode & (0o037 if lent else 0o077):
        raise ConfigError(
            f"{path}: mode {mode:o}: others on this machine can read or change it; a private key must be its owner's "
            f"alone: chmod 600 {path}. If others may have read it, make another and let the members replace this one"
        )


def _encoded(raw: bytes) -> str:
    return base64.b32encode(raw + _checksum(raw)).decode().lower()


def _decoded(text: str) -> bytes | None:
    """The 32 bytes of a key; None where a character is wrong."""
    raw = b""
    with contextlib.suppress(binascii.Error, ValueError):
        raw = base64.b32decode(text, casefold=True)
    whole, end = raw[:BYTES], raw[BYTES:]
    return whole if len(whole) == BYTES and end == _checksum(whole) else None


def _checksum(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=_SUM, person=b"p2pfl check").digest()
