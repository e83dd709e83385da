"""Who a node is and whom it may talk to: from its file alone, or from the federation file and the key that it names."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from p2pfl.config import toml
from p2pfl.config.data import Data
from p2pfl.config.experiment import NodeFile
from p2pfl.drivers.live import addresses
from p2pfl.drivers.live.trusted import Trusted
from p2pfl.errors import ConfigError
from p2pfl.federation import secure
from p2pfl.node.said import Said
from p2pfl.node.task import Task
from p2pfl.trust import assembly, keyring, keys, masks, store
from p2pfl.trust.document import Document
from p2pfl.trust.keyring import Keyring
from p2pfl.trust.sites import Site


class CompleteNode(NamedTuple):
    """A node file with what follows from the federation file that it names."""

    experiment: str
    node: int
    listen: str
    address: str
    peers: tuple[str, ...]
    out: str | None
    data: Data | None
    federation: Path | None  # where the federation file lies; None: there is none, and links are in the clear
    calls: bool = False  # nobody can call it: it calls whoever can be called
    admitted: int = 0  # nodes that there can be, by the word of the federation file


def completed(file: Path | str, given: NodeFile) -> tuple[CompleteNode, Keyring | None]:
    """Return a node with all that its file leaves to the federation file, and the keys that it goes by.

    Args:
        file: the node file, for error texts and paths in it; "join" where there is none.
        given: what stands in it.

    Returns:
        The node, and its keyring; None where its links are in the clear.

    Raises:
        ConfigError: a field is missing, contradicts the federation file, or can't be used; or the key is no member's.

    Example:
        >>> from p2pfl.config.experiment import NodeFile
        >>> from p2pfl.runs.keyed import completed
        >>> node, ring = completed("a.toml", NodeFile("experiment.toml", 0, "tcp://127.0.0.1:5700"))
        >>> node.address, ring
        ('tcp://127.0.0.1:5700', None)
        >>> completed("a.toml", NodeFile("experiment.toml", 0, "tcp://10.0.0.1:5700"))
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: a.toml: listen='tcp://10.0.0.1:5700': is beyond this machine, and ...
    """
    if given.federation is None:
        return _without_keys(file, given), None
    if given.key is None:
        raise ConfigError(f'{file}: key: missing; with a federation it must be given, as in key = "north.key"')
    if given.plaintext:
        raise ConfigError(
            f"{file}: plaintext=true: the members of {given.federation} have keys, and talk to nobody in the clear; "
            "leave it out"
        )
    beside = Path(file).parent if str(file) != "join" else Path()
    where, key_file = (toml.located(name, beside) for name in (given.federation, given.key))
    document, key = store.read(where), keys.read(key_file)
    try:
        ring = keyring.of_document(document, key)
    except ConfigError as error:
        raise ConfigError(f"{file}: key={given.key!r}: {error}") from error
    sites = assembly.read(document).head.sites
    own = sites[ring.node]
    _check_accepted(file, given, document, own)
    wrong = next(faults([*sites.values()]), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {wrong}")
    node = _of_site(file, given, own, [*sites.values()], where)
    return node._replace(admitted=assembly.read(document).head.next_node), ring


def trusted(node: CompleteNode, ring: Keyring | None, say: Callable[[str], None]) -> Trusted | None:
    """Return what a node goes by while it runs, and say how its links are kept."""
    if node.federation is None or ring is None:
        if not all(addresses.parsed(at).loopback for at in (node.listen, node.address, *node.peers)):
            text = (
                "plaintext = true: models and membership travel in the clear, and whoever reaches the port is believed"
            )
            say(Said(text, "plaintext", logging.WARNING))
        return None
    text = f"{ring.names[ring.node]} of the federation {ring.federation}: links are encrypted, members prove their keys"
    say(Said(text, "federation"))
    return Trusted(node.federation, ring.signer, lambda text: say(Said(text, "federation")))


def masking(file: Path | str, task: Task, trusted: Trusted | None, own: bool) -> Task:
    """Return the task of a node, whose masks are made with the keys of its site.

    Args:
        file: of the node.
        task: as the experiment has it: masks follow from the seed.
        trusted: what it goes by while it runs; None: it has no keys.
        own: the node holds rows of its own, so that this is no study.

    Returns:
        The task.

    Raises:
        ConfigError: it is no study, and there are no keys; or none of some node of the experiment.
    """
    if task.sums is None and not (isinstance(task.site, dict) and "secrets" in task.site):
        return task
    if trusted is None:
        if own:
            raise ConfigError(
                f"{file}: federation: missing, and the experiment asks for [secure]: masks are made with the keys of "
                "sites. p2pfl federation keygen makes one, docs/federation.md is the whole way; or leave [secure] out"
            )
        return task

    @functools.cache  # also of one that is revoked while a round with it is under way: no id is used again
    def secret(node: int) -> bytes:
        if trusted.keyring is None:
            raise KeyError(node)
        return masks.of_keys(trusted.keyring)(node)

    sums = None if task.sums is None else task.sums._replace(secret=secret)
    return task._replace(sums=sums, site=secure.with_keys(task.site, secret, task.node))


def whose(node: CompleteNode) -> dict[str, int]:
    """Return the members by their addresses, as the federation file has them."""
    if node.federation is None:
        return {}
    sites = assembly.read(store.read(node.federation)).head.sites.values()
    return {site.address: site.node for site in sites} | {node.address: node.node}


def _without_keys(file: Path | str, given: NodeFile) -> CompleteNode:
    if given.key is not None:
        raise ConfigError(f"{file}: key={given.key!r}: goes with a federation; give federation = FILE, too")
    for name in ("node", "listen"):
        if getattr(given, name) is None:
            raise ConfigError(f"{file}: {name}: {toml.MISSING_PLACE}")
    assert given.node is not None and given.listen is not None
    node = CompleteNode(
        given.experiment, given.node, given.listen, given.address or given.listen, given.peers, given.out, given.data,
        None,
    )  # fmt: skip
    check_places(file, node)
    if not given.plaintext:
        for name, at in (("listen", node.listen), ("address", node.address), *(("peers", at) for at in node.peers)):
            if not addresses.parsed(at).loopback:
                raise ConfigError(
                    f"{file}: {name}={at!r}: is beyond this machine, and there are no keys: whoever reaches the port "
                    "could read models, and send some. To make keys: p2pfl federation keygen NAME --address "
                    f"{_told(node)} at every site, p2pfl federation init FILE CARD... at one of them, and p2pfl "
                    "federation accept FILE --key NAME.key at every site; then federation = FILE and key = NAME.key "
                    "stand here instead of node, listen, address and peers. On a network that you trust: plaintext = "
                    "true, at every node"
                )
    return node


def _told(node: CompleteNode) -> str:
    address = addresses.parsed(node.address)
    return "tcp://HOST:PORT" if address.loopback or address.anywhere else node.address


def _check_accepted(file: Path | str, given: NodeFile, document: Document, own: Site) -> None:
    founder = own.node < len(document.founding.sites)
    if founder and own.node not in document.accepted:
        raise ConfigError(
            f"{file}: federation={given.federation!r}: {own.name} has not accepted it yet: p2pfl federation accept "
            f"{given.federation} --key {given.key}"
        )


def _of_site(file: Path | str, given: NodeFile, own: Site, sites: Sequence[Site], where: Path) -> CompleteNode:
    """The node of a member; what its file says beside the federation file must be the same."""
    others = [each for each in sites if each.node != own.node]
    peers = tuple(each.address for each in others if each.reachable)
    if given.node is not None and given.node != own.node:
        raise ConfigError(
            f"{file}: node={given.node!r}: {given.federation} has {own.node!r} for {own.name}, whose key it is; leave "
            "it out"
        )
    if given.address is not None and not own.reachable:
        raise ConfigError(
            f"{file}: address={given.address!r}: {given.federation} says of {own.name} that nobody can connect to it; "
            "leave it out"
        )
    strange = next((each for each in given.peers if each not in peers), None)
    if strange is not None:
        raise ConfigError(
            f"{file}: peers={strange!r}: is the address of no other member of {given.federation} that can be reached; "
            "leave peers out"
        )
    if others and not peers and not own.reachable:
        raise ConfigError(f"{where}: no member but this one is there to be reached: one of them must be reachable")
    address = given.address or own.address  # one that has moved tells the others so itself, under its signature
    at = addresses.parsed(address)
    inside = f"tcp://127.0.0.1:{at.port}" if not own.reachable else address if at.loopback else None
    listen = given.listen or inside or f"tcp://*:{at.port}"
    node = CompleteNode(given.experiment, own.node, listen, address, peers, given.out, given.data, where)
    check_places(file, node)
    return node if own.reachable else node._replace(address=f"dials://{own.node}", calls=True)


def check_places(file: Path | str, node: CompleteNode) -> None:
    """Raises ConfigError where an address of a node can't be used."""
    for name, value in (("listen", node.listen), ("address", node.address), *(("peers", peer) for peer in node.peers)):
        where = addresses.parsed(value)
        if value.count("[") and not where.numeric:
            raise ConfigError(
                f"{file}: {name}={value!r}: no IPv6 address stands in the brackets; write it as tcp://[fd00::7]:5555"
            )
        if not 1 <= where.port <= 65534:
            raise ConfigError(
                f"{file}: {name}={value!r}: the port must be from 1 to 65534, for the next one is used as well"
            )
    if addresses.parsed(node.address).anywhere:
        raise ConfigError(
            f"{file}: listen={node.listen!r}: stands for all addresses of this machine, and the others must know one; "
            'give one of them, as in address = "tcp://192.168.0.7:5555"'
        )


def faults(sites: Sequence[Site]) -> Iterator[str]:
    """Yield what is wrong with the addresses of members, each with its way out."""
    loopback = {each.node: addresses.parsed(each.address).loopback for each in sites}
    outside = next((each for each in sites if not loopback[each.node]), None)
    for each in sites:
        wrong = fault_of(each.name, each.address)
        if wrong is not None:
            yield wrong
        elif loopback[each.node] and outside is not None:
            yield (
                f"address={each.address!r} of {each.name}: means the machine where it is read, and {outside.name} is "
                f"on another ({outside.address}); {each.name} makes its card again with the name or number by "
                "which the others reach it"
            )
    if len(sites) > 1 and not any(each.reachable for each in sites):
        yield "reachable=false: of all members, so that nobody can connect to anybody; one of them must be reachable"


def fault_of(name: str, address: str) -> str | None:
    """Return why an address can't be told to others; None where it can."""
    at = addresses.parsed(address)
    if at.anywhere:
        return (
            f"address={address!r} of {name}: stands for all addresses of a machine, and the others must know one; give "
            "the name or number by which they reach it, as in tcp://192.168.0.7:5700"
        )
    if "[" in address and not at.numeric:
        return (
            f"address={address!r} of {name}: no IPv6 address stands in the brackets; write it as tcp://[fd00::7]:5700"
        )
    return None
