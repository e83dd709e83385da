"""What `p2pfl doctor` finds out about a node: does it connect in both directions; if not, which side fails."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import optax

from p2pfl.config import experiment as config
from p2pfl.config.data import ScriptData
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.live import addresses, checkup, files, ports, versions
from p2pfl.drivers.live.checkup import Account, Connections, Contact, TriedNode
from p2pfl.drivers.live.reach import REACHED, LookEnd
from p2pfl.drivers.live.settings import models_address
from p2pfl.drivers.live.zmtp import Kind
from p2pfl.errors import ConfigError, Exit, P2PFLError
from p2pfl.federation.federation import Federation, build, build_own, build_script, digest, precision
from p2pfl.federation.learning import ScriptedSteps
from p2pfl.node import result
from p2pfl.runs import keyed, machine, node
from p2pfl.runs.keyed import CompleteNode
from p2pfl.runs.machine import Finding, State
from p2pfl.runs.script_model import stepless
from p2pfl.trust.keyring import Keyring

_STRANGERS = 1 << 31
"""Nodes that there can be, where the experiment does not say."""

_TOLD = 3
"""Callers that were hung up of whom a word is said."""


# --- a node


def examine(file: Path, wait: float, say: Callable[[str], None]) -> Iterator[Finding]:
    """Yield what is found about the node in a file; `wait` and `say` as in `doctor.diagnose`."""
    try:
        if not config.is_node(file):
            raise ConfigError(f"{file}: is no node file: it names no experiment; docs/experiment.md says what it is")
        given, ring = keyed.completed(file, config.load_node(file))
    except ConfigError as error:
        yield Finding("node file", State.BAD, str(error), "mend the file; nothing else of it was looked at")
        return
    yield from _records(file, given)
    yield _keys(given, ring)
    federation = None
    try:
        federation = _federation(given)
        count, graph = max(len(federation.graph), given.admitted), federation.graph
        near = sorted(graph.neighbors(given.node)) if given.node in graph else "as they are when it joins"
        rows = "rows of a script"
        if not isinstance(federation.experiment.data, ScriptData):
            rows = f"{len(federation.partition.train[given.node])} training rows"
        text = f"{given.experiment}: node {given.node} of {count}, {rows}, neighbours {near}"
        yield Finding("experiment", State.GOOD, f"{text}; federation {digest(federation)}")
        files.fits(count, files.raised(), here=False)
    except P2PFLError as error:
        yield Finding("experiment", State.BAD, str(error), "mend it; what listens elsewhere is tried all the same")
    nodes, digits = (_STRANGERS, None) if federation is None else (count, digest(federation))
    wanted = TriedNode(given.listen, given.address, given.node, nodes, digits, given.peers, ring, keyed.whose(given))
    yield from _addresses(wanted)
    yield from connections(wanted, checkup.Checkup(wanted, say).run(wait), wait)


def _keys(given: CompleteNode, ring: Keyring | None) -> Finding:
    """Whether the node has keys, and whom it goes by."""
    if ring is not None:
        names = ", ".join(name for node, name in sorted(ring.names.items()) if node != ring.node)
        text = (
            f"{given.federation}: {ring.names[ring.node]}, node {ring.node}, which takes part with {names or 'nobody'}"
        )
        return Finding("keys", State.GOOD, text)
    places = [addresses.parsed(at) for at in (given.listen, given.address, *given.peers)]
    if all(each.loopback for each in places):
        return Finding("keys", State.GOOD, "none, and none is needed: all addresses mean this machine")
    text = "none: whoever reaches the ports can read models, and send some"
    return Finding("keys", State.NOTE, text, "p2pfl federation keygen makes one; docs/federation.md is the whole way")


def _federation(given: CompleteNode) -> Federation:
    """What the node's experiment means, its rows included. Raises P2PFLError."""
    sys.path[:0] = [str(Path.cwd()), str(Path(given.experiment).parent)]
    experiment = config.load(given.experiment)
    precision(experiment)
    if isinstance(experiment.data, ScriptData):
        federation = _of_scripts(experiment)
    else:
        federation = build_own(experiment, given.node, given.data, given.admitted) if given.data else build(experiment)
    if given.node not in federation.graph and not (given.data and given.node < given.admitted):
        raise ConfigError(f"node={given.node}: the topology has nodes 0 to {len(federation.graph) - 1}")
    return federation


def _of_scripts(experiment: Experiment) -> Federation:
    """The same where rows and model are those of scripts: what the nodes have in common does not depend on them."""
    nothing = {"trained": {"w": jax.ShapeDtypeStruct((1,), "float32")}, "carried": {}}
    whole = replace(experiment, algorithm=replace(experiment.algorithm, share=None))
    built = build_script(whole, ScriptedSteps(stepless(nothing), optax.identity()))
    return built._replace(experiment=experiment)


def _records(file: Path, given: CompleteNode) -> Iterator[Finding]:
    """Where the node's records will lie."""
    folder = node.records_of(file, given)
    yield machine.writable("the records of this node", folder)
    try:
        finished = result.read(folder) is not None
    except (P2PFLError, ValueError, OSError) as error:  # of another version, or torn
        yield Finding(
            "folders", State.BAD, f"{folder}: its result.json can't be read: {error}", "remove it, or give out = ..."
        )
        return
    if finished:
        text = f"{folder} holds the records of a finished run, and p2pfl node refuses it"
        yield Finding("folders", State.NOTE, text, "give another with out = ... or --out, or go on with --resume")


def _addresses(wanted: TriedNode) -> Iterator[Finding]:
    """What can be seen of the addresses without calling anybody."""
    inside = [at for at in wanted.peers if addresses.parsed(at).loopback]
    outside = [at for at in wanted.peers if not addresses.parsed(at).loopback]
    for name, at in (("listen", wanted.listen), ("address", wanted.address)):
        if addresses.parsed(at).loopback and outside:
            text = f"{name}={at!r}: means this machine only, and {outside[0]} is on another"
            way_out = 'listen = "tcp://0.0.0.0:PORT", and address = "tcp://NAME-OR-NUMBER:PORT" of this machine'
            yield Finding("addresses", State.BAD, text, way_out)
    if inside and not outside and addresses.parsed(wanted.address).loopback:
        text = "all addresses mean this machine: nodes on other machines reach nobody here"
        yield Finding("addresses", State.NOTE, text, "for several machines: listen, address and peers of the node file")
    there, here = addresses.parsed(wanted.address).port, addresses.parsed(wanted.listen).port
    if there != here:
        text = (
            f"address has port {there} and listen {here}: right only where something forwards {there} and {there + 1}"
        )
        yield Finding("addresses", State.NOTE, text)


# --- its connections


def connections(wanted: TriedNode, seen: Connections, wait: float) -> Iterator[Finding]:
    """Yield what the connections are worth, in words: a pure function of what was seen."""
    yield from _ports(wanted, seen)
    yield _own(wanted, seen)
    met = set[int]()
    for contact in seen.contacts:
        yield from _there(wanted, contact, seen)
        met.add(contact.node)
        if contact.node != wanted.node and (contact.node >= 0 or contact.accounts is not None):
            yield _back(wanted, contact, seen, wait)
    for caller in sorted(frozenset().union(*seen.callers.values()) - met):
        yield _caller(caller, seen, any(not contact.reached for contact in seen.contacts))
    for detail in seen.strangers[:_TOLD]:
        text = f"a caller was hung up: {detail}"
        yield Finding("callers", State.NOTE, text, "a node there? Its experiment file differs from this one")
    others = [contact for contact in seen.contacts if contact.address != wanted.address]
    if not others and not any(seen.callers.values()):
        if wait and seen.listened:
            text = f"peers names no other node, and nobody has called in {wait:g} s"
            yield Finding("callers", State.BAD, text, _BOTH, Exit.NOT_WHOLE)
        else:
            yield Finding("callers", State.NOTE, "peers names no other node: others must name this one", _BOTH)


def _ports(wanted: TriedNode, seen: Connections) -> Iterator[Finding]:
    """Whether the node can listen."""
    if not seen.taken:
        text = f"{wanted.listen} and port {_port(wanted.listen) + 1} can be listened at"
        yield Finding("ports", State.GOOD, text)
    told = set[int | None]()
    for at, error in seen.taken.items():
        if error.errno in told:  # what holds for a machine holds for its other port as well
            continue
        told |= {error.errno} - {errno.EADDRINUSE}
        if error.errno == errno.EADDRINUSE and seen.is_own:
            text = f"{at} is in use by node {wanted.node} of this federation: it runs, and says itself whom it reaches"
            yield Finding("ports", State.GOOD, text)
            continue
        way_out = ""
        if error.errno == errno.EADDRINUSE:
            way_out = f"which program it is: ss -ltnp 'sport = :{_port(at)}'"
        yield Finding("ports", State.BAD, ports.refusal(at, error), way_out)


def _own(wanted: TriedNode, seen: Connections) -> Finding:
    """Whether the address that the others are told leads here."""
    own, at = seen.own, wanted.address
    if seen.is_own:
        return Finding("address", State.GOOD, f"{at} leads to this node")
    if own.reached and own.node not in (-1, wanted.node):
        text = f"address={at!r}: leads to node {own.node}, which is another"
        return Finding("address", State.BAD, text, "write the address of this machine")
    why = _whys(own) or "something else answers there"
    if not seen.local:
        text = f"address={at!r}: is no address that this machine has itself, and from here: {why}"
        way_out = "right where a router forwards it; the others' doctors say whether they reach it"
        return Finding("address", State.NOTE, text, way_out)
    way_out = "it must lead to where `listen` listens: compare both, or listen at tcp://0.0.0.0:PORT"
    return Finding("address", State.BAD, f"address={at!r}: does not lead to this node: {why}", way_out)


def _there(wanted: TriedNode, contact: Contact, seen: Connections) -> Iterator[Finding]:
    """Whether this node reaches another."""
    at, kind = contact.address, _kind(contact)
    assert contact.models is not None and contact.membership is not None
    who = at if contact.node < 0 else f"node {contact.node} at {at}"
    if (
        kind is not None
        and kind.port == versions.MEMBERSHIP
        and contact.models is not None
        and contact.models.kind == kind
    ):
        text, right = f"{at}: is the port of the membership of node {kind.node}", models_address(at)
        yield Finding("peers", State.BAD, text, f"write {right} into peers")
        return
    if contact.node == wanted.node and contact.reached:
        if at == wanted.address:
            yield Finding("peers", State.NOTE, f"{at}: is this node itself, and no other")
        else:
            text = f"{at}: node {wanted.node} answers, which is this one: itself, or two files have one number"
            yield Finding(
                "peers", State.BAD, text, "give every node file a number of its own; take its own out of peers"
            )
        return
    if contact.reached:
        told = f", p2pfl {kind.version}" if kind is not None else ", which does not say its version"
        yield Finding("peers", State.GOOD, f"{who}: reached at ports {_port(at)} and {_port(at) + 1}{told}")
    elif wanted.federation is None and {contact.models.how, contact.membership.how} == {LookEnd.OTHER}:
        text = f"{at}: a node listens there; of which federation is seen when the experiment of this one can be read"
        yield Finding("peers", State.NOTE, text)
    else:
        text, way_out = _failure(contact)
        yield Finding("peers", State.BAD, f"{who}: not reached: {text}", way_out, Exit.NOT_WHOLE)
    mine = versions.here(wanted.node, versions.MODELS)
    if kind is not None and (kind.protocol, kind.membership) != (mine.protocol, mine.membership):
        text = (
            f"{who}: p2pfl {kind.version} with protocols {kind.protocol} and {kind.membership}, here {mine.version} "
            f"with {mine.protocol} and {mine.membership}: they do not understand each other"
        )
        yield Finding("peers", State.BAD, text, "install the same version of p2pfl on both", Exit.NOT_WHOLE)


def _failure(contact: Contact) -> tuple[str, str]:
    """Say why another is not reached, and what to do."""
    models, membership, port = contact.models, contact.membership, _port(contact.address)
    assert models is not None and membership is not None
    text = _whys(contact)
    if models.how == membership.how:
        return text, _WAYS_OUT[models.how].format(both=f"{port} and {port + 1}", port=port)
    lost = [(seen, number) for seen, number in ((models, port), (membership, port + 1)) if seen.how != LookEnd.REACHED]
    if len(lost) == 1:
        (seen, number), other = lost[0], port if lost[0][1] != port else port + 1
        what = "models" if number == port else "the membership"
        text = f"port {other} is reached, and port {number}, for {what}, is not: {seen.why}"
        return text, _WAYS_OUT[seen.how].format(both=number, port=port)
    ways = dict.fromkeys(_WAYS_OUT[seen.how].format(both=number, port=port) for seen, number in lost)
    return text, "; ".join(ways)


_BOTH = "run p2pfl doctor FILE --wait 5min here and on the other machine at the same time"

_WAYS_OUT = {
    LookEnd.REACHED: "",
    LookEnd.NO_NAME: "write the number instead of the name (there: ip addr), or add the name to /etc/hosts here",
    LookEnd.REFUSED: "the machine answers, so name and way are right: is p2pfl node or p2pfl doctor --wait running "
    "there, with listen = 0.0.0.0 and not 127.0.0.1, and port {port}?",
    LookEnd.NO_ANSWER: "there: is the machine on, and does its firewall let in TCP {both}? Here: is the address right, "
    "and does the network let it out?",
    LookEnd.NO_WAY: "this machine knows no way to that network: is the address right, and is a VPN needed?",
    LookEnd.NO_NODE: "another program has that port there, or the port is wrong: it must be that of its listen",
    LookEnd.SILENT: "a proxy, a frozen process or another program has that port: it must be that of its listen",
    LookEnd.OTHER: "compare experiment.toml on both machines: it must be the same file, but for paths, [network], "
    "[driver] and [evaluation]",
    LookEnd.KEY: "compare the federation's file on both machines (p2pfl federation list FILE), and which key each node "
    "file names",
}


def _back(wanted: TriedNode, contact: Contact, seen: Connections, wait: float) -> Finding:
    """Whether another reaches this node."""
    who, calls, both = f"node {contact.node}", seen.calls(contact.node), _both(wanted.address)
    accounts = contact.accounts
    mine = [each for each in accounts or () if wanted.address == each.address or wanted.node == each.node]
    if all(calls) or any(each.reached for each in mine):
        return Finding("callers", State.GOOD, f"{who} reaches this node at ports {both}")
    if mine:
        text = f"{who} does not reach this node at {mine[0].address}: {_told(mine[0])}"
        return Finding("callers", State.BAD, text, _here(_told(mine[0]), both), Exit.NOT_WHOLE)
    if accounts:
        other = accounts[0]
        text = f"{who} does not call this node's address, {wanted.address}, but {other.address}: {_told(other)}"
        return Finding("callers", State.BAD, text, "write this node's address into peers there", Exit.NOT_WHOLE)
    if accounts is not None:
        text = f"{who} does not have this node among its peers, so that nothing was tried from there"
        return Finding("callers", State.NOTE, text, f'add "{wanted.address}" to peers there, to try it')
    if any(calls):
        port = versions.MODELS if calls[0] else versions.MEMBERSHIP
        return Finding(
            "callers", State.NOTE, f"{who}, which runs, reaches the port for {port} here; more it does not try"
        )
    if not seen.listened:
        return Finding("callers", State.NOTE, f"whether {who} reaches this node was not tried: the ports are in use")
    if not wait:
        return Finding("callers", State.NOTE, f"whether {who} reaches this node was not tried", _BOTH)
    text = f"{who} runs, and has not called in {wait:g} s: it does not reach this node, or does not know of it"
    way_out = f'there: is "{wanted.address}" in peers? Here: does the firewall let in TCP {both}?'
    return Finding("callers", State.BAD, text, way_out, Exit.NOT_WHOLE)


def _caller(caller: int, seen: Connections, unreached: bool) -> Finding:
    """A node that calls, and is none of those that were reached."""
    calls = seen.calls(caller)
    if not all(calls):
        port = versions.MODELS if calls[0] else versions.MEMBERSHIP
        text = f"node {caller} reaches the port for {port} here, and not the other"
        return Finding("callers", State.BAD, text, "let both in through the firewall of this machine", Exit.NOT_WHOLE)
    text = f"node {caller} reaches this node"
    if unreached:
        text += (
            ": if it is one of those that are not reached, this machine is right, and the fault is there or on the way"
        )
    return Finding("callers", State.GOOD, text)


def _here(why: str, both: str) -> str:
    """What to do where another does not reach this node, by what it sees."""
    if "can't be resolved" in why:
        return "the name is not known there: write the number of this machine into address here and into peers there"
    if "refused" in why:
        return "compare address here with listen: does it lead to this machine, and to that port?"
    if "no answer" in why:
        return f"the fault is on this side or on the way: does the firewall of this machine let in TCP {both}?"
    return "compare the address in peers there with address and listen here"


def _told(account: Account) -> str:
    whys = [why for why in (account.models, account.membership) if why is not None and why != REACHED]
    return "; ".join(dict.fromkeys(whys)) or "not looked at yet"


def _whys(contact: Contact) -> str:
    seen = [each for each in (contact.models, contact.membership) if each is not None and each.how != LookEnd.REACHED]
    return "; ".join(dict.fromkeys(each.why for each in seen))


def _kind(contact: Contact) -> Kind | None:
    kinds = [seen.kind for seen in (contact.models, contact.membership) if seen is not None and seen.kind is not None]
    return kinds[0] if kinds else None


def _port(address: str) -> int:
    return addresses.parsed(address).port


def _both(address: str) -> str:
    return f"{_port(address)} and {_port(address) + 1}"
