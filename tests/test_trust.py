"""Keys, the federation file as a value, and how copies of it become one: whatever its members, and others, do."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import pickle
import random
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.trust import assembly, document, keyring, keys, merging, sites, store, tables
from p2pfl.trust.assembly import PENDING, PER_SIGNER
from p2pfl.trust.document import Change, Document
from p2pfl.trust.keys import PrivateKey, PublicKey, Purpose
from p2pfl.trust.sites import Card, Site

NAMES = ("north", "south", "west", "east", "coast", "city")
KEY = [PrivateKey(bytes([i + 1]) * 32) for i in range(len(NAMES))]
CARD = [Card.of(key, name, f"tcp://{name}:5700") for key, name in zip(KEY, NAMES, strict=True)]


def founded(members: int = 3, quorum: str = "majority") -> Document:
    return document.founded("hearts", quorum, tuple(CARD[i].site(i) for i in range(members)))


def head(there: Document) -> assembly.Assembly:
    return assembly.read(there).head


def add(there: Document, who: int, *by: int) -> Document:
    """The site `who` is added, signed by these nodes with the keys of their number."""
    return signed(there, assembly.addition(head(there), CARD[who]), *by)


def revoke(there: Document, node: int, *by: int) -> Document:
    return signed(there, assembly.revocation(head(there), node), *by)


def signed(there: Document, change: Change, *by: int) -> Document:
    for node in by:
        there = document.signed(there, change, node, KEY[node])
    assembly.verify(there)
    return merging.merge(there, there)


def members(there: Document) -> list[str]:
    return [each.name for _, each in sorted(head(there).sites.items())]


# --- keys


def test_a_key_comes_back_from_its_file_and_signs_as_before(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    keys.write(tmp_path / "a.key", key)
    again = keys.read(tmp_path / "a.key")
    assert again == key and again.public == key.public != PrivateKey.generate().public
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    signature = again.sign(Purpose.CARD, b"text")
    assert key.public.verify(Purpose.CARD, b"text", signature)
    for purpose, message, other in (
        (Purpose.CHANGE, b"text", signature),
        (Purpose.CARD, b"texts", signature),
        (Purpose.CARD, b"text", bytes(64)),
        (Purpose.CARD, b"text", signature[:63]),
        (Purpose.CARD, b"text", b""),
    ):
        assert not key.public.verify(purpose, message, other)
    assert not KEY[0].public.verify(Purpose.CARD, b"text", signature)


def test_a_key_is_written_for_its_owner_alone_whatever_the_umask_and_never_over_another(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys.write(tmp_path / "a.key", KEY[0])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="is there already"):
        keys.write(tmp_path / "a.key", KEY[1])
    assert keys.read(tmp_path / "a.key") == KEY[0]
    with pytest.raises(ConfigError, match="can't be written: No such file"):
        keys.write(tmp_path / "no" / "a.key", KEY[1])


@pytest.mark.parametrize(
    ("mode", "text", "said"),
    [
        (0o640, None, "mode 640: others on this machine can read or change it"),
        (0o604, None, "mode 604"),
        (0o620, None, "mode 620"),
        (0o600, "", "holds no private key"),
        (0o600, "p2pfl-key:abc", "holds no private key"),
        (0o600, "p2pfl-private-key:abc", "the private key in it is damaged"),
        (0o600, "two", "holds no private key"),
        (0o600, "ä\n", "holds no private key"),
    ],
)
def test_a_key_file_that_is_not_as_it_must_be_is_refused(
    tmp_path: Path, mode: int, text: str | None, said: str
) -> None:
    file = tmp_path / "a.key"
    keys.write(file, KEY[0])
    secret = file.read_text().splitlines()[-1]
    if text is not None:
        file.write_text(f"{secret}\n{secret}\n" if text == "two" else text, "utf-8")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=said) as caught:
        keys.read(file)
    assert str(file) in str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    assert secret not in told and secret.split(":")[1][:12] not in told


def test_a_key_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*keygen makes a key"):
        keys.read(tmp_path / "a.key")
    with pytest.raises(ConfigError, match="Is a directory"):
        keys.read(tmp_path)


def test_every_character_of_a_key_file_counts(tmp_path: Path) -> None:
    file = tmp_path / "a.key"
    keys.write(file, KEY[0])
    *lines, secret = file.read_text().splitlines()
    for at in range(len("p2pfl-private-key:"), len(secret)):
        wrong = secret[:at] + ("a" if secret[at] != "a" else "b") + secret[at + 1 :]
        file.write_text("\n".join([*lines, wrong]))
        with pytest.raises(ConfigError, match="damaged"):
            keys.read(file)


def test_every_character_of_a_public_key_counts() -> None:
    text = str(KEY[0].public)
    assert PublicKey.parse(text) == KEY[0].public
    for at in range(len("p2pfl-key:"), len(text)):
        with pytest.raises(ConfigError, match="a character is wrong"):
            PublicKey.parse(text[:at] + ("a" if text[at] != "a" else "b") + text[at + 1 :])
    for wrong, said in (
        ("", "is no public key"),
        ("p2pfl-key:", "a character is wrong"),
        (text[:-1], "a character is wrong"),
        (text + "a", "a character is wrong"),
        ("ssh-ed25519 AAAA", "is no public key"),
    ):
        with pytest.raises(ConfigError, match=said):
            PublicKey.parse(wrong)


@pytest.mark.parametrize(
    "raw", [bytes(32), bytes([1]) + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", bytes(31), b"\x02" * 32]
)
def test_a_point_that_nobody_can_have_is_no_key(raw: bytes) -> None:
    """Of small order, where anybody's signature is right; not on the curve; not 32 bytes."""
    assert PublicKey.of(raw) is None


def test_a_private_key_shows_nothing_of_itself(tmp_path: Path) -> None:
    keys.write(tmp_path / "a.key", KEY[0])
    secret = (tmp_path / "a.key").read_text().splitlines()[-1]
    ring = keyring.of_document(founded(), KEY[0])
    shown = "".join([repr(KEY[0]), str(KEY[0]), f"{KEY[0]}", repr(ring), str(ring), repr([ring])])
    for hidden in (secret, secret.split(":")[1], repr(KEY[0].reveal()), KEY[0].reveal().hex(), repr(ring.secret)):
        assert hidden not in shown
    for steals in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not copied"):
            steals(KEY[0])


def test_a_private_key_among_public_things_is_refused_and_not_repeated(tmp_path: Path) -> None:
    keys.write(tmp_path / "a.key", KEY[0])
    secret = (tmp_path / "a.key").read_text().splitlines()[-1]
    with pytest.raises(ConfigError, match="a private key stands where a public one belongs") as caught:
        PublicKey.parse(secret)
    assert secret[18:] not in str(caught.value)
    (tmp_path / "f.toml").write_text(f'key = "{secret}"\n')
    for read in (store.read, store.read_card):
        with pytest.raises(ConfigError, match="holds a private key, and is a file for others") as caught:
            read(tmp_path / "f.toml")
        assert secret[18:] not in str(caught.value)


def test_a_keyring_knows_members_and_who_was_one() -> None:
    there = revoke(add(founded(), 3, 0, 1), 1, 0, 2, 3)
    ring = keyring.of_document(there, KEY[0])
    assert (ring.node, ring.names) == (0, {0: "north", 2: "west", 3: "east"})
    assert ring.node_of(KEY[3].public.link) == 3 and ring.key_of(2) == KEY[2].public.link
    assert ring.node_of(KEY[1].public.link) is None and ring.key_of(1) is None
    assert ring.former == {KEY[1].public.link: "south"} and ring.federation == there.id
    other = keyring.of_document(there, KEY[2])
    said = other.sign(b"alive")
    assert ring.verify(2, b"alive", said)
    assert (
        not ring.verify(3, b"alive", said) and not ring.verify(9, b"alive", said) and not ring.verify(2, b"dead", said)
    )
    elsewhere = keyring.of_document(founded(2), KEY[0])
    assert not ring.verify(0, b"alive", elsewhere.sign(b"alive"))  # of another federation
    for key, said_of in ((KEY[1], "is that of south, which hearts has revoked"), (KEY[5], "is no member's of hearts")):
        with pytest.raises(ConfigError, match=said_of):
            keyring.of_document(there, key)


def test_the_secret_of_a_link_goes_with_its_public_key() -> None:
    nacl = pytest.importorskip("nacl.public")
    for key in KEY:
        assert nacl.PrivateKey(key.link_secret).public_key.encode() == key.public.link


# --- what stands


def test_a_change_takes_effect_with_its_quorum_and_not_before() -> None:
    there = founded()
    one = add(there, 3, 0)
    assert members(one) == ["north", "south", "west"] and assembly.pending(one)[0].by == (0,)
    assert members(add(one, 3, 0)) == members(one)  # the same signature twice is one
    both = add(one, 3, 2)
    assert members(both) == ["north", "south", "west", "east"] and assembly.pending(both) == ()
    assert members(revoke(both, 1, 0, 2)) == members(both)  # of four members three must sign
    assert members(revoke(both, 1, 0, 2, 3)) == ["north", "west", "east"]


@pytest.mark.parametrize(("quorum", "add_by", "revoke_by"), [("majority", 3, 3), ("two_thirds", 4, 4), ("all", 5, 4)])
def test_each_quorum_counts_the_members_at_the_time(quorum: str, add_by: int, revoke_by: int) -> None:
    there = founded(5, quorum)
    for n in range(6):
        assert (len(members(add(there, 5, *range(n)))) == 6) == (n >= add_by)
    for n in range(5):
        assert (len(members(revoke(there, 4, *range(n)))) == 4) == (n >= revoke_by)


def test_two_members_revoke_each_other_never_and_the_last_one_stays() -> None:
    for quorum in document.QUORUMS:
        there = founded(2, quorum)
        assert len(members(revoke(there, 1, 0))) == 2
        alone = revoke(there, 1, 0, 1)
        assert members(alone) == ["north"]
        with pytest.raises(RemoteError, match="is the last member"):
            revoke(alone, 0, 0)


def test_an_id_is_never_used_again_and_a_name_may_be() -> None:
    there = revoke(founded(), 2, 0, 1)
    card = Card.of(KEY[5], "west", "tcp://west:5700")
    again = signed(there, assembly.addition(head(there), card), 0, 1)
    assert {node: site.name for node, site in head(again).sites.items()} == {0: "north", 1: "south", 3: "west"}


def test_of_two_changes_at_once_one_stands_the_same_one_everywhere() -> None:
    """Both have their quorum, since one member has signed both; the other must be signed again."""
    for who in (3, 4):
        here, there = add(founded(), who, 0, 1), add(founded(), 7 - who, 1, 2)
        one, other = merging.follow(here, there), merging.follow(there, here)
        assert one.document == other.document and not one.forked and not other.forked
        assert len(one.undone) + len(other.undone) == 1 and {one.changed, other.changed} == {True}
        assert (
            min(assembly.read(each).chain[0].digest for each in (here, there))
            == assembly.read(one.document).chain[0].digest
        )


def test_a_revocation_is_not_undone_by_an_invitation() -> None:
    """Which the one who was revoked could else still sign: whatever the digests."""
    gone = revoke(founded(), 2, 0, 1)
    smaller = 0
    for card in MANY:
        there = signed(founded(), assembly.addition(head(founded()), card), 1, 2)
        smaller += assembly.read(there).chain[0].digest < assembly.read(gone).chain[0].digest
        assert members(merging.merge(there, gone)) == ["north", "south"]
    assert 0 < smaller < len(MANY)


def test_what_something_was_built_on_stands_and_nobody_goes_back_behind_it() -> None:
    for who in (3, 4):
        short, long = add(founded(), who, 0, 1), add(founded(), 7 - who, 1, 2)
        longer = add(long, 5, 0, 1, 2)
        followed = merging.follow(short, longer)
        assert assembly.read(followed.document).chain == assembly.read(longer).chain and len(followed.undone) == 1
        # ... and who is at the longer one stays, whatever the digests
        assert merging.follow(longer, short).document == longer


def test_a_fork_is_told_on_both_sides_and_neither_goes_back() -> None:
    here, there = add(add(founded(), 3, 0, 1), 5, 0, 1, 2), add(add(founded(), 4, 1, 2), 5, 0, 1, 2)
    for one, other in ((here, there), (there, here)):
        followed = merging.follow(one, other)
        assert followed.forked and members(followed.document) == members(one)
    behind = merging.follow(here, founded())
    assert not behind.forked and not behind.changed and behind.document == here


def test_a_replayed_change_changes_nothing() -> None:
    before = add(founded(), 3, 0, 1)
    gone = revoke(before, 3, 0, 1, 2)
    assert merging.follow(gone, before).document == gone
    change = assembly.read(before).chain[0]
    assert members(merging.merge(gone, signed(founded(), change, 0, 1))) == ["north", "south", "west"]


def test_who_was_away_has_all_of_it_from_one_copy() -> None:
    away = founded()
    now = revoke(add(add(founded(), 3, 0, 1), 4, 0, 1, 3), 0, 1, 2, 3)
    assert merging.follow(away, tables.unpack(tables.pack(now), away)).document == now


# --- the laws of merging


POOL: tuple[Callable[[assembly.Assembly], Change], ...] = (
    lambda there: assembly.addition(there, CARD[3]),
    lambda there: assembly.addition(there, CARD[4]),
    lambda there: assembly.revocation(there, 1),
    lambda there: assembly.revocation(there, 2),
)
"""As many as a member may have signed at one assembly."""


def history(
    draws: random.Random, pool: tuple[Callable[[assembly.Assembly], Change], ...], steps: int
) -> list[Document]:
    """Copies at four places, where members sign whatever they like on whatever assembly they know, also old ones."""
    places = [founded()] * 4
    for _ in range(steps):
        at = draws.randrange(4)
        if draws.random() < 0.3:
            places[at] = merging.merge(places[at], places[draws.randrange(4)])
            continue
        before = draws.choice([*assembly.read(places[at]).assemblies.values()])
        try:
            change = draws.choice(pool)(before)
        except KeyError:  # who is to be revoked is no member
            continue
        if assembly.unfit(before, change) is None:
            by = draws.sample(sorted(before.sites), draws.randint(1, min(3, len(before.sites))))
            there = places[at]
            for node in by:
                key = next(each for each in (*KEY, *MANY_KEYS) if each.public == before.sites[node].key)
                there = document.signed(there, change, node, key)
            places[at] = merging.merge(there, there)
    return places


def check_laws(seed: int, every: int) -> None:
    """`every`: of how many orders one is tried."""
    copies = history(random.Random(seed), POOL, 14)
    for each in copies:
        assembly.verify(each)
        assert merging.merge(each, each) == each
        assert tables.document_of(tables.table_of(each)) == each
    for one, other in itertools.permutations(copies, 2):
        assert merging.merge(one, other) == merging.merge(other, one)
        followed = merging.follow(one, other)
        mine, new = assembly.read(one).chain, assembly.read(followed.document).chain
        assert new[: len(mine[:-1])] == mine[:-1]
        assembly.verify(followed.document)
    a, b, c, d = copies
    whole = merging.merge(merging.merge(a, b), merging.merge(c, d))
    for order in itertools.islice(itertools.permutations(copies), 0, None, every):
        together = order[0]
        for each in order[1:]:
            together = merging.merge(together, each)
        assert assembly.said(together) == assembly.said(whole) and tables.digest(together) == tables.digest(whole)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_copies_become_one_in_any_order(seed: int) -> None:
    check_laws(seed, 5)


@pytest.mark.more
@settings(max_examples=250, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_copies_become_one_in_any_order_for_many_histories(seed: int) -> None:
    check_laws(seed, 1)


MANY_KEYS = [PrivateKey(bytes([i + 100]) * 32) for i in range(12)]
MANY = [Card.of(key, f"site-{i}", f"tcp://site-{i}:5700") for i, key in enumerate(MANY_KEYS)]


@pytest.mark.more
@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_members_that_sign_beyond_the_bound_displace_their_own_alone(seed: int) -> None:
    pool = tuple((lambda there, card=card: assembly.addition(there, card)) for card in MANY)
    copies = history(random.Random(seed), (*POOL, *pool), 20)
    for one, other in itertools.permutations(copies, 2):
        both = merging.merge(one, other)
        assert both == merging.merge(other, one) == merging.merge(both, both)
        assembly.verify(both)
        assert len(assembly.read(both).chain) >= max(len(assembly.read(each).chain) for each in (one, other))
    # whoever has what the others have goes by the same chain in the end
    for _ in range(3):
        copies = [functools.reduce(merging.merge, copies, each) for each in copies]
    assert len({assembly.read(each).head.digest for each in copies}) == 1


def test_a_member_that_signs_without_end_keeps_nobody_from_being_heard() -> None:
    there = add(founded(), 3, 0)  # one honest change that waits
    for card in MANY:
        change = assembly.addition(head(there), card)
        there = merging.merge(there, document.signed(there, change, 1, KEY[1]))
    assert len(there.changes) == 1 + PER_SIGNER
    assert members(add(there, 3, 2)) == ["north", "south", "west", "east"]
    assert len(tables.pack(there)) < 8000


@pytest.mark.more
def test_changes_that_wait_are_bounded_in_all_and_everybodys_first_is_heard() -> None:
    many = [PrivateKey(bytes([i, 7]) * 16) for i in range(40)]
    sites_of = [Site(i, f"m{i}", key.public, f"tcp://m{i}:1") for i, key in enumerate(many)]
    there = document.founded("f", "all", tuple(sites_of))
    for i, key in enumerate(many):
        for j in range(PER_SIGNER):
            card = Card.of(PrivateKey(bytes([i, 8 + j]) * 16), f"n{i}-{j}", f"tcp://n{i}-{j}:1")
            there = document.signed(there, assembly.addition(head(there), card), i, key)
    kept = merging.merge(there, there)
    assembly.verify(kept)
    assert len(kept.changes) == PENDING >= document.MOST_SITES
    assert {node for signatures in kept.changes.values() for node in signatures} == {*range(40)}
    with pytest.raises(RemoteError, match="bounds: 160 changes without a quorum"):
        assembly.verify(there)


# --- what is refused


def raw(there: Document) -> dict[str, Any]:
    return tables.table_of(there)


def stranger(there: Document) -> dict[str, Any]:
    return raw(document.signed(there, assembly.addition(head(there), CARD[3]), 7, KEY[4]))


def former(there: Document) -> dict[str, Any]:
    gone = revoke(there, 2, 0, 1)
    return raw(document.signed(gone, assembly.addition(head(gone), CARD[3]), 2, KEY[2]))


def forged(there: Document) -> dict[str, Any]:
    """Signed with a key that is another member's."""
    return raw(document.signed(there, assembly.addition(head(there), CARD[3]), 0, KEY[1]))


def twice(there: Document) -> dict[str, Any]:
    table = raw(add(there, 3, 0))
    table["change"][0]["signature"] *= 2
    return table


def elsewhere(there: Document) -> dict[str, Any]:
    other = add(founded(3, "all"), 3, 0)
    return {**raw(there), "change": raw(other)["change"]}


def transplanted(there: Document) -> dict[str, Any]:
    """The same change of the same site by the same member, which has signed it in another federation."""
    table = elsewhere(there)
    table["change"][0]["previous"] = there.id
    return table


def other_founding(there: Document) -> dict[str, Any]:
    return raw(founded(2))


def foreign_card(there: Document) -> dict[str, Any]:
    """A card whose key another has."""
    card = CARD[3]._replace(key=KEY[4].public)
    return raw(document.signed(there, assembly.addition(head(there), card), 0, KEY[0]))


def changed(there: Document, **fields: Any) -> dict[str, Any]:
    """A change whose site is another than can be added."""
    card = Card.of(KEY[4], "city", "tcp://city:1")
    change = assembly.addition(head(there), card)
    key = fields.pop("by", KEY[4])
    site = change.site._replace(**fields)
    new = Card.of(key, site.name, site.address)
    change = change._replace(site=site._replace(key=key.public), card=new.signature)
    return raw(document.signed(there, change, 0, KEY[0]))


def late(there: Document) -> dict[str, Any]:
    """Built on a change that lacks its quorum."""
    one = add(there, 3, 0)
    change = assembly.read(one).changes.values()
    (first,) = change
    second = Change(2, first.digest, "revoke", head(there).sites[1]._replace(address=""))
    return raw(document.signed(one, second, 0, KEY[0]))


def numbered(there: Document) -> dict[str, Any]:
    change = assembly.addition(head(there), CARD[3])._replace(number=2)
    return raw(document.signed(there, change, 0, KEY[0]))


def nobody(there: Document) -> dict[str, Any]:
    table = raw(add(there, 3, 0))
    table["change"][0]["signature"] = []
    return table


def unknown_revoked(there: Document) -> dict[str, Any]:
    change = assembly.revocation(head(there), 1)
    change = change._replace(site=change.site._replace(node=9))
    return raw(document.signed(there, change, 0, KEY[0]))


def flood(there: Document) -> dict[str, Any]:
    for card in MANY[: PER_SIGNER + 1]:
        there = document.signed(there, assembly.addition(head(there), card), 1, KEY[1])
    return raw(there)


def at(*path: Any, value: Any) -> Callable[[Document], Any]:
    """A document with another value at one place."""

    def changes(there: Document) -> Any:
        table: Any = raw(add(document.accepted(there, 0, KEY[0]), 3, 0))
        inner = table
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        return table

    return changes


REFUSED: Mapping[str, tuple[Callable[[Document], Any], str, str]] = {
    "a change signed by a stranger": (stranger, "stranger", "signed by node 7, which is no member"),
    "a change signed by a revoked key": (former, "revoked", "signed by west, which was revoked before"),
    "a change signed with another's key": (forged, "signature", "the signature of north is not its own"),
    "a change signed by one key twice": (twice, "duplicate", "by=0: has signed already"),
    "a change that nobody has signed": (nobody, "signature", "nobody has signed it"),
    "a change of another federation": (elsewhere, "previous", "is neither this federation nor a change that stands"),
    "a change whose signature was given in another federation": (
        transplanted, "signature", "the signature of north is not its own"
    ),
    "another federation": (other_founding, "federation", "is of another federation"),
    "a card that another has signed": (foreign_card, "card", "is not signed with the key of east"),
    "a change on one without a quorum": (late, "previous", "is neither this federation nor a change that stands"),
    "a change with another number": (numbered, "previous", "is neither this federation nor a change that stands"),
    "an id that is not the next": (lambda t: changed(t, node=5), "subject", "must be 3, the next that nobody has had"),
    "a name that a member has": (lambda t: changed(t, name="south"), "duplicate", "a member has it"),
    "an address that a member has": (
        lambda t: changed(t, address="tcp://SOUTH:5700"), "duplicate", "is that of south; each needs its own"
    ),
    "a key that a member has": (lambda t: changed(t, by=KEY[1]), "duplicate", "is that of south: that of a member"),
    "a key that was revoked": (
        lambda t: changed(revoke(t, 2, 0, 1), by=KEY[2]), "duplicate", "of a member that was revoked; make another"
    ),
    "a revocation of nobody": (unknown_revoked, "subject", "no member with this id, name and key"),
    "more changes than one may sign": (flood, "bounds", "one member may have signed 4"),
    "no table": (lambda t: [1], "format", "must be a table"),
    "another format": (at("format", value=2), "format", "format=2: is not known here"),
    "a field that is none": (at("memer", value=1), "format", "did you mean 'member'?"),
    "a field that clears the screen": (at("a\x1b[2J", value=1), "format", "'a\\x1b[2J': no such field"),
    "a field of a member that is none": (at("member", 1, "keys", value=1), "format", "member[1].keys: no such field"),
    "a text for a number": (at("member", 1, "node", value="1"), "format", "member[1].node: must be a whole number"),
    "true for a number": (at("member", 1, "node", value=True), "format", "member[1].node: must be a whole number"),
    "a name of signs": (at("member", 1, "name", value="a b"), "format", "must be letters, digits"),
    "a name with an escape": (at("name", value="a\x1b[2J"), "format", "must be letters, digits"),
    "a name that ends a line": (at("name", value="hearts\n"), "format", "must be letters, digits"),
    "an address that is none": (at("member", 1, "address", value="south:1"), "format", "must be written tcp://HOST"),
    "all addresses": (at("member", 1, "address", value="tcp://*:5700"), "format", "must be written tcp://HOST"),
    "a port that is none": (at("member", 1, "address", value="tcp://south:65535"), "format", "must be from 1 to 65534"),
    "a key that is none": (at("member", 1, "key", value="p2pfl-key:aa"), "format", "member[1].key='p2pfl-key:aa'"),
    "a signature that is none": (at("member", 0, "signature", value="aa"), "format", "is no signature"),
    "a founding part that was changed": (
        at("member", 1, "address", value="tcp://evil:5700"), "signature", "is not that of north under this"
    ),
    "a quorum that was changed": (at("quorum", value="all"), "signature", "is not that of north"),
    "a quorum that is none": (at("quorum", value="one"), "format", "must be one of majority, two_thirds, all"),
    "members out of order": (at("member", 1, "node", value=2), "subject", "must be 1, its place in the file"),
    "two members of one name": (at("member", 1, "name", value="north"), "duplicate", "member[1].name='north'"),
    "two members of one key": (
        at("member", 1, "key", value=str(KEY[0].public)), "duplicate", "member[1].key: is that of north"
    ),
    "no members": (at("member", value=[]), "bounds", "0 founding members"),
    "too many members": (at("member", value=[{}] * 129), "bounds", "more than 128 founding members"),
    "a kind that is none": (at("change", 0, "kind", value="promote"), "format", "must be one of add, revoke"),
    "a change number that is none": (at("change", 0, "number", value=0), "format", "must be from 1"),
    "a node below 0": (at("change", 0, "node", value=-1), "format", "must be a whole number from 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_with_a_document_is_told_by_name(what: str) -> None:
    made, reason, said = REFUSED[what]
    with pytest.raises(RemoteError) as caught:
        if reason == "federation":
            tables.unpack(msgpack.packb(made(founded())), founded())
        else:
            assembly.verify(tables.document_of(made(founded())))
    assert caught.value.reason == reason and said in caught.value.detail


def test_a_key_that_differs_in_its_sign_alone_is_the_same_link() -> None:
    """Of every point there is one with the other sign, whose links have one key: a member must not be taken twice."""
    raw_key = KEY[0].public.raw
    twin = PublicKey(raw_key[:-1] + bytes([raw_key[-1] ^ 0x80]))
    assert twin.link == KEY[0].public.link and twin.same_link(KEY[0].public) and twin != KEY[0].public
    assert not KEY[1].public.same_link(KEY[0].public)
    there = document.founded("f", "all", (CARD[0].site(0), Site(1, "twin", twin, "tcp://twin:1")))
    with pytest.raises(RemoteError, match="duplicate"):
        assembly.verify(there)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_comes_is_a_document_or_a_reason(data: st.DataObject) -> None:
    known = document.accepted(founded(), 0, KEY[0])
    packed = bytearray(tables.pack(add(known, 3, 0)))
    for _ in range(data.draw(st.integers(0, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))] if data.draw(st.booleans()) else packed
    try:
        there = tables.unpack(bytes(packed), known)
    except RemoteError as error:
        assert error.reason.isalpha()
    else:
        merging.follow(known, there)


NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["format", "name", "member", "change", "node", "key"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.more
@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=NESTED)
def test_whatever_a_table_holds_there_is_a_reason(value: Any) -> None:
    with pytest.raises(RemoteError):
        tables.unpack(msgpack.packb(value), founded())


def test_bytes_beyond_the_bound_are_not_looked_at() -> None:
    for wrong, reason in ((b"\xc1" * (document.MOST_BYTES + 1), "size"), (b"\x91" * 2000, "format"), (b"", "format")):
        with pytest.raises(RemoteError) as caught:
            tables.unpack(wrong, founded())
        assert caught.value.reason == reason


def test_a_copy_never_grows_beyond_what_travels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here, there = add(founded(), 3, 0), add(founded(), 4, 1)
    store.create(tmp_path / "f.toml", here)
    monkeypatch.setattr(tables, "MOST_BYTES", max(len(tables.pack(each)) for each in (here, there)) + 10)
    with pytest.raises(RemoteError, match="size"):
        merging.follow(here, there)
    with pytest.raises(ConfigError, match="it is full; found a new federation"):
        store.change(tmp_path / "f.toml", lambda now: add(now, 4, 1))
    with pytest.raises(ConfigError, match="it is full"):
        store.keep(tmp_path / "f.toml", there)
    assert store.read(tmp_path / "f.toml") == here


# --- the file


def test_a_file_comes_back_as_it_was_and_can_be_read_by_people(tmp_path: Path) -> None:
    there = add(document.accepted(founded(), 1, KEY[1]), 3, 0)
    store.create(tmp_path / "hearts.toml", there)
    assert store.read(tmp_path / "hearts.toml") == there
    text = (tmp_path / "hearts.toml").read_text()
    assert 'name = "north"' in text and text.count("[[change]]") == 1 and "It holds no secret" in text
    assert stat.S_IMODE((tmp_path / "hearts.toml").stat().st_mode) == 0o644
    with pytest.raises(ConfigError, match="is there already"):
        store.create(tmp_path / "hearts.toml", there)


def test_a_node_and_a_command_do_not_lose_each_others_records(tmp_path: Path) -> None:
    file = tmp_path / "hearts.toml"
    store.create(file, founded())
    running = document.accepted(founded(), 1, KEY[1])  # what a node has heard meanwhile
    store.change(file, lambda there: add(there, 3, 0))
    kept = store.keep(file, running)
    assert kept.changed and kept.document == store.read(file)
    assert [*kept.document.accepted] == [1] and len(kept.document.changes) == 1
    before = file.stat().st_mtime_ns, file.stat().st_ino
    assert not store.keep(file, kept.document).changed and (file.stat().st_mtime_ns, file.stat().st_ino) == before


@pytest.mark.more
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each signs as another member, time and again, while the others do."""
    file = tmp_path / "hearts.toml"
    store.create(file, founded(4, "all"))
    code = (
        "import sys, test_trust as t\nfrom pathlib import Path\nfrom p2pfl.trust import document, store\n"
        "node, file = int(sys.argv[1]), Path(sys.argv[2])\n"
        "for card in t.MANY[:4]:\n"
        "    store.change(file, lambda there: document.signed(there, t.assembly.addition(t.head(there), card), node,"
        " t.KEY[node]))\n"
        "    store.keep(file, document.accepted(t.founded(4, 'all'), node, t.KEY[node]))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(node), str(file)], cwd=Path(__file__).parent)
        for node in range(3)
    ]
    assert [each.wait() for each in started] == [0, 0, 0]
    there = store.read(file)
    assert sorted(there.accepted) == [0, 1, 2] and len(there.changes) == 4
    assert all(sorted(signatures) == [0, 1, 2] for signatures in there.changes.values())
    assert {path.name for path in tmp_path.iterdir()} == {"hearts.toml", ".hearts.toml.lock"}  # nothing half written


def test_a_file_of_a_fork_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "hearts.toml"
    here, there = add(add(founded(), 3, 0, 1), 5, 0, 1, 2), add(add(founded(), 4, 1, 2), 5, 0, 1, 2)
    store.create(file, there)
    kept = store.keep(file, here)
    assert kept.forked and kept.document == here and store.read(file) == there
    store.create(tmp_path / "other.toml", founded(2))
    with pytest.raises(ConfigError, match="it was another file when this node began"):
        store.keep(tmp_path / "other.toml", here)


def test_a_link_to_a_file_stays_one_and_its_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    store.create(tmp_path / "there" / "hearts.toml", founded())
    (tmp_path / "there" / "hearts.toml").chmod(0o600)
    (tmp_path / "link.toml").symlink_to(tmp_path / "there" / "hearts.toml")
    store.change(tmp_path / "link.toml", lambda there: document.accepted(there, 0, KEY[0]))
    assert (tmp_path / "link.toml").is_symlink() and [*store.read(tmp_path / "link.toml").accepted] == [0]
    assert stat.S_IMODE((tmp_path / "there" / "hearts.toml").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "format: missing"),
        ("a = ", "not TOML"),
        ("\xff", "not TOML"),
        ("a = 1\n" * 200_000, "is larger than"),
        ("key = 1\nsignature = 2\n", "is the card of a site"),
        ("format = 1\nname = 1\n", "name: must be a text. The file is not as its members have signed it"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=said):
        store.read(tmp_path / "f.toml")


def test_a_card_is_its_sites_own(tmp_path: Path) -> None:
    file = tmp_path / "a.card.toml"
    store.write_card(file, CARD[0])
    assert store.read_card(file) == CARD[0]
    file.write_text(file.read_text().replace("tcp://north", "tcp://evil"))
    with pytest.raises(ConfigError, match="the card was changed after it was made"):
        store.read_card(file)
    store.create(tmp_path / "f.toml", founded())
    with pytest.raises(ConfigError, match="is a federation file; give cards"):
        store.read_card(tmp_path / "f.toml")
    with pytest.raises(RemoteError, match="card"):
        sites.card_of({**CARD[0].table(), "reachable": False})
