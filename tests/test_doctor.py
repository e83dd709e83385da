"""`p2pfl doctor`: what it finds out about a machine, and which side fails where two nodes do not connect."""

from __future__ import annotations

import errno
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import optax
import pytest
from click.testing import CliRunner, Result
from machines import FIREWALL, Machine, wired
from test_live import P2PFL

from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.drivers.live import addresses, checkup, clock, reach, versions, zmtp
from p2pfl.drivers.live.checkup import Account, Checkup, Connections, Contact, TriedNode
from p2pfl.drivers.live.listener import Listener
from p2pfl.drivers.live.ports import reserved
from p2pfl.drivers.live.reach import Look, LookEnd
from p2pfl.drivers.live.settings import membership_address
from p2pfl.drivers.live.zmtp import Kind
from p2pfl.errors import Exit
from p2pfl.federation.federation import build_script, digest
from p2pfl.federation.learning import ScriptedSteps
from p2pfl.runs import doctor_node, init, machine
from p2pfl.runs.machine import Finding, State
from p2pfl.runs.script_model import stepless

FEDERATION = "digest"
LONG = 30.0


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback takes no time."""
    monkeypatch.setattr(checkup, "_AGAIN", 0.05)
    monkeypatch.setattr(checkup, "_LINGER", 0.2)
    monkeypatch.setattr(checkup, "_TOGETHER", 0.3)
    monkeypatch.setattr(reach, "_HANGS_UP", 0.2)
    monkeypatch.setattr(reach, "_PATIENCE", 0.5)


@pytest.fixture
def at() -> Iterator[list[str]]:
    """Addresses of three nodes on the loopback interface."""
    with reserved(3) as ports:
        yield [f"tcp://127.0.0.1:{port}" for port in ports]


def tried(at: str, *peers: str, node: int = 0, federation: str = FEDERATION) -> TriedNode:
    return TriedNode(at, at, node, 3, federation, peers)


def tell(text: str) -> None:
    """Nobody listens."""


def serve(until: threading.Event, *listeners: Listener) -> threading.Thread:
    """Let listeners listen, as a node does that runs."""

    def listen() -> None:
        while not until.wait(0.01):
            for listener in listeners:
                list(listener.receive(clock.now()))

    thread = threading.Thread(target=listen)
    thread.start()
    return thread


@pytest.fixture
def listening() -> Iterator[Callable[..., None]]:
    """Let something of a node listen: at its ports for models, for the membership, or both."""
    with ExitStack() as stack:

        def listen(
            at: str, ports: Sequence[str] = (versions.MODELS, versions.MEMBERSHIP), federation: str = FEDERATION,
            kind: Callable[[int, str], Kind] = versions.here, answer: Callable[[int], bytes] | None = None,
        ) -> None:  # fmt: skip
            over = threading.Event()
            for port in ports:
                place = at if port == versions.MODELS else membership_address(at)
                about = kind(1, port).encode()
                listener = Listener(place, federation, 3, checkup._ALLOWANCE, clock.now(), about, answer)
                thread = serve(over, listener)
                stack.callback(lambda one=listener, other=thread: (other.join(), one.close()))
            stack.callback(over.set)

        yield listen


def said(wanted: TriedNode, seen: Connections, wait: float = 0.0) -> dict[str, list[Finding]]:
    """The findings by what they are about."""
    found: dict[str, list[Finding]] = {}
    for each in doctor_node.connections(wanted, seen, wait):
        found.setdefault(each.about, []).append(each)
    return found


def bad(found: dict[str, list[Finding]]) -> list[Finding]:
    return [each for several in found.values() for each in several if each.state == State.BAD]


# --- over the loopback interface


def test_two_that_are_tried_at_the_same_time_see_both_directions(at: list[str]) -> None:
    one, other = tried(at[0], at[1]), tried(at[1], at[0], node=1)
    results: dict[int, Connections] = {}
    threads = [
        threading.Thread(target=lambda each=each: results.update({each.node: Checkup(each, tell).run(LONG)}))
        for each in (one, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each, node in ((one, 1), (other, 0)):
        found = said(each, results[each.node])
        assert bad(found) == [] and results[each.node].is_own
        assert f"node {node} at {each.peers[0]}: reached at ports" in found["peers"][0].text
        assert found["callers"][0].text.startswith(f"node {node} reaches this node")


def test_a_closed_port_is_refused_and_a_second_look_finds_who_has_come(at: list[str]) -> None:
    found = said(tried(at[0], at[1]), Checkup(tried(at[0], at[1]), tell).run(0.0))
    assert "refused: nothing listens at port" in found["peers"][0].text
    assert "is p2pfl node or p2pfl doctor --wait running" in found["peers"][0].way_out
    assert found["peers"][0].code == Exit.NOT_WHOLE
    told: list[str] = []
    other = threading.Thread(target=lambda: Checkup(tried(at[1], at[0], node=1), tell).run(LONG))

    def come(text: str) -> None:
        told.append(text)
        if len(told) == 1:
            other.start()

    seen = Checkup(tried(at[0], at[1]), come).run(LONG)
    other.join()
    assert seen.contacts[0].reached and told[0].startswith(f"{at[1]}: refused") and f"{at[1]}: reached" in told


def test_one_port_of_two_is_told_by_its_number(at: list[str], listening: Any) -> None:
    listening(at[1], [versions.MODELS])
    port = int(at[1].rpartition(":")[2])
    (finding,) = said(tried(at[0], at[1]), Checkup(tried(at[0], at[1]), tell).run(0.0))["peers"]
    assert f"port {port} is reached, and port {port + 1}, for the membership, is not: refused" in finding.text


def test_what_is_no_node_is_told_apart(at: list[str], listening: Any) -> None:
    with ExitStack() as stack:
        for port in (0, 1):  # it accepts, by the kernel, and says nothing
            number = int(at[1].rpartition(":")[2]) + port
            stack.enter_context(socket.create_server(("127.0.0.1", number)))
        listening(at[2], federation="another")
        seen = Checkup(tried(at[0], at[1], at[2]), tell).run(0.0)
    silent, other = said(tried(at[0], at[1], at[2]), seen)["peers"]
    assert "says nothing" in silent.text and "a proxy, a frozen process" in silent.way_out
    assert "of another federation" in other.text and "compare experiment.toml" in other.way_out


def test_another_protocol_is_told_with_both_versions(at: list[str], listening: Any) -> None:
    listening(at[1], kind=lambda node, port: Kind("9.1", 99, 1, node, port))
    reached, differs = said(tried(at[0], at[1]), Checkup(tried(at[0], at[1]), tell).run(0.0))["peers"]
    assert reached.text.endswith("p2pfl 9.1") and differs.state == State.BAD
    assert "p2pfl 9.1 with protocols 99 and 1, here" in differs.text and "same version" in differs.way_out


def test_the_port_of_a_membership_is_no_address_of_a_peer(at: list[str], listening: Any) -> None:
    listening(at[1])
    wrong = membership_address(at[1])
    (finding,) = said(tried(at[0], wrong), Checkup(tried(at[0], wrong), tell).run(0.0))["peers"]
    assert "is the port of the membership of node 1" in finding.text and f"write {at[1]} into" in finding.way_out


def test_two_files_with_one_number_and_a_peer_that_is_oneself(at: list[str], listening: Any) -> None:
    listening(at[1])
    (same,) = said(tried(at[0], at[1], node=1), Checkup(tried(at[0], at[1], node=1), tell).run(0.0))["peers"]
    assert same.state == State.BAD and "a number of its own" in same.way_out
    (own,) = said(tried(at[0], at[0]), Checkup(tried(at[0], at[0]), tell).run(0.0))["peers"]
    assert own.state == State.NOTE and "is this node itself" in own.text


def test_a_node_that_runs_at_its_own_ports_is_good_news_and_a_stranger_is_not(at: list[str], listening: Any) -> None:
    listening(at[1])
    found = said(tried(at[1], node=1), Checkup(tried(at[1], node=1), tell).run(LONG))  # for nobody can call
    assert [each.state for each in found["ports"]] == [State.GOOD] * 2
    assert "in use by node 1 of this federation" in found["ports"][0].text and bad(found) == []
    with socket.create_server(("127.0.0.1", int(at[0].rpartition(":")[2]))):
        found = said(tried(at[0]), Checkup(tried(at[0]), tell).run(0.0))
    (taken,) = found["ports"]
    assert taken.state == State.BAD and taken.code == Exit.MISTAKE and "ss -ltnp" in taken.way_out


def test_an_address_that_this_machine_does_not_have_is_told_once(at: list[str]) -> None:
    wrong = tried(at[0])._replace(listen="tcp://192.0.2.1:5700")
    (finding,) = said(wrong, Checkup(wrong, tell).run(0.0))["ports"]
    assert finding.state == State.BAD and "This machine has no such address" in finding.text


def test_only_addresses_of_the_own_file_are_called_whatever_others_say(
    at: list[str], listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    examine = reach.examine
    monkeypatch.setattr(reach, "examine", lambda address, who: called.append(address) or examine(address, who))
    lies = [["tcp://10.9.9.9:1", 7, "refused\x1b[2J", "x" * 9000], ["tcp://10.9.9.9:2", -1, None, None], [1], "text"]
    listening(at[1], answer=lambda node: json.dumps({"accounts": lies}).encode()[:16000])
    wanted = tried(at[0], at[1])
    seen = Checkup(wanted, tell).run(0.3)
    assert {*called} == {at[0], at[1], membership_address(at[0]), membership_address(at[1])}
    accounts = seen.contacts[0].accounts
    assert accounts is not None and [each.node for each in accounts] == [7, -1]
    assert accounts[0].models == "refused?[2J" and len(accounts[0].membership or "") == 200


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b"[" * 5000, b'{"accounts": 3}', b'{"accounts": [["a", true, null, null]]}', b"\xff\xfe"],
)
def test_an_answer_that_is_none_is_nobodys_fault(at: list[str], listening: Any, answer: bytes) -> None:
    listening(at[1], answer=lambda node: answer)
    seen = Checkup(tried(at[0], at[1]), tell).run(0.0)
    assert seen.contacts[0].reached and not seen.contacts[0].accounts


def introduce(at: str, node: int, about: bytes = b"") -> socket.socket:
    """Call there as a node does."""
    link = socket.create_connection(("127.0.0.1", int(at.rpartition(":")[2])))
    link.sendall(zmtp.GREETING + zmtp.ready(b"DEALER", zmtp.introduction(FEDERATION, node), about))
    return link


def test_who_does_not_ask_is_told_nothing(at: list[str]) -> None:
    """A node that runs sends to this port by ZeroMQ, whose sockets here read nothing."""
    links: dict[bytes, socket.socket] = {}
    read: dict[bytes, bytes] = {}

    def call(text: str) -> None:
        for about in (b"", zmtp.ASKS):
            if about not in links:
                links[about] = introduce(at[0], 1, about)

    Checkup(tried(at[0], at[1]), call).run(0.5)
    for about, link in links.items():
        with link:
            link.settimeout(LONG)
            while part := link.recv(4096):
                read[about] = read.get(about, b"") + part
    assert b"accounts" not in read[b""] and b"accounts" in read[zmtp.ASKS]


def test_whoever_is_reached_is_waited_for_until_it_calls(at: list[str], listening: Any) -> None:
    listening(at[1], answer=lambda node: b'{"accounts": []}')
    with ExitStack() as stack:

        def call(text: str) -> None:
            if text.endswith("reached"):
                stack.enter_context(introduce(at[0], 1))
            if "port for models" in text:
                stack.enter_context(introduce(membership_address(at[0]), 1))

        seen = Checkup(tried(at[0], at[1]), call).run(LONG)
    assert seen.calls(1) == (True, True)


def test_an_address_that_leads_to_another_node_is_a_mistake(at: list[str], listening: Any) -> None:
    listening(at[1])
    wrong = tried(at[0])._replace(address=at[1])
    (finding,) = said(wrong, Checkup(wrong, tell).run(0.0))["address"]
    assert finding.state == State.BAD and "leads to node 1, which is another" in finding.text


# --- in words

HERE, THERE = "tcp://a.example:5700", "tcp://b.example:5700"
REACHED = Look(LookEnd.REACHED, "", Kind("0.1.0", *versions.here(1, "")[1:3], 1, versions.MODELS))
BOTH = frozenset({1})


def made(look: Look, calls: frozenset[int] = frozenset(), accounts: Sequence[Account] | None = None) -> Connections:
    """What is seen where only the other end matters."""
    own = Look(LookEnd.REACHED, "", versions.here(0, versions.MODELS))
    contact = Contact(THERE, look, look._replace(kind=look.kind and look.kind._replace(port="membership")), accounts)
    callers = {versions.MODELS: calls, versions.MEMBERSHIP: calls}
    return Connections({}, Contact(HERE, own, own), True, [contact], callers, [], True, True)


@pytest.mark.parametrize(
    ("seen", "wait", "state", "text", "way_out"),
    [
        (made(REACHED, BOTH), 60, State.GOOD, "node 1 reaches this node at ports 5700 and 5701", ""),
        (made(REACHED), 0, State.NOTE, "whether node 1 reaches this node was not tried", "doctor FILE --wait"),
        (made(REACHED), 60, State.BAD, "node 1 runs, and has not called in 60 s", f'"{HERE}" in peers'),
        (
            made(REACHED, accounts=[Account(HERE, -1, "no answer from port 5700: a firewall", "same")]), 60, State.BAD,
            f"node 1 does not reach this node at {HERE}: no answer from port 5700",
            "the fault is on this side or on the way: does the firewall of this machine let in TCP 5700 and 5701?",
        ),
        (
            made(REACHED, accounts=[Account(HERE, -1, "can't be resolved: x", "can't be resolved: x")]), 60, State.BAD,
            "can't be resolved", "the name is not known there",
        ),
        (
            made(REACHED, accounts=[Account("tcp://c:9", -1, "refused: x", "refused: x")]), 60, State.BAD,
            f"node 1 does not call this node's address, {HERE}, but tcp://c:9: refused", "into peers there",
        ),
        (made(REACHED, accounts=[]), 60, State.NOTE, "does not have this node among its peers", "to try it"),
        (
            made(Look(LookEnd.NO_ANSWER, "no answer"), BOTH), 60, State.GOOD,
            "node 1 reaches this node: if it is one of those that are not reached, this machine is right", "",
        ),
    ],
)  # fmt: skip
def test_which_side_fails(seen: Connections, wait: float, state: State, text: str, way_out: str) -> None:
    found = said(TriedNode(HERE, HERE, 0, 2, FEDERATION, [THERE]), seen, wait)
    (finding,) = found["callers"]
    assert (finding.state, text in finding.text, way_out in finding.way_out) == (state, True, True), finding


@pytest.mark.parametrize("how", [each for each in LookEnd if each != LookEnd.REACHED])
def test_there_is_a_way_out_of_everything(how: LookEnd) -> None:
    found = said(TriedNode(HERE, HERE, 0, 2, FEDERATION, [THERE]), made(Look(how, "why")))
    assert len(found["peers"][0].way_out) > 30 and "{" not in found["peers"][0].way_out


def test_an_address_of_this_machine_that_leads_elsewhere_is_a_mistake_and_a_routers_is_none() -> None:
    seen = made(REACHED, BOTH)
    wrong = Contact(HERE, Look(LookEnd.REFUSED, "refused"), Look(LookEnd.REFUSED, "refused"))
    for local, state in ((True, State.BAD), (False, State.NOTE)):
        (finding,) = said(
            TriedNode(HERE, HERE, 0, 2, FEDERATION, [THERE]), seen._replace(own=wrong, is_own=False, local=local)
        )["address"]
        assert finding.state == state and "refused" in finding.text


def test_nobody_to_call_is_a_matter_of_waiting() -> None:
    seen = made(REACHED)._replace(contacts=[])
    for wait, state in ((0.0, State.NOTE), (5.0, State.BAD)):
        assert said(TriedNode(HERE, HERE, 0, 2, FEDERATION, []), seen, wait)["callers"][0].state == state


# --- the machine


def test_what_is_missing_or_too_old_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"optax": None, "flax": "0.9.9"}
    version = machine.version
    monkeypatch.setattr(machine, "version", lambda name: installed.get(name, version(name)))
    faults = [each for each in machine._versions() if each.state == State.BAD]
    assert sorted(each.text.split()[0] for each in faults) == ["flax", "optax"]
    assert all(each.way_out.startswith("pip install '") for each in faults)


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LOADED", ("zmq", "no_such_library_of_anybody"))
    (finding,) = machine._libraries()
    assert finding.state == State.BAD and finding.text.startswith("no_such_library_of_anybody can't be loaded")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine.writable("runs", tmp_path / "file" / "below").state == State.BAD
    assert machine.writable("runs", tmp_path / "not" / "yet").state == State.GOOD
    assert not (tmp_path / "not").exists()


# --- the command


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two machines of `p2pfl init`, at free ports of this one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    init.write(tmp_path, "lan")
    return tmp_path


def moved(folder: Path, ports: Sequence[int]) -> None:
    for name in ("first.toml", "second.toml"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(":5700", f":{ports[0]}").replace(":5710", f":{ports[1]}"))


def test_of_a_machine_without_a_node_nothing_is_bad(folder: Path) -> None:
    result = call("--json")
    table = json.loads(result.stdout)
    assert result.exit_code == table["exit_code"] == 0, table
    about = {each["about"] for each in table["findings"]}
    assert {"p2pfl", "packages", "libraries", "cores", "devices", "memory", "open files", "folders", "clock"} == about
    assert call("--wait", "1s").exit_code == Exit.MISTAKE  # whose ports?


def test_a_mistake_in_a_file_is_told_in_its_own_words_and_ends_with_1(folder: Path) -> None:
    for name, text in (("experiment.toml", "is no node file"), ("no.toml", "no such file")):
        result = call(name)
        assert result.exit_code == Exit.MISTAKE and text in result.output.replace("\n", " ")
    with reserved(2) as ports:
        moved(folder, ports)
        file = folder / "experiment.toml"
        file.write_text(file.read_text().replace("dsgd", "dsdg"))
        result = call("first.toml")
    assert result.exit_code == Exit.MISTAKE and "did you mean 'dsgd'" in result.output
    assert "refused: nothing listens" in result.output  # it has gone on


def test_somebody_who_is_not_reached_ends_it_with_3(folder: Path) -> None:
    with reserved(2) as ports:
        moved(folder, ports)
        result = call("first.toml", "--json")
    found = {each["about"]: each for each in json.loads(result.stdout)["findings"]}
    assert result.exit_code == Exit.NOT_WHOLE and found["peers"]["state"] == "bad"
    assert found["experiment"]["state"] == found["address"]["state"] == "good"
    assert "this machine" in found["addresses"]["text"]


def test_scripts_agree_on_a_federation_whatever_their_models_are(folder: Path) -> None:
    """As `p2pfl.join` builds it."""
    file = Path(__file__).parents[1] / "experiments" / "own-loop" / "federation.toml"
    wanted = experiment.load(file)
    model = {"trained": {"other": jax.ShapeDtypeStruct((3, 2), "float32")}, "carried": {}}
    joined = build_script(wanted, ScriptedSteps(stepless(model), optax.identity()))
    assert digest(doctor_node._of_scripts(wanted)) == digest(joined)
    shared = replace(wanted, algorithm=replace(wanted.algorithm, share=("head.*",)))
    assert digest(doctor_node._of_scripts(shared)) != digest(joined)  # they must have that in common


def start(folder: Path, *arguments: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, *P2PFL, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.more
@pytest.mark.live
def test_a_node_that_runs_is_found_and_not_disturbed(folder: Path) -> None:
    with reserved(2) as ports:
        moved(folder, ports)
        running = start(folder, "node", "first.toml")
        try:
            assert running.stdout is not None
            while "listening on" not in running.stdout.readline():
                assert running.poll() is None
            other = call("second.toml", "--wait", "20s")
            assert "node 0 at " in other.output and "reached at ports" in other.output
            assert "node 0, which runs, reaches the port for membership here" in other.output
            own = call("first.toml")
            assert "is in use by node 0 of this federation" in own.output and "ports" in own.output
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT
    assert json.loads((folder / "p2pfl-node-0" / "result.json").read_text())["dropped"] == {}


# --- two machines, as network namespaces


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    with wired() as both:
        yield both


@pytest.mark.more
@pytest.mark.live
@pytest.mark.parametrize("firewall", [False, True])
def test_two_machines_find_out_which_side_fails(
    folder: Path, machines: tuple[Machine, Machine], firewall: bool
) -> None:
    for name, number, other in (("first.toml", 1, 2), ("second.toml", 2, 1)):
        (folder / name).write_text(
            f'experiment = "experiment.toml"\nnode = {number - 1}\nlisten = "tcp://0.0.0.0:5700"\n'
            f'address = "tcp://10.77.0.{number}:5700"\npeers = ["tcp://10.77.0.{other}:5700"]\nplaintext = true\n'
        )
    if firewall:
        machines[0].does(FIREWALL)
    wait = "12s" if firewall else "120s"
    started = [
        start(folder, "doctor", name, "--wait", wait, before=each.inside)
        for name, each in zip(("first.toml", "second.toml"), machines, strict=True)
    ]
    first, second = (process.communicate(timeout=240)[0] for process in started)
    codes = [process.returncode for process in started]
    if not firewall:
        assert codes == [0, 0], first + second
        assert "node 1 reaches this node at ports 5700 and 5701" in first
        return
    assert codes == [Exit.NOT_WHOLE] * 2, first + second
    # here: we reach it, it does not reach us, and the fault is here
    assert "node 1 at tcp://10.77.0.2:5700: reached at ports 5700 and 5701" in first
    assert "node 1 does not reach this node at tcp://10.77.0.1:5700: no answer from port 5700" in first
    assert "does the firewall of this machine let in TCP 5700 and 5701?" in first
    # there: it does not reach us, and we reach it
    assert "tcp://10.77.0.1:5700: not reached: no answer from port 5700" in second
    assert "node 0 reaches this node: if it is one of those that are not reached, this machine is right" in second


@pytest.mark.more
def test_a_library_that_is_missing_is_a_finding_and_no_traceback() -> None:
    code = "import sys; sys.modules['flax'] = None; from p2pfl.cli import main; main(['doctor', 'node.toml', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    (bad,) = [each for each in found["findings"] if each["state"] == "bad"]
    assert bad["about"] == "libraries" and "flax can't be loaded" in bad["text"]
    assert done.returncode == found["exit_code"] == Exit.MISTAKE


def test_many_addresses_that_are_silent_are_all_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than twice as many as are looked at at once, each for longer than until the first are due again."""
    monkeypatch.setattr(checkup, "_AGAIN", 0.0)
    monkeypatch.setattr(
        reach, "examine", lambda at, introduction: reach.Look(LookEnd.NO_ANSWER, f"no answer from {at}")
    )
    peers = tuple(f"tcp://10.0.0.{i}:5700" for i in range(1, 21))
    with reserved(1) as (port,):
        own = f"tcp://127.0.0.1:{port}"
        seen = checkup.Checkup(TriedNode(own, own, 0, 21, None, peers), lambda text: None).run(0.0)
    assert [each.models is not None for each in seen.contacts] == [True] * 20


def test_a_machine_that_can_not_make_a_socket_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: Any) -> Any:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", none)
    found = reach.examine("tcp://[::1]:5700", reach.Caller(b""))
    assert found.how == LookEnd.NO_WAY and "not supported" in found.why
    assert not addresses.local("::1")


def test_another_federation_is_seen_behind_a_name_of_two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([reach.Look(LookEnd.REFUSED, "refused"), reach.Look(LookEnd.OTHER, "another")])
    monkeypatch.setattr(reach, "_call", lambda *arguments: next(looks))
    monkeypatch.setattr(addresses, "lookup", lambda host, port: [(0, 0, 0, "", (host, port))] * 2)
    assert reach.examine("tcp://both.example:5700", reach.Caller(b"")).how == LookEnd.OTHER


def test_an_answer_is_never_longer_than_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = checkup.Checkup(
        TriedNode("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", 0, 65, None, tuple(f"tcp://h{i}:1" for i in range(64))),
        lambda text: None,
    )
    for at in tried._contacts:
        look = reach.Look(LookEnd.NO_NAME, "\u2013" * 400)
        tried._contacts[at] = checkup.Contact(at, look, look)
    told = tried._answer(versions.MODELS)(1)
    assert 0 < len(told) <= reach.ANSWER.frame + 16
