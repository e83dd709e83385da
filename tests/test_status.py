"""`p2pfl status`: what a node tells of how it stands, to whom, and what becomes of an answer that is nobody's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_curve import ring
from test_live import P2PFL

from p2pfl.cli import main
from p2pfl.drivers.live import clock, curve, reach, versions
from p2pfl.drivers.live.listener import Allowance, Listener
from p2pfl.drivers.live.ports import reserved
from p2pfl.drivers.live.status import Pace, StatusDesk, members
from p2pfl.drivers.live.zmtp import Limits
from p2pfl.errors import ConfigError, Exit, RemoteError
from p2pfl.node.status import MEMBERS, SELF, SILENT, LateNode, ReportedMember, StatusReport, decode, encode, first
from p2pfl.protocol.agreement import pack
from p2pfl.protocol.events import Drop
from p2pfl.protocol.membership.table import Member
from p2pfl.protocol.questions import CAP, STATUS, Asker, Questions, question
from p2pfl.runs import status as runs
from p2pfl.runs.status import NodeAnswer
from p2pfl.trust import keys

AT = "tcp://127.0.0.1:5700"
REPORT = StatusReport(
    format=1,
    node=0,
    name="",
    experiment="tiny",
    federation="0123456789abcdef0123456789abcdef",
    version="0.1.0",
    protocols=(9, 4),
    encrypted=False,
    uptime=187.0,
    life=1_700_000_000_000,
    stage="exchanging",
    round=120,
    rounds=400,
    seconds_left=260.0,
    waiting=False,
    leaving="",
    members=(ReportedMember(0, "", SELF, 120, AT), ReportedMember(1, "", "alive", 119, "tcp://127.0.0.1:5702")),
    more_members=0,
    missing=(),
    late=(LateNode(1, 0.01),),
    booked=240,
    voided=2,
    open=1,
    bytes_sent=12_300_000,
    bytes_received=12_100_000,
    bytes_forwarded=0,
    dropped={"stale": 3},
    score_name="accuracy",
    score=0.931,
    loss=0.213,
    rounds_alone=0,
    records_dropped=0,
)
HERE, STRANGER, MEMBER = Asker(here=True), Asker(), Asker(node=1)


def change(**changes: Any) -> StatusReport:
    return dataclasses.replace(REPORT, **changes)


# --- the value, and what comes in as one


def test_what_is_encoded_is_read_again() -> None:
    assert decode(encode(REPORT)) == REPORT
    empty = change(seconds_left=None, score=None, loss=None, dropped={}, late=())
    assert decode(encode(empty)) == empty


def test_an_answer_is_bounded_however_many_members_there_are() -> None:
    crowd = [
        ReportedMember(i, f"{i:x}" * 40, "dead" if i % 2 else "alive", i, f"tcp://{i * 7919:x}:1") for i in range(3000)
    ]
    told, more = first(crowd)
    assert len(told) == MEMBERS and more == 3000 - MEMBERS and all(each.state == "alive" for each in told)
    assert [each.node for each in told] == sorted(each.node for each in told)
    packed = encode(change(members=told, more_members=more, missing=tuple(range(MEMBERS))))
    read = decode(packed)
    assert len(packed) <= CAP and len(read.members) + read.more_members == 3000


BOMB = zlib.compress(b" " * (1 << 26), 9)
GOOD = dataclasses.asdict(REPORT)


@pytest.mark.parametrize(
    "said",
    [b"", b"garbage", BOMB, b"x" * (CAP + 1), pack("[]"), pack("{}"), pack("[" * 100_000), pack("7" * 100_000),
     pack('{"refused": ["key"]}'), pack(json.dumps({"format": 1})),
     *(pack(json.dumps({**GOOD, name: value})) for name, value in [
         ("format", 2), ("format", True), ("node", -1), ("node", "0"), ("node", 1 << 80), ("round", 1.5),
         ("score", "good"), ("loss", float("nan")), ("uptime", float("inf")), ("version", "x" * 201), ("late", 7),
         ("members", [GOOD["members"][0]] * (4 * MEMBERS + 1)), ("members", [{"node": 1}]), ("missing", [[]]),
         ("dropped", {str(i): i for i in range(257)}), ("dropped", {"stale": -1}), ("dropped", []),
         ("experiment", "\ud800"), ("encrypted", 1), ("protocols", [1])])],
)  # fmt: skip
def test_what_no_honest_node_answers_is_refused(said: bytes) -> None:
    with pytest.raises(RemoteError):
        decode(said)


def test_another_version_is_told_so() -> None:
    with pytest.raises(RemoteError, match="install the same version"):
        decode(pack(json.dumps({**GOOD, "format": 2})))
    assert decode(pack(json.dumps({**GOOD, "news": "of a later one"}))) == REPORT


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


def texts(value: Any) -> Iterator[str]:
    """All texts in a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (*texts(key), *texts(each))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)


REPLACED = st.dictionaries(st.sampled_from(sorted(GOOD)), ANYTHING, max_size=3)
WORDS = st.dictionaries(
    st.sampled_from(["version", "experiment", "stage", "federation", "leaving", "score_name"]), st.text(max_size=200)
)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(REPLACED, WORDS)
def test_an_answer_is_read_whole_or_refused_and_no_terminal_obeys_it(
    replaced: dict[str, Any], words: dict[str, Any]
) -> None:
    """Some fields replaced by anything; and texts of anything where texts stand."""
    try:
        read = decode(pack(json.dumps({**GOOD, **words, **replaced})))
    except RemoteError:
        return
    assert all(text.isprintable() for text in texts(dataclasses.asdict(read)))
    shown = [*runs.lines(NodeAnswer(AT, read), datetime(2026, 1, 1, tzinfo=UTC))]
    assert all(line.isprintable() for line in shown) and len(shown) < 60


@pytest.mark.more
@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(REPLACED, WORDS)
def test_so_it_is_of_many_more(replaced: dict[str, Any], words: dict[str, Any]) -> None:
    test_an_answer_is_read_whole_or_refused_and_no_terminal_obeys_it.hypothesis.inner_test(replaced, words)


# --- who is answered


def desk(keyed: bool = False) -> tuple[StatusDesk, list[Drop]]:
    dropped: list[Drop] = []
    return StatusDesk(lambda now: change(uptime=now), dropped.append, keyed, 0.0), dropped


@pytest.mark.parametrize(
    ("keyed", "asker", "refused"),
    [(False, HERE, ""), (False, STRANGER, "on its own machine alone: ask there"), (True, MEMBER, ""),
     (True, HERE, "members of its federation alone, who show"),
     (True, STRANGER, "members of its federation alone, who show")],
)  # fmt: skip
def test_without_keys_this_machine_alone_is_answered_with_them_members(keyed: bool, asker: Asker, refused: str) -> None:
    at, dropped = desk(keyed)
    answer = Questions({STATUS: at.answer}).answer(question(STATUS), asker, 5.0)
    if not refused:
        assert decode(answer) == change(uptime=5.0) and not dropped
        return
    assert json.loads(zlib.decompress(answer)).keys() == {"refused"}  # nothing else is learnt
    with pytest.raises(RemoteError, match=refused):
        decode(answer)
    assert [drop.reason for drop in dropped] == ["refused"]


def test_answers_and_refusals_are_bounded_apart() -> None:
    """Strangers who ask again and again take nothing from whoever may know it."""
    at, dropped = desk()
    for _ in range(8):
        at.answer(b"", STRANGER, 1.0)
    with pytest.raises(RemoteError, match="flood"):
        at.answer(b"", STRANGER, 1.0)
    for _ in range(10):
        decode(at.answer(b"", HERE, 1.0))
    with pytest.raises(RemoteError, match="flood"):
        at.answer(b"", HERE, 1.0)
    decode(at.answer(b"", HERE, 1.6))
    assert len(dropped) == 8


@pytest.mark.parametrize("asked", [b"", b"stat", b"everything", b"\xff" * 60, b"status and more"])
def test_other_questions_are_none(asked: bytes) -> None:
    with pytest.raises(RemoteError, match="handshake"):
        Questions({STATUS: desk()[0].answer}).answer(asked, HERE, 1.0)


# --- what it is made of


def test_the_members_of_a_node_are_itself_and_its_table() -> None:
    table = [Member(2, 5, 0, "dead", "tcp://c:3", 7, 0.0), Member(1, 5, 0, "alive", "tcp://b:3", 8, 0.0),
             Member(0, 5, 0, "alive", "tcp://a:3", 6, 0.0)]  # fmt: skip
    me = ReportedMember(0, "cleveland", SELF, 9, "tcp://a:2")
    assert members(me, table, (1, 2), {1: "basel"}) == [
        me,
        ReportedMember(1, "basel", SILENT, 8, "tcp://b:2"),
        ReportedMember(2, "", "dead", 7, "tcp://c:2"),
    ]


def test_the_time_that_is_left_is_that_of_the_last_rounds() -> None:
    pace = Pace()
    assert pace.left(100, 0, 0.0) is None  # nobody knows yet
    for second in range(200):
        pace.count(second // 2, float(second))
    assert pace.left(200, 100, 200.0) == pytest.approx(200.0, rel=0.05)
    assert pace.left(100, 100, 200.0) == 0.0
    pace.count(10, 201.0)  # it has gone back
    assert pace.left(100, 10, 201.0) is None
    pace.count(10, 10_000.0)  # this machine has slept
    pace.count(12, 10_004.0)
    assert pace.left(100, 12, 10_004.0) == pytest.approx(88 * 2)


# --- over a socket


LIMITS = Limits(1 << 16, 5, 1 << 18)


@pytest.fixture
def port() -> Iterator[int]:
    with reserved(1) as ports:
        yield ports[0]


def asked(listener: Listener, ask: Callable[[], Any]) -> Any:
    """What `ask` returns while a listener listens."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(ask())
        except RemoteError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        thread.join(0.005)
        list(listener.receive(clock.now()))
    return found[0]


def listening(port: int, about: bytes = b"", answers: Any = None) -> closing[Listener]:
    allowance = Allowance(LIMITS, 100, 100, 1e9)
    return closing(Listener(f"tcp://127.0.0.1:{port}", "f", 3, allowance, clock.now(), about, answers=answers))


def test_who_asks_over_a_socket_is_answered(port: int) -> None:
    big = change(dropped={f"{i:x}" * 30: i for i in range(250)})
    with listening(port, answers=lambda asked, asker, now: encode(big) if asker.here else b"") as listener:
        answer = asked(listener, lambda: reach.answered(f"tcp://127.0.0.1:{port}", question(STATUS)))
        assert decode(answer) == big and not listener.dropped
        answer = asked(listener, lambda: runs.ask(f"127.0.0.1:{port}"))
        assert answer == NodeAnswer(f"tcp://127.0.0.1:{port}", big) and answer.code == Exit.DONE


@pytest.mark.parametrize(
    ("kind", "why"),
    [(versions.MEMBERSHIP, "it is the port of the membership of node 1; ask at the port before it"),
     (versions.MODELS, "hangs up: it is asked too often, or knows no such question"),
     ("", "it hangs up, and does not say what it is")],
)  # fmt: skip
def test_who_gives_no_answer_is_told_apart(port: int, kind: str, why: str) -> None:
    with listening(port, versions.here(1, kind).encode() if kind else b"") as listener:
        answer = asked(listener, lambda: runs.ask(f"127.0.0.1:{port}"))
    assert why in answer.why and answer.code == Exit.NOT_WHOLE


def test_where_nobody_listens_the_reason_is_said(port: int) -> None:
    done = CliRunner().invoke(main, ["status", f"127.0.0.1:{port}"])
    assert done.exit_code == Exit.NOT_WHOLE
    assert f"tcp://127.0.0.1:{port}: refused: nothing listens at port {port}" in done.output
    done = CliRunner().invoke(main, ["status", f"127.0.0.1:{port}", "--json"])
    table = json.loads(done.stdout)
    assert table["exit_code"] == done.exit_code == 3 and "refused" in table["reasons"][0]


# --- with keys

SITES = ("north", "south")


def founded(addresses: Sequence[str]) -> None:
    """Make keys and the federation file of two sites, in the current folder."""
    for command in (
        *(f"keygen {name} --address {address}" for name, address in zip(SITES, addresses, strict=False)),
        "init hearts.toml north.card.toml south.card.toml",
        *(f"accept hearts.toml --key {name}.key --yes" for name in SITES),
    ):
        done = CliRunner().invoke(main, ["federation", *command.split()])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("who", "member", "why"),
    [
        ((0, 1, 2), 1, ""),
        ((0, 1, 2), 0, ""),  # the node's own key
        (None, None, "it speaks to members of its federation alone"),
        ((0, 1, 4), 4, "does not take this node's key"),
        ((0, 1, 3), 3, "does not take this node's key"),  # it was a member
    ],
)
def test_with_keys_members_are_answered_and_strangers_learn_nothing(
    port: int, who: tuple[int, ...] | None, member: int | None, why: str
) -> None:
    """Node 0 of three."""
    askers: list[Asker] = []

    def answers(asked: bytes, asker: Asker, now: float) -> bytes:
        askers.append(asker)
        return encode(REPORT)

    allowance = Allowance(LIMITS, 100, 100, 1e9)
    at = f"tcp://127.0.0.1:{port}"
    keyed = Listener(at, "f", 5, allowance, clock.now(), answers=answers, keyring=ring(0, former=(3,)))
    own = None if who is None or member is None else curve.keys(ring(member, who), 0)
    with closing(keyed) as listener:
        answer = asked(listener, lambda: reach.answered(at, question(STATUS), own))
        patience = clock.now() + 10
        while why and not listener.dropped and clock.now() < patience:  # who asks may hang up before it is heard
            list(listener.receive(clock.now()))
    if why:
        assert why in answer.detail and not askers and listener.dropped.total() == 1
    else:
        assert decode(answer) == REPORT and askers == [Asker(member, here=True)]


def test_who_asks_stands_in_the_node_file_or_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    founded(["tcp://127.0.0.1:5700", "tcp://127.0.0.1:5710"])
    (tmp_path / "experiment.toml").write_text("")
    (tmp_path / "north.toml").write_text(
        'experiment = "experiment.toml"\nfederation = "hearts.toml"\nkey = "north.key"\n'
    )
    north, south = (keys.read(tmp_path / f"{name}.key") for name in ("north", "south"))
    address, own = runs.whom("north.toml", None)
    assert address == "tcp://127.0.0.1:5700" and own is not None
    assert (own.own.secret, own.theirs) == (north.link_secret, north.public.link)
    who = runs.AskingMember(tmp_path / "north.key", tmp_path / "hearts.toml")
    for where, whose in (("127.0.0.1:5710", south), ("127.0.0.1:5700", north), ("10.0.0.7:1234", north)):
        _, own = runs.whom(where, who)
        assert own is not None and (own.own.secret, own.theirs) == (north.link_secret, whose.public.link)
    for arguments, code, text in (
        (["127.0.0.1:5700", "--key", "north.key"], 2, "--key and --federation go together"),
        (["north.toml", "--key", "north.key", "--federation", "hearts.toml"], 1, "says itself who asks"),
        (["127.0.0.1:5700", "--key", "no.key", "--federation", "hearts.toml"], 1, "no.key: no such file"),
    ):
        done = CliRunner().invoke(main, ["status", *arguments])
        assert (done.exit_code, text in done.output) == (code, True), done.output


# --- for a person and for a program


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (REPORT, None),
        (change(late=(LateNode(1, 400.0),)), None),
        (change(missing=(3, 4)), "not there: node 3, 4"),
        (change(missing=(1,), members=REPORT.members[:1]), "node 0 is alone: of 2 nodes no other is there"),
        (change(members=REPORT.members[:1]), None),  # of a federation of one, or all others have finished
        (
            change(members=(REPORT.members[0], ReportedMember(1, "", SILENT, 7, AT))),
            "silent, so that nobody waits any more: node 1",
        ),
        (change(waiting=True), "it trains no further round before others are there"),
        (change(leaving="asked to stop (SIGTERM)"), "node 0 is about to end: asked to stop (SIGTERM)"),
    ],
)
def test_what_is_not_well_is_said_and_ends_with_3(report: StatusReport, reason: str | None) -> None:
    answer = NodeAnswer(AT, report)
    assert answer.reasons == (() if reason is None else (reason,))
    assert answer.code == (Exit.DONE if reason is None else Exit.NOT_WHOLE)
    table = json.loads(json.dumps(answer.as_dict()))
    assert table["reasons"] == [*answer.reasons] and table["round"] == 120
    assert table["members"][0] == {"node": 0, "name": "", "state": SELF, "round": 120, "address": AT}


def test_the_lines_for_a_person() -> None:
    late = change(late=(LateNode(1, 4.2),), missing=(2,), rounds_alone=3, bytes_forwarded=3_000)
    shown = [*runs.lines(NodeAnswer(AT, late), datetime(2026, 11, 30, 9, 41, 7, tzinfo=UTC))]
    assert shown == [
        "node 0 of tiny at tcp://127.0.0.1:5700",
        "since       2026-11-30 09:38:00 UTC, for 3 min 7 s",
        "version     p2pfl 0.1.0, protocols 9 and 4",
        "federation  0123456789abcdef0123456789abcdef",
        "links       not encrypted",
        "round       120 of 400, exchanging; 4 min 20 s left; 3 of them without half of the others",
        "score       accuracy 0.931, loss 0.213",
        "exchanges   240 booked, 2 voided, 1 open",
        "traffic     12.3 MB sent, 12.1 MB received, 3.0 kB forwarded for others",
        "dropped     stale 3",
        "late        node 1 for 4.2 s",
        "members     2 there; not there: node 2",
        "  node  state        round  address",
        "  0     this node      120  tcp://127.0.0.1:5700",
        "  1     alive          119  tcp://127.0.0.1:5702",
    ]
    assert not [*runs.lines(NodeAnswer(AT, None, "refused"), datetime.now(UTC))]


@pytest.mark.parametrize("where", ["nowhere.toml", "host", "host:0", "host:70000", "http://host:80", "a b:5700", ""])
def test_what_is_neither_a_file_nor_an_address_is_a_mistake(where: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file|neither a file nor an address"):
        runs.whom(where, None)


def test_a_node_file_leads_to_the_node_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text("")
    file = tmp_path / "node.toml"
    for listen, address in [
        ("tcp://0.0.0.0:5700", "tcp://127.0.0.1:5700"), ("tcp://*:5700", "tcp://127.0.0.1:5700"),
        ("tcp://[::]:5700", "tcp://[::1]:5700"), ("tcp://10.0.0.3:5700", "tcp://10.0.0.3:5700"),
    ]:  # fmt: skip
        place = 'address = "tcp://10.0.0.3:5700"\nplaintext = true\n'
        file.write_text(f'experiment = "experiment.toml"\nnode = 0\nlisten = "{listen}"\n{place}')
        assert runs.whom(str(file), None) == (address, None)
    with pytest.raises(ConfigError, match="is no node file"):
        runs.whom(str(tmp_path / "experiment.toml"), None)


# --- a node that runs


EXPERIMENT = """
name = "tiny"
rounds = 100000
baselines = false
[data]
source = "quadratic"
dim = 3
[training]
optimizer = { name = "sgd", learning_rate = 0.01 }
batch_size = 2
local_steps = 1
[topology]
graph = "complete"
nodes = 2
[algorithm]
name = "dsgd"
[network]
sync = "barrier"
timing = { silence = 60.0, deadline_min = 61.0, deadline_max = 61.0 }
[evaluation]
every = 10
metrics = false
"""
LIMIT = 240.0
"""Seconds after which it hangs."""


class TwoNodes:
    """Two processes of nodes, and questions to them. Node 0 has metrics, and its log is JSON."""

    def __init__(self, folder: Path, ports: Sequence[int], more: Sequence[str] = ("", "")) -> None:
        """`more`: lines of their files that say where they are."""
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        (folder / "experiment.toml").write_text(EXPERIMENT)
        metrics = (f'metrics = "localhost:{ports[2]}"\n', "")
        for node, (place, figures) in enumerate(zip(more, metrics, strict=True)):
            (folder / f"{node}.toml").write_text(f'experiment = "experiment.toml"\n{place}{figures}')
            command = [*P2PFL, "node", f"{node}.toml", "--log", "json"]
            with (folder / f"{node}.log").open("w") as log:
                self.processes.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT))

    def ask(self, *arguments: str) -> dict[str, Any]:
        with contextlib.chdir(self.folder):
            done = CliRunner().invoke(main, ["status", *arguments, "--json"])
        assert done.exit_code in (Exit.DONE, Exit.NOT_WHOLE), done.output
        return {**json.loads(done.stdout), "code": done.exit_code}

    def until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """What node 0 answers as soon as that is so."""
        limit = time.monotonic() + LIMIT
        while not holds(table := self.ask("0.toml")):
            assert time.monotonic() < limit, table
            time.sleep(0.5)
        return table

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)


def well(table: dict[str, Any]) -> bool:
    return table.get("round", 0) > 20 and not table["reasons"]


@pytest.mark.more
@pytest.mark.live
def test_a_running_federation_says_how_it_stands(tmp_path: Path) -> None:
    """One of two nodes is frozen, so that the other is kept waiting; then it is killed."""
    with reserved(3) as ports:
        at = [f"tcp://127.0.0.1:{port}" for port in ports]
        places = [f'node = {i}\nlisten = "{at[i]}"\npeers = ["{at[1 - i]}"]\n' for i in range(2)]
        both = TwoNodes(tmp_path, ports, places)
        try:
            table = both.until(well)
            assert table["code"] == 0 and table["experiment"] == "tiny" and table["rounds"] == 100000
            assert [(each["node"], each["state"]) for each in table["members"]] == [(0, SELF), (1, "alive")]
            assert table["booked"] > 10 and table["bytes_sent"] > 0 and table["loss"] is not None
            assert table["encrypted"] is False and not table["missing"]
            shown = subprocess.run([*P2PFL, "status", at[1]], capture_output=True, text=True)
            assert shown.returncode == 0 and "node 1 of tiny at" in shown.stdout, shown.stderr
            assert max(map(len, shown.stdout.splitlines())) <= 80
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[2]}/metrics", timeout=LIMIT) as exported:
                assert 'p2pfl_members{state="alive"} 2.0' in exported.read().decode()
            both.processes[1].send_signal(signal.SIGSTOP)
            table = both.until(lambda table: any(each["seconds"] > 1 for each in table.get("late", [])))
            assert [each["node"] for each in table["late"]] == [1]
            both.processes[1].kill()
            table = both.until(lambda table: table.get("missing") == [1])
            assert table["code"] == Exit.NOT_WHOLE and "alone" in table["reasons"][0]
        finally:
            both.end()
    lines = [json.loads(line) for line in (tmp_path / "0.log").read_text().splitlines() if line.startswith("{")]
    assert {"metrics", "begins", "listening", "status", "leaving", "done"} <= {line["event"] for line in lines}
    assert all({"time", "level", "node", "round", "event", "text"} <= line.keys() for line in lines)
    assert {line["node"] for line in lines} == {0}


@pytest.mark.more
@pytest.mark.live
def test_one_with_keys_says_it_to_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with reserved(3) as ports:
        at = [f"tcp://127.0.0.1:{port}" for port in ports]
        founded(at)
        both = TwoNodes(tmp_path, ports, [f'federation = "hearts.toml"\nkey = "{name}.key"\n' for name in SITES])
        try:
            table = both.until(well)
            assert table["encrypted"] is True and table["name"] == "north"
            assert [each["name"] for each in table["members"]] == ["north", "south"]
            table = both.ask(at[1], "--key", "north.key", "--federation", "hearts.toml")
            assert table["code"] == 0 and table["name"] == "south"
            table = both.ask(at[1])  # without a key
            assert table["code"] == 3 and table.keys() == {"address", "exit_code", "reasons", "code"}
        finally:
            both.end()
