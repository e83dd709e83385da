"""A sum by a ciphertext that goes around a ring: each adds, and only the one who has begun can read the result.

Homomorphic encryption (CKKS: Cheon, Kim, Kim, Song, "Homomorphic encryption for arithmetic of approximate numbers",
2017) by TenSEAL, without a server: the one who begins makes a key pair, encrypts its numbers under it and passes the
ciphertext on with the public key; each of the others adds an encryption of its own numbers, which makes what comes out
look like nothing that came in; the last gives it back. Some 57 bytes a number and hop, so for statistics and small
models. No node carries such a message by itself: whoever calls these functions does (see docs/secure.md).

The one who begins, together with whoever stands around a member, learns that member's numbers; nobody else learns
anything. Decrypted numbers tell of the key (Li, Micciancio, "On the security of homomorphic encryption on approximate
numbers", 2021), so that `Ring.end` rounds them far above their error; more than one sum with one key is refused.
"""

from __future__ import annotations

import importlib.util
import struct
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError, RemoteError

SLOTS = 4096
"""Numbers in a ciphertext."""
LARGEST = 2.0**24
"""What no number of a sum may be beyond."""
GRID = 2.0**-20
"""What a sum is rounded to: many times the error of CKKS at these parameters."""
_DEGREE, _MODULI, _SCALE = 2 * SLOTS, (60, 40, 60), 2.0**40
"""128 bits of security by the table of the homomorphic encryption standard (2018): 218 bits at most for this degree."""
_MOST = 1 << 30
_FAULTS = (ValueError, RuntimeError, TypeError, IndexError)


class Ring:
    """The sum of one round of a ring, at the one who begins it; it holds the secret key, and shows it to nobody."""

    def __init__(self, numbers: np.ndarray) -> None:
        """Begin with one's own numbers.

        Args:
            numbers: of any shape, each within LARGEST.

        Raises:
            ConfigError: TenSEAL is not installed, or a number is too large, or none.
        """
        tenseal = _tenseal()
        flat = _flat(numbers)
        self._shape: tuple[int, ...] | None = np.shape(numbers)
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=_DEGREE, coeff_mod_bit_sizes=[*_MODULI]
        )
        self._context.global_scale = _SCALE
        self._size = len(flat)
        public = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        self.message = _packed([public, *_encrypted(self._context, flat)])
        """What goes to the first of the others."""

    def __repr__(self) -> str:
        return "Ring(...)"

    def end(self, message: bytes) -> np.ndarray:
        """Read the sum, once.

        Args:
            message: as the last one has passed it on.

        Returns:
            The sum, of the shape of one's own numbers, to GRID.

        Raises:
            RemoteError: it is no such message. ValueError: it was read before.

        Example:
            >>> import numpy as np
            >>> from p2pfl.methods import ring_sum
            >>> ring = ring_sum.Ring(np.array([1.0, -2.5]))
            >>> message = ring_sum.passed(ring.message, np.array([0.5, 0.25]))
            >>> ring.end(ring_sum.passed(message, np.array([2.0, 0.0]))).tolist()
            [3.5, -2.25]
        """
        if self._shape is None:
            raise ValueError("ring: a sum is read once; begin another, with another key")
        _, *parts = _unpacked(message)
        if len(parts) != -(-self._size // SLOTS):
            raise RemoteError("ring", f"{len(parts)} ciphertexts, where there must be {-(-self._size // SLOTS)}")
        tenseal = _tenseal()
        try:
            read = [tenseal.ckks_vector_from(self._context, part).decrypt() for part in parts]
        except _FAULTS as error:
            raise RemoteError("ring", f"no ciphertexts of this ring: {error}") from error
        flat = np.concatenate([np.asarray(each) for each in read])
        if len(flat) != self._size or not np.isfinite(flat).all():
            raise RemoteError("ring", f"{len(flat)} numbers, where there must be {self._size}")
        shape, self._shape = self._shape, None
        rounded: np.ndarray = (np.rint(flat / GRID) * GRID).reshape(shape)
        return rounded


def passed(message: bytes, numbers: np.ndarray) -> bytes:
    """Add one's own numbers to a sum that nobody here can read.

    Args:
        message: as it came.
        numbers: as many as those of the one who has begun, each within LARGEST.

    Returns:
        The message for the next in the ring.

    Raises:
        ConfigError: a number is too large, or none. RemoteError: it is no such message, or one of other numbers.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods import ring_sum
        >>> ring_sum.passed(b"nonsense", np.zeros(3))
        Traceback (most recent call last):
        ...
        p2pfl.errors.RemoteError: ring: no message of a ring
    """
    flat = _flat(numbers)
    public, *parts = _unpacked(message)
    tenseal = _tenseal()
    try:
        context = tenseal.context_from(public)
        if context.is_private():
            raise RemoteError("ring", "the secret key came with the message: whoever sent it can be read by all")
        own = [tenseal.ckks_vector_from(context, each) for each in _encrypted(context, flat)]
        sums = [tenseal.ckks_vector_from(context, part) for part in parts]
        if [each.size() for each in own] != [each.size() for each in sums]:
            raise RemoteError("ring", f"{sum(each.size() for each in sums)} numbers, and here there are {len(flat)}")
        added = [(one + other).serialize() for one, other in zip(sums, own, strict=True)]
    except _FAULTS as error:
        raise RemoteError("ring", f"no keys or ciphertexts of a ring: {error}") from error
    return _packed([public, *added])


def _tenseal() -> Any:
    if importlib.util.find_spec("tenseal") is None:
        raise ConfigError("ring: needs the package tenseal: pip install 'p2pfl-jax[he]'")
    import tenseal

    return tenseal


def _flat(numbers: np.ndarray) -> np.ndarray:
    flat = np.asarray(numbers, np.float64).ravel()
    if not len(flat):
        raise ConfigError("ring: no numbers; give those that are to be added up")
    largest = float(np.abs(flat).max())
    if not largest <= LARGEST:
        raise ConfigError(f"ring: holds {largest:.3g}; numbers must be within {LARGEST:.0f}. Scale them")
    return flat


def _encrypted(context: Any, flat: np.ndarray) -> list[bytes]:
    tenseal = _tenseal()
    parts = [flat[start : start + SLOTS].tolist() for start in range(0, len(flat), SLOTS)]
    return [tenseal.ckks_vector(context, part).serialize() for part in parts]


def _packed(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def _unpacked(message: bytes) -> list[bytes]:
    parts, start = [], 0
    while start + 4 <= len(message) <= _MOST:
        (size,) = struct.unpack_from("<I", message, start)
        parts.append(message[start + 4 : start + 4 + size])
        start += 4 + size
    if start != len(message) or len(parts) < 2:
        raise RemoteError("ring", "no message of a ring")
    return parts
