"""The federation file, as a file and as it travels, nearly right: refused with a reason, or what its members signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
import tomli_w
from fuzzing import LATER, Draw, Take, bent, fuzz, packed
from test_fuzz_files import changed

from p2pfl.errors import ConfigError, RemoteError

trust = pytest.importorskip("p2pfl.trust", reason="this version has no federation file yet")

from p2pfl.trust import assembly, document, keys, merging, sites, store, tables  # noqa: E402

KEYS = [keys.PrivateKey(bytes([i + 1]) * 32) for i in range(4)]
CARDS = [sites.Card.of(key, f"site-{i}", f"tcp://host-{i}:5700") for i, key in enumerate(KEYS)]
FOUNDED = document.founded("hearts", "majority", tuple(card.site(i) for i, card in enumerate(CARDS[:3])))


def signed(there: Any, change: Any, *by: int) -> Any:
    for node in by:
        there = document.signed(there, change, node, KEYS[node])
    return there


def stories() -> list[Any]:
    """Documents that are right: founded, accepted, grown, shrunk, with what lacks its quorum."""
    accepted = FOUNDED
    for node in range(3):
        accepted = document.accepted(accepted, node, KEYS[node])
    head = assembly.read(accepted).head
    grown = signed(accepted, assembly.addition(head, CARDS[3]), 0, 1)
    shrunk = signed(grown, assembly.revocation(assembly.read(grown).head, 1), 0, 2, 3)
    waiting = signed(accepted, assembly.revocation(head, 2), 0)
    return [FOUNDED, accepted, grown, shrunk, waiting]


STORIES = stories()
OF_TRUST = {
    "size", "format", "federation", "bounds", "duplicate", "subject", "stranger", "signature", "previous", "card",
    "revoked",
}  # fmt: skip


def travels() -> Take:
    known = STORIES[1]

    def take(draw: Draw) -> None:
        raw = packed(draw, tables.table_of(draw.choice(STORIES)))
        if not draw.randrange(3):
            raw = bent(draw, msgpack.packb(tables.table_of(draw.choice(STORIES))))
        try:
            came = tables.unpack(raw, known)
        except RemoteError as error:
            assert error.reason in OF_TRUST
            return
        followed = merging.follow(known, came)
        assert {*assembly.read(followed.document).head.sites} <= {0, 1, 2, 3}  # whoever is a member was signed for
        assert merging.merge(came, known) == merging.merge(known, came)

    return take


@pytest.mark.parametrize("frames", LATER)
def test_a_federation_file_that_travels(frames: int) -> None:
    fuzz(frames, travels)


@pytest.mark.parametrize("frames", LATER)
def test_a_federation_file_that_somebody_has_edited(frames: int, tmp_path: Path) -> None:
    file = tmp_path / "hearts.toml"

    def take(draw: Draw) -> None:
        table = changed(draw, tables.table_of(draw.choice(STORIES)))
        raw = tomli_w.dumps(table if isinstance(table, dict) else {"x": table}).encode("utf-8", "replace")
        file.write_bytes(bent(draw, raw) if not draw.randrange(4) else raw)
        for read in (store.read, store.read_card):
            try:
                read(file)
            except ConfigError as error:
                assert str(file) in str(error)

    fuzz(frames, lambda: take)
