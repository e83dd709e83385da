"""Who starts nodes: what becomes of them when it or the process that forks them is killed, and what it says of them.

The nodes here compute nothing; tests/test_faults.py does the same to real ones.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import launch_script
import pytest
import zmq

from p2pfl.drivers.live import ports, processes
from p2pfl.drivers.live.launcher import Launcher
from p2pfl.errors import LocalError

TESTS = Path(__file__).parent
LIMIT = 60.0
"""Seconds after which something hangs; no claim on how fast it is."""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The started processes find what they are to call."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def named(text: str) -> list[int]:
    """Processes with this in their command line."""
    result = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                line = (place / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if text.encode() in line:
                result.append(int(place.name))
    return result


class Launched:
    """A process that launches nodes."""

    def __init__(self, folder: Path, *whats: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "launch_script.py"), str(folder), *whats], stdout=subprocess.PIPE, text=True
        )
        self.server: int = self.said("server")

    def said(self, key: str) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{") and key in (table := json.loads(line)):
                return table[key]
        raise AssertionError("it ended")

    def gone(self) -> None:
        """Nothing is left that it has started."""
        self.process.wait(LIMIT)
        until(lambda: not alive(self.server) and not named(str(self.folder)))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    made: list[Launched] = []

    def start(*whats: str) -> Launched:
        made.append(Launched(tmp_path / f"launch{len(made)}", *whats))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.communicate()
        for pid in [each.server, *named(str(each.folder))]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (signal.SIGKILL, "waits"),
        (signal.SIGINT, "deaf"),
        pytest.param(signal.SIGKILL, "deaf", marks=pytest.mark.more),  # it is killed, after some seconds
    ],
)
def test_nothing_outlives_a_launcher_that_is_killed_while_its_nodes_work(
    launch: Callable[..., Launched], number: int, what: str
) -> None:
    launched = launch("waits", what, "waits")
    pids = launched.said("pids")
    launched.process.send_signal(number)
    launched.gone()
    assert not any(map(alive, pids))


@pytest.mark.parametrize(
    ("number", "moment", "what"),
    [
        (signal.SIGKILL, "imports", "waits"),
        (signal.SIGINT, "forks", "waits"),
        *(pytest.param(*each, marks=pytest.mark.more) for each in (
            (signal.SIGINT, "imports", "waits"), (signal.SIGKILL, "forks", "waits"),
            (signal.SIGKILL, "forks", "frozen"), (signal.SIGINT, "forks", "frozen"),
        )),
    ],
)  # fmt: skip
def test_nothing_outlives_a_launcher_that_is_killed_while_it_starts(
    launch: Callable[..., Launched], number: int, moment: str, what: str
) -> None:
    launched = launch("waits", what, "waits")
    if moment == "forks":
        until(lambda: len(named(str(launched.folder / "0"))) > 0)
    launched.process.send_signal(number)
    launched.gone()


@pytest.mark.parametrize("what", ["waits", pytest.param("deaf", marks=pytest.mark.more)])
def test_nodes_end_even_when_the_launcher_and_the_process_that_forks_are_killed_at_once(
    launch: Callable[..., Launched], what: str
) -> None:
    launched = launch("waits", what)
    launched.said("pids")
    os.kill(launched.server, signal.SIGKILL)
    os.kill(launched.process.pid, signal.SIGKILL)
    launched.gone()


class Story:
    """A launcher in this process, and what it says."""

    def __init__(self, folder: Path, *whats: str, killed: str = "") -> None:
        self.said: list[str] = []
        self.folder = folder
        self.launcher = Launcher("launch_script:node", [], self.said.append, lambda: killed)
        self.orders = launch_script.orders(folder, list(whats))

    def __enter__(self) -> Story:
        self.launcher.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.launcher.__exit__(*error)
        assert not named(str(self.folder))

    def go(self) -> None:
        self.launcher.prepare(self.orders)
        self.launcher.go()

    def ends(self) -> None:
        for order in self.orders:
            (order.directory / "end").touch()
        until(lambda: self.launcher.poll(0.05) or not self.launcher.running)

    def states(self) -> list[str]:
        return [member.state for member in self.launcher.members.values()]


def test_what_a_node_fails_with_stands_in_its_log_and_is_said_with_its_place(tmp_path: Path) -> None:
    with Story(tmp_path, "fails", "exits", "ends", "leaves") as story:
        story.go()
        story.ends()
        assert story.states() == ["lost", "lost", "finished", "left"]
    log = tmp_path / "0" / "log.txt"
    assert f"node 0 failed: LookupError: no luck; see {log}" in story.said
    assert "Traceback (most recent call last)" in log.read_text()
    assert f"node 1 failed: it ended with status 4; see {tmp_path / '1' / 'log.txt'}" in story.said
    assert sorted((event["node"], event["event"]) for event in story.launcher.events) == [(0, "crash"), (1, "crash")]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_a_log_is_utf_8_whatever_the_console_of_whoever_has_started_the_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    with Story(tmp_path, "ends") as story:
        story.go()
        story.ends()
        assert story.states() == ["finished"]
    assert (tmp_path / "0" / "log.txt").read_text("utf-8").splitlines()[0] == "Köln 中"


def test_a_node_that_fails_before_it_is_ready_ends_the_start(tmp_path: Path) -> None:
    with Story(tmp_path, "waits", "fails at once") as story, pytest.raises(LocalError) as told:
        story.go()
    assert str(told.value) == f"node 1, round 0, start: failed: at all; see {tmp_path / '1' / 'log.txt'}"


def test_who_is_killed_is_told_with_what_is_known_of_it(tmp_path: Path) -> None:
    with Story(tmp_path, "waits", "ends", killed="out of memory?") as story:
        story.go()
        os.kill(story.launcher.members[0].pids[0], signal.SIGKILL)
        story.ends()
        assert story.states() == ["lost", "finished"]
    assert "node 0 was killed (SIGKILL): out of memory?" in story.said


@pytest.mark.parametrize("stands_by", [True, False])
def test_a_node_that_nobody_planned_to_return_is_started_again(tmp_path: Path, stands_by: bool) -> None:
    with Story(tmp_path, "ends", "ends") as story:
        story.go()
        launcher, node = story.launcher, story.launcher.members[0]
        for returns in (1, 2):
            if stands_by:
                launcher.stand_by(0)
                launcher.stand_by(0)  # one is enough
                until(lambda: launcher.poll(0.05) or node.standby is not None)
            launcher.kill(0)
            if not stands_by:
                until(lambda: launcher.poll(0.05) or node.state == "lost")
            launcher.again(0)
            until(lambda: launcher.poll(0.05) or node.returned == returns)  # noqa: B023
            assert node.state == "alive" and len(set(node.pids)) == returns + 1
        story.ends()
        assert story.states() == ["finished", "finished"]
        assert [event["event"] for event in launcher.events] == ["crash", "crash"]


def test_who_has_been_told_to_be_a_node_is_looked_at_before_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids.json"
    processes.write(file, {3: [1, os.getpid()]})
    assert processes.read(file) == {3: [1, os.getpid()]}
    assert not processes.send(os.getpid(), 3, signal.SIGKILL)  # this process is no node
    code = "import threading; threading.Event().wait()"
    words = [sys.executable, "-c", code, "node", f"{tmp_path}/nodes/3/node.toml"]
    with subprocess.Popen(words) as started:
        until(lambda: processes.runs(started.pid, 3))
        assert not processes.runs(started.pid, 4) and not processes.send(started.pid, 13, signal.SIGKILL)
        assert processes.send(started.pid, 3, signal.SIGKILL)
        until(lambda: not processes.runs(started.pid, 3))
    assert started.returncode == -signal.SIGKILL and not processes.send(started.pid, 3, signal.SIGKILL)


def test_nodes_go_on_when_the_process_that_forks_them_is_killed(tmp_path: Path) -> None:
    with Story(tmp_path, "ends", "leaves", "waits", "fails") as story:
        story.launcher.prepare(story.orders)
        os.kill(story.launcher.pid, signal.SIGKILL)
        story.launcher.go()
        until(lambda: story.launcher.poll(0.05) or bool(story.launcher.broken))
        assert story.launcher.running
        os.kill(story.launcher.members[2].pids[0], signal.SIGKILL)
        story.ends()
        assert story.states() == ["finished", "left", "lost", "lost"]
    assert story.said[0] == (
        "the process that starts nodes has died (killed by SIGKILL); those that are there go on without it"
    )
    assert f"node 2 ended with no result; see {tmp_path / '2' / 'log.txt'}" in story.said


def test_no_node_can_be_started_by_a_process_that_is_dead(tmp_path: Path) -> None:
    with Story(tmp_path, "ends") as story:
        os.kill(story.launcher.pid, signal.SIGKILL)
        with pytest.raises(LocalError, match="no node can be started"):
            story.go()


# --- ports


def bound(port: int, reuse: bool, host: str = "127.0.0.1") -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            one.bind((host, port))
        except OSError:
            return False
    return True


def test_a_reserved_port_is_the_nodes_own_life_after_life(tmp_path: Path) -> None:
    with ports.reserved(2) as held, zmq.Context() as context:
        assert len({port + beside for port in held for beside in (0, 1)}) == 4
        for port, host in itertools.product((held[0], held[0] + 1), ("127.0.0.1", "0.0.0.0")):
            assert not bound(port, reuse=False, host=host)
        for _ in range(3):  # its lives
            with context.socket(zmq.ROUTER) as node, context.socket(zmq.DEALER) as other:
                node.bind(f"tcp://127.0.0.1:{held[0]}")
                other.connect(f"tcp://127.0.0.1:{held[0]}")
                other.send(b"hello")
                assert node.recv_multipart()[1] == b"hello"
                assert not bound(held[0], reuse=True)  # nor does anybody else while it listens
            until(lambda: bound(held[0], reuse=True))
        assert not bound(held[0], reuse=False)
    assert bound(held[0], reuse=False)


def test_another_process_reserves_other_ports() -> None:
    code = (
        "import sys; from p2pfl.drivers.live import ports\n"
        "try: ports.Reservation(int(sys.argv[1]))\n"
        "except OSError: sys.exit(7)"
    )
    with ports.reserved(1) as (port,):
        assert subprocess.run([sys.executable, "-c", code, str(port)], check=False).returncode == 7
    assert subprocess.run([sys.executable, "-c", code, str(port)], check=False).returncode == 0


def test_ports_are_not_drawn_by_the_number_of_the_process() -> None:
    drawn = []
    for _ in range(3):
        with ports.reserved(4) as held:
            drawn.append(tuple(held))
    assert len(set(drawn)) == 3


def test_a_port_that_is_held_is_waited_for_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with ports.reserved(1) as (port,):
        address = f"tcp://127.0.0.1:{port}"
        ports.await_free([address], said.append)
        assert not said
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        held.listen()
        now = itertools.count(step=0.3)
        monkeypatch.setattr(ports.clock, "now", lambda: next(now))
        monkeypatch.setattr(ports.clock, "pause", lambda seconds: held.close() if said else None)  # what held it ends
        ports.await_free([address], said.append)
    assert said == [f"{address} is held by another process: waiting up to 15 s for it to be free"]


def test_a_port_that_stays_held_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = itertools.count()
    monkeypatch.setattr(ports.clock, "now", lambda: float(next(now)))
    monkeypatch.setattr(ports.clock, "pause", lambda seconds: None)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        ports.await_free([f"tcp://127.0.0.1:{held.getsockname()[1]}"], said.append)
    assert len(said) == 1 and next(now) < 20


@pytest.mark.parametrize("address", ["tcp://lo:5555", "tcp://203.0.113.9:5555", "tcp://*:0", "tcp://[::1]:0"])
def test_what_cannot_be_looked_at_is_not_waited_for(address: str) -> None:
    ports.await_free([address], lambda text: pytest.fail(text))
