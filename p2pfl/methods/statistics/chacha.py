"""ChaCha20 as JAX computes it, so that masks are made inside an algorithm, in every driver alike.

Source: RFC 8439, section 2.3. `tests/test_secure.py` holds it against libsodium's. Its use of time and memory does not
depend on what it computes with.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.types import Array

WORDS = 16
"""Of a block, 32 bits each."""
_CONSTANTS = np.frombuffer(b"expand 32-byte k", "<u4")
_DOUBLE_ROUNDS = 10


def blocks(key: Array, nonce: Array, first: int, count: int) -> Array:
    """Blocks of the key stream.

    Args:
        key: [8] uint32.
        nonce: [3] uint32.
        first: the counter of the first block.
        count: how many.

    Returns:
        [count, 16] uint32.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.methods.statistics.chacha import blocks
        >>> f"{blocks(jnp.zeros(8, jnp.uint32), jnp.zeros(3, jnp.uint32), 0, 1)[0, 0]:08x}"  # RFC 8439, A.1, vector 1
        'ade0b876'
    """
    counters = jnp.arange(first, first + count, dtype=jnp.uint32)[:, None]
    tail = jnp.broadcast_to(nonce[None], (count, 3))
    rows = (
        jnp.broadcast_to(jnp.asarray(_CONSTANTS, jnp.uint32)[None], (count, 4)),
        jnp.broadcast_to(key[None, :4], (count, 4)),
        jnp.broadcast_to(key[None, 4:], (count, 4)),
        jnp.concatenate([counters, tail], axis=1),
    )
    mixed = jax.lax.fori_loop(0, _DOUBLE_ROUNDS, lambda _, rows: _double_round(*rows), rows)
    return jnp.concatenate([now + start for now, start in zip(mixed, rows, strict=True)], axis=1)


_Rows = tuple[Array, Array, Array, Array]


def _double_round(a: Array, b: Array, c: Array, d: Array) -> _Rows:
    """Columns, then diagonals; rows of the state [count, 4]."""
    a, b, c, d = _quarter(a, b, c, d)
    a, b, c, d = _quarter(a, jnp.roll(b, -1, 1), jnp.roll(c, -2, 1), jnp.roll(d, -3, 1))
    return a, jnp.roll(b, 1, 1), jnp.roll(c, 2, 1), jnp.roll(d, 3, 1)


def _quarter(a: Array, b: Array, c: Array, d: Array) -> _Rows:
    a = a + b
    d = _turned(d ^ a, 16)
    c = c + d
    b = _turned(b ^ c, 12)
    a = a + b
    d = _turned(d ^ a, 8)
    c = c + d
    b = _turned(b ^ c, 7)
    return a, b, c, d


def _turned(x: Array, by: int) -> Array:
    return (x << jnp.uint32(by)) | (x >> jnp.uint32(32 - by))
