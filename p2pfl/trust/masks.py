"""Secrets that two nodes have in common, and the random bits that follow from one: of what masks of sums are made.

Neither ever travels. Two sites agree by X25519 with the keys that everybody knows; nodes of a study, which have none,
by the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import nacl.bindings

from p2pfl.trust.keyring import Keyring

BYTES = 32
"""Of a secret."""
Secret = Callable[[int], bytes]
"""Of another node, the secret that this one has with it."""
_TAG = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_ABYTES
_NONCE = bytes(nacl.bindings.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES)


def of_keys(ring: Keyring) -> Secret:
    """Return the secrets of a site with each member of its federation.

    Args:
        ring: the keys that it goes by.

    Returns:
        A function of a member's id; it raises KeyError for who is no member.

    Example:
        >>> from p2pfl.trust import keyring, keys, masks
        >>> private = [keys.PrivateKey(bytes([i]) * 32) for i in (0, 1)]
        >>> public = {i: each.public for i, each in enumerate(private)}
        >>> first, second = (keyring.of(private[i], i, public, {0: "north", 1: "south"}, "f") for i in (0, 1))
        >>> masks.of_keys(first)(1) == masks.of_keys(second)(0)
        True
    """

    def secret(node: int) -> bytes:
        theirs = ring.members[node]
        shared = nacl.bindings.crypto_scalarmult(ring.secret, theirs)
        said = b"".join(sorted((ring.public, theirs))) + ring.federation.encode()
        return hashlib.blake2b(said, digest_size=BYTES, key=shared, person=b"p2pfl masks").digest()

    return secret


def of_seed(seed: int, node: int) -> Secret:
    """Return the secrets of a node of a study: whoever knows the seed knows them."""

    def secret(other: int) -> bytes:
        pair = f"{seed} {min(node, other)} {max(node, other)}".encode()
        return hashlib.blake2b(pair, digest_size=BYTES, person=b"p2pfl study").digest()

    return secret


def stream(secret: bytes, context: bytes, nbytes: int) -> bytes:
    """Return the random bits that a secret gives for one purpose: XChaCha20 under a key that is derived for it.

    Args:
        secret: 32 bytes.
        context: what they are for, all that tells it from anything else that is masked.
        nbytes: how many.

    Returns:
        The bytes; the same for both ends.

    Example:
        >>> from p2pfl.trust import masks
        >>> masks.stream(bytes(32), b"round 1", 4) == masks.stream(bytes(32), b"round 2", 4)
        False
    """
    key = hashlib.blake2b(context, digest_size=BYTES, key=secret, person=b"p2pfl stream").digest()
    sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(bytes(nbytes), None, _NONCE, key)
    return sealed[:-_TAG]
