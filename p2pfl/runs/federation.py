"""`p2pfl federation`: keys and cards of sites, the file that names the members, and changes that they sign."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from p2pfl.config import experiment as config
from p2pfl.config import toml
from p2pfl.errors import ConfigError, RemoteError, nearest
from p2pfl.runs import keyed
from p2pfl.trust import assembly, document, keyring, keys, merging, sites, store
from p2pfl.trust.assembly import PENDING, PER_SIGNER, Assembly
from p2pfl.trust.document import Change, Document
from p2pfl.trust.keys import PrivateKey
from p2pfl.trust.sites import Card, Site

Say = Callable[[str], None]


# --- keygen


def keygen(name: str, address: str, reachable: bool, say: Say) -> None:
    """Write the key and the card of a site, NAME.key and NAME.card.toml. Raises ConfigError before anything is written.

    `address`: as the others reach it. `reachable`: they can connect to it. `say`: is told what was done.
    """
    key = PrivateKey.generate()
    card = Card.of(key, name, address, reachable)
    wrong = keyed.fault_of(name, address)
    if wrong is not None:
        raise ConfigError(wrong)
    private, public = Path(f"{name}.key"), Path(f"{name}.card.toml")
    for path in (private, public):
        if path.exists():
            raise ConfigError(
                f"{path}: is there already, and a key is never overwritten; give another name, or, if nobody has the "
                f"card yet, remove {private} and {public} first"
            )
    keys.write(private, key)
    store.write_card(public, card)
    say(f"{private}: the private key of {name}: it stays on this machine, and nobody is sent it")
    say(f"{public}: the card of {name}, to be sent to the site that writes the federation file")
    say(f"fingerprint: {key.public.fingerprint}")


# --- init


def init(file: Path, cards: Sequence[Path], quorum: str, say: Say) -> None:
    """Write a federation file with the sites of the cards as founding members. Raises ConfigError."""
    found = [store.read_card(each) for each in cards]
    name = file.name.removesuffix(".toml")
    try:
        sites.check_name(name, "the name of the file")
    except RemoteError as error:
        raise ConfigError(f"{file}: {error.detail}; it is the name of the federation") from error
    members = tuple(each.site(node) for node, each in enumerate(found))
    new = document.founded(name, quorum, members)
    try:
        assembly.verify(new)
    except RemoteError as error:
        raise ConfigError(f"{file}: {error.detail}; node ids are the order of the cards") from error
    for wrong in keyed.faults(members):
        raise ConfigError(f"{file}: {wrong}")
    store.create(file, new)
    for line in lines(new):
        say(line)
    say(f"Next, at every site, with a copy of {file}: p2pfl federation accept {file} --key NAME.key")


# --- accept


class NodeWanted(NamedTuple):
    """A node file that is to be written beside."""

    experiment: Path
    file: Path
    rows: Path | None  # this machine's own


def accept(file: Path, key_file: Path, wanted: NodeWanted | None, agreed: Callable[[], bool], say: Say) -> None:
    """Accept a federation with a site's key: sign its founding part, and write the site's node file if that is wanted.

    `agreed`: asks the person, when all is shown. Raises ConfigError before anything is written.
    """
    there, key = store.read(file), keys.read(key_file)
    own = _member(file, there, key_file, key)
    head = assembly.read(there).head
    for wrong in keyed.faults([*head.sites.values()]):
        raise ConfigError(f"{file}: {wrong}")
    for line in lines(there):
        say(line)
    say(f"You are {own.name}, node {own.node}.")
    founder = own.node < len(there.founding.sites)
    signs = founder and own.node not in there.accepted
    if wanted is not None:
        _check_wanted(wanted, len(there.founding.sites), say)
    if signs and not agreed():
        raise ConfigError(f"{file}: not accepted, and nothing was written; with the answer yes, or --yes, it is")
    if signs:
        store.change(file, lambda now: document.accepted(now, own.node, key))
    said = (
        "accepted"
        if signs
        else "was accepted before"
        if founder
        else "is a member by a change; there is no more to sign"
    )
    say(f"{file}: {own.name} {said}")
    if wanted is not None:
        _write_node(file, key_file, wanted)
        say(
            f"{wanted.file}: its node file; p2pfl doctor {wanted.file} tries it, and p2pfl node {wanted.file} starts it"
        )


def _check_wanted(wanted: NodeWanted, members: int, say: Say) -> None:
    """Raises ConfigError where a node file can't be written as it is wanted."""
    if os.path.lexists(wanted.file):
        raise ConfigError(f"{wanted.file}: is there already, and nothing is overwritten; give another name")
    if not wanted.file.absolute().parent.is_dir():
        raise ConfigError(f"{wanted.file}: there is no folder {wanted.file.absolute().parent}")
    planned = config.load(wanted.experiment).topology.nodes
    if planned is not None and planned != members:
        say(
            f"note: {wanted.experiment}: topology.nodes={planned}, and {members} members have founded the federation; "
            "give it as many nodes"
        )
    if wanted.rows is not None and not wanted.rows.exists():
        raise ConfigError(f"--data {wanted.rows}: no such file; the full path is {wanted.rows.resolve()}")


def _write_node(file: Path, key_file: Path, wanted: NodeWanted) -> None:
    folder = wanted.file.absolute().parent
    table: dict[str, Any] = {
        "experiment": _beside(wanted.experiment, folder), "federation": _beside(file, folder),
        "key": _beside(key_file, folder),
    }  # fmt: skip
    if wanted.rows is not None:
        table["data"] = _rows(wanted, folder)
    with wanted.file.open("x", encoding="utf-8") as opened:
        opened.write(f"# docs/experiment.md of p2pfl has every field that can stand here.\n{tomli_w.dumps(table)}")


def _rows(wanted: NodeWanted, folder: Path) -> dict[str, Any]:
    """The [data] of a node file: the path alone where the experiment says the source, else with one by its name."""
    assert wanted.rows is not None
    path = _beside(wanted.rows, folder)
    by_name = "npz" if wanted.rows.suffix == ".npz" else "folder" if wanted.rows.is_dir() else "csv"
    source = toml.read(wanted.experiment)["data"].get("source")
    return {"path": path} if source in ("csv", "npz", "folder") else {"source": by_name, "path": path}


def _beside(path: Path, folder: Path) -> str:
    """How a file in a folder names another: by its way from there, where that does not lead up."""
    way = os.path.relpath(path.absolute(), folder)
    return str(path.absolute()) if way.startswith("..") else way


# --- changes


def invite(file: Path, card: Path, key_file: Path, say: Say) -> None:
    """Sign that the site of a card becomes a member. Raises ConfigError before anything is written."""
    key, new = keys.read(key_file), store.read_card(card)

    def wanted(there: Document, head: Assembly) -> Change:
        change = assembly.addition(head, new)
        wrong = assembly.unfit(head, change)
        if wrong is not None:
            raise ConfigError(f"{card}: {wrong.detail}")
        for fault in keyed.faults([*head.sites.values(), change.site]):
            raise ConfigError(f"{card}: {fault}")
        return change

    again = f"p2pfl federation invite {file} {card}"
    say(f"{new.name}: {new.key.fingerprint}  {new.address}{'' if new.reachable else ', not reachable'}")
    _sign(file, key_file, key, wanted, again, say)


def revoke(file: Path, name: str, key_file: Path, say: Say) -> None:
    """Sign that a member is one no more. Raises ConfigError before anything is written."""
    key = keys.read(key_file)

    def wanted(there: Document, head: Assembly) -> Change:
        member = next((each for each in head.sites.values() if each.name == name), None)
        if member is None:
            gone = [each for each in head.former.values() if each.name == name]
            said = (
                "was revoked already"
                if gone
                else f"is no member; {nearest(name, [s.name for s in head.sites.values()])}"
            )
            raise ConfigError(f"{file}: {name} {said}")
        change = assembly.revocation(head, member.node)
        wrong = assembly.unfit(head, change)
        if wrong is not None:
            raise ConfigError(f"{file}: {name}: {wrong.detail}, and a federation without members is none")
        return change

    beside: list[Change] = []

    def noted(there: Document, head: Assembly) -> Change:
        change = wanted(there, head)
        revoked = [each.change for each in assembly.pending(there) if each.change.kind == "revoke"]
        beside[:] = [each for each in revoked if each != change]
        return change

    _sign(file, key_file, key, noted, f"p2pfl federation revoke {file} {name}", say)
    if beside:
        say(
            f"note: {', '.join(map(str, beside))} waits as well, and {name} can still sign that: of two revocations at "
            "once one stands, by their digests, and the other is to be signed again; p2pfl federation list says which"
        )


def _sign(
    file: Path, key_file: Path, key: PrivateKey, wanted: Callable[[Document, Assembly], Change], again: str, say: Say
) -> None:
    """Sign a change of the members of now, and say what it still needs. `again`: the command for the others."""
    signed: list[tuple[Change, Site, bool]] = []

    def how(there: Document) -> Document:
        own = _member(file, there, key_file, key)
        head = assembly.read(there).head
        change = wanted(there, head)
        before = own.node in there.changes.get(change, {})
        new = document.signed(there, change, own.node, key)
        waits = [each.change for each in assembly.pending(new) if own.node in each.by]
        same = [each for each in waits if each.kind == change.kind and each != change]
        if change in waits and len(same) >= PER_SIGNER:
            raise ConfigError(
                f"{file}: {own.name} has signed {len(same)} changes that still lack signatures: "
                f"{', '.join(map(str, same))}; wait until one is in force"
            )
        signed.append((change, own, before))
        if change not in merging.merge(new, new).changes:
            raise ConfigError(f"{file}: {PENDING} changes of other members lack signatures; wait until one is in force")
        return new

    there = store.change(file, how)
    change, own, before = signed[-1]
    say(f"{change}: signed by {own.name}{' already' if before else ''}")
    say(_standing(there, change, again))


def _standing(there: Document, change: Change, again: str) -> str:
    """What a change that was just signed still needs."""
    reading = assembly.read(there)
    names = {node: each.name for node, each in reading.assemblies[change.previous].sites.items()}
    if change in reading.chain:
        said = change.effect
        return f"in force: {said}; nodes that run take it up, and the others have it from them or from this file"
    (pending,) = [each for each in assembly.pending(there) if each.change == change]
    others = ", ".join(name for node, name in sorted(names.items()) if node not in pending.by)
    more = pending.needed - len(pending.by)
    return f"not in force yet: {more} more of {others} must sign it, with their key: {again} --key NAME.key"


def _member(file: Path, there: Document, key_file: Path, key: PrivateKey) -> Site:
    """The member whose key this is. Raises ConfigError."""
    try:
        ring = keyring.of_document(there, key)
    except ConfigError as error:
        raise ConfigError(f"{file}: --key {key_file}: {error}") from error
    return assembly.read(there).head.sites[ring.node]


# --- what a file says


def lines(there: Document) -> Iterator[str]:
    """Yield what a federation file says, in words."""
    table = listed(there)
    yield f"{table['name']}: {len(table['members'])} members, quorum {table['quorum']}, id {table['id'][:16]}"
    width = max(len(each["name"]) for each in table["members"])
    for each in table["members"]:
        yield (
            f"  node {each['node']:<3} {each['name']:<{width}}  {each['fingerprint']}  {each['address']}"
            f"{'' if each['reachable'] else ', not reachable'}{'' if each['accepted'] else ', has not accepted yet'}"
        )
    for each in table["pending"]:
        yield (
            f"  pending: {each['kind']} {each['name']} ({each['fingerprint']}), signed by "
            f"{', '.join(each['signed_by'])}; {each['missing']} more needed"
        )
    for each in table["revoked"]:
        yield f"  revoked: {each['name']} ({each['fingerprint']}), was node {each['node']}"
    yield f"  after {table['changes']} changes: {table['head'][:16]}"


def listed(there: Document) -> dict[str, Any]:
    """Return what a federation file says, for --json."""
    reading = assembly.read(there)
    head, founders = reading.head, len(there.founding.sites)
    names = {node: each.name for node, each in head.sites.items()}
    members = [
        {
            **_site(each),
            "address": each.address,
            "reachable": each.reachable,
            "accepted": node >= founders or node in there.accepted,
        }
        for node, each in sorted(head.sites.items())
    ]
    pending = [
        {
            "kind": each.change.kind, **_site(each.change.site), "signed_by": [names[node] for node in each.by],
            "needed": each.needed, "missing": each.needed - len(each.by),
        }
        for each in assembly.pending(there)
    ]  # fmt: skip
    return {
        "name": there.founding.name, "id": there.id, "quorum": there.founding.quorum, "members": members,
        "pending": pending, "revoked": [_site(each) for _, each in sorted(head.former.items())],
        "changes": head.number, "head": head.digest,
    }  # fmt: skip


def _site(site: Site) -> Mapping[str, Any]:
    return {
        "node": site.node, "name": site.name, "key": str(site.key), "fingerprint": site.key.fingerprint,
    }  # fmt: skip


def check(file: Path, key_file: Path | None, say: Say) -> list[str]:
    """Check a federation file, and a key that should be a member's; return what is wrong. Raises ConfigError."""
    there = store.read(file)
    say(f"{file}: every signature in it is right")
    head = assembly.read(there).head
    wrong = [f"{file}: {each}" for each in keyed.faults([*head.sites.values()])]
    late = [each for each in there.founding.sites if each.node in head.sites and each.node not in there.accepted]
    for each in late:
        say(f"{file}: {each.name} has not accepted it yet: p2pfl federation accept {file} --key {each.name}.key there")
    if key_file is not None:
        try:
            own = _member(file, there, key_file, keys.read(key_file))
            say(f"{key_file}: the key of {own.name}, node {own.node}, which its owner alone can read")
        except ConfigError as error:
            wrong.append(str(error))
    return wrong
