"""A document as a table of TOML and as bytes that travel; both are read by the same strict rules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgpack

from p2pfl.errors import RemoteError
from p2pfl.trust import assembly, sites
from p2pfl.trust.document import KINDS, MOST_BYTES, MOST_SITES, Change, Document, Founding
from p2pfl.trust.sites import Site

FORMAT = 1
_MOST_CHANGES = 1024
_SITE = {"name": str, "node": int, "key": str, "address": str}


def table_of(document: Document) -> dict[str, Any]:
    """Return a document as a table: plain dicts, lists, texts and numbers, in one order."""
    founding = document.founding
    members = [{**_site(site), **_signature(document.accepted.get(site.node))} for site in founding.sites]
    changes = [
        {
            **_change(change),
            "signature": [{"by": node, **_signature(signature)} for node, signature in sorted(signatures.items())],
        }
        for change, signatures in sorted(document.changes.items(), key=lambda each: (each[0].number, each[0].digest))
    ]
    table = {"format": FORMAT, "name": founding.name, "quorum": founding.quorum, "member": members}
    return {**table, "change": changes} if changes else table


def _site(site: Site) -> dict[str, Any]:
    table = {"name": site.name, "node": site.node, "key": str(site.key), "address": site.address}
    return table if site.reachable else {**table, "reachable": False}


def _change(change: Change) -> dict[str, Any]:
    head = {"number": change.number, "previous": change.previous, "kind": change.kind}
    if change.kind == "add":
        return {**head, **_site(change.site), "card": sites.text_of(change.card)}
    return {**head, "name": change.site.name, "node": change.site.node, "key": str(change.site.key)}


def _signature(signature: bytes | None) -> dict[str, str]:
    return {} if signature is None else {"signature": sites.text_of(signature)}


def document_of(table: object) -> Document:
    """Return the document in a table.

    Args:
        table: of TOML, or what has travelled.

    Returns:
        The document; whether its signatures are right is for `assembly.verify` to say.

    Raises:
        RemoteError: `format`, `bounds`, or `duplicate` for one member's signature twice; with the place in the table.

    Example:
        >>> from p2pfl.trust import tables
        >>> tables.document_of({"format": 1, "name": "hearts", "quorum": "majority", "memer": []})
        Traceback (most recent call last):
        ...
        p2pfl.errors.RemoteError: format: memer: no such field; did you mean 'member'? ...
    """
    if isinstance(table, dict) and type(table.get("format")) is int and table["format"] != FORMAT:
        raise RemoteError(
            "format", f"format={table['format']}: is not known here; this version of p2pfl reads {FORMAT}"
        )
    given = sites.fields(
        table, "", {"format": int, "name": str, "quorum": str, "member": list}, {"change": list}
    )  # fmt: skip
    sites.check_name(given["name"], "name")
    changes = given.get("change", [])
    if len(given["member"]) > MOST_SITES or len(changes) > _MOST_CHANGES:
        raise RemoteError("bounds", f"more than {MOST_SITES} founding members, or than {_MOST_CHANGES} changes")
    members, accepted = [], {}
    for at, each in enumerate(given["member"]):
        where = f"member[{at}]."
        member = sites.fields(each, where, _SITE, {"reachable": bool, "signature": str})
        members.append(_site_of(member, where))
        if "signature" in member:
            accepted[members[-1].node] = sites.signature_of(member["signature"], f"{where}signature")
    found: dict[Change, Mapping[int, bytes]] = {}
    for at, each in enumerate(changes):
        change, signatures = _change_of(each, f"change[{at}].")
        if change in found:
            raise RemoteError("duplicate", f"change[{at}]: stands twice")
        found[change] = signatures
    return Document(Founding(given["name"], given["quorum"], tuple(members)), accepted, found)


def _change_of(table: object, where: str) -> tuple[Change, dict[int, bytes]]:
    kind = table.get("kind") if isinstance(table, dict) else None
    if isinstance(table, dict) and kind not in KINDS:
        raise RemoteError("format", f"{where}kind: must be one of {', '.join(KINDS)}")
    head = {"number": int, "previous": str, "kind": str, "name": str, "node": int, "key": str, "signature": list}
    if kind == "add":
        given = sites.fields(table, where, {**head, "address": str, "card": str}, {"reachable": bool})
        card = sites.signature_of(given["card"], f"{where}card")
        site = _site_of(given, where)
    else:
        given, card = sites.fields(table, where, head), b""
        site = _site_of({**given, "address": ""}, where)
    if not 1 <= given["number"] <= _MOST_CHANGES:
        raise RemoteError("format", f"{where}number={given['number']}: must be from 1 to {_MOST_CHANGES}")
    signatures: dict[int, bytes] = {}
    if len(given["signature"]) > MOST_SITES:
        raise RemoteError("bounds", f"{where}signature: more than there can be members")
    for at, each in enumerate(given["signature"]):
        inner = f"{where}signature[{at}]."
        one = sites.fields(each, inner, {"by": int, "signature": str})
        if one["by"] in signatures:
            raise RemoteError("duplicate", f"{inner}by={one['by']}: has signed already; each member's counts once")
        signatures[one["by"]] = sites.signature_of(one["signature"], f"{inner}signature")
    return Change(given["number"], given["previous"], given["kind"], site, card), signatures


def _site_of(given: Mapping[str, Any], where: str) -> Site:
    sites.check_name(given["name"], f"{where}name")
    if given["address"] or given.get("kind") != "revoke":
        sites.check_address(given["address"], f"{where}address")
    if not 0 <= given["node"] < 2**31:
        raise RemoteError("format", f"{where}node={given['node']}: must be a whole number from 0 on")
    key = sites.key_of(given["key"], f"{where}key")
    return Site(given["node"], given["name"], key, given["address"], given.get("reachable", True))


# --- as it travels


def pack(document: Document) -> bytes:
    """Return a document as it travels. Raises RemoteError `size` where it has grown beyond what does."""
    packed: bytes = msgpack.packb(table_of(document))
    if len(packed) > MOST_BYTES:
        raise RemoteError("size", f"{len(packed)} bytes; a federation file may have {MOST_BYTES}")
    return packed


def unpack(packed: bytes, known: Document) -> Document:
    """Return the document that has travelled, checked in full.

    Args:
        packed: whatever somebody has sent.
        known: one's own copy; what stands in it is not checked again.

    Returns:
        The document, of the same federation.

    Raises:
        RemoteError: with one word for what is wrong.

    Example:
        >>> from p2pfl.trust import document, keys, sites, tables
        >>> key = keys.PrivateKey(bytes(32))
        >>> alone = document.founded("f", "all", (sites.Site(0, "a", key.public, "tcp://a:1"),))
        >>> tables.unpack(tables.pack(alone), alone) == alone
        True
        >>> tables.unpack(b"no", alone)
        Traceback (most recent call last):
        ...
        p2pfl.errors.RemoteError: format: is no federation file
    """
    if len(packed) > MOST_BYTES:
        raise RemoteError("size", f"{len(packed)} bytes; a federation file may have {MOST_BYTES}")
    try:
        table = msgpack.unpackb(packed, strict_map_key=True, max_str_len=1024, max_bin_len=0, max_ext_len=0)
    except (ValueError, RecursionError) as error:  # every fault of msgpack is a ValueError
        raise RemoteError("format", "is no federation file") from error
    document = document_of(table)
    if document.founding != known.founding:
        raise RemoteError("federation", f"is of another federation: {document.founding.name} {document.id[:16]}")
    assembly.verify(document, known)
    return document


def digest(document: Document) -> bytes:
    """Return 16 bytes by which copies that say different things are told apart without sending them."""
    said = repr(assembly.said(document)).encode()
    return hashlib.blake2b(said, digest_size=16, person=b"p2pfl copy").digest()
