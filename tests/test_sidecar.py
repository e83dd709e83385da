"""Membership in its own processes over real sockets: they meet, die, return, are cut, leave, and fall silent.

The play runs in a process of its own, since sidecars are forked before jax has a backend; what it has seen is asserted
here, scene by scene.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# the play takes half a minute of real time; live runs have a membership process each
pytestmark = [pytest.mark.live, pytest.mark.more]

LIMIT = 20.0
"""Seconds a scene may take at most; each is over as soon as what it waits for has come."""


class Play:
    """Sidecars by node, and what each has said."""

    def __init__(self) -> None:
        from p2pfl.drivers.live import clock, sidecar
        from p2pfl.protocol.membership.events import Changed
        from p2pfl.protocol.membership.timing import LOCAL

        self.clock, self.sidecar, self.local, self.changed = clock, sidecar, LOCAL, Changed
        self.cars: dict[int, Any] = {}
        self.address: dict[int, str] = {}
        self.held: dict[int, dict[int, Any]] = {}
        self.events: list[tuple[int, Any]] = []
        self.fell = False  # somebody has been held for dead
        self.fewest = 0  # members in a table

    def begin(self, node: int, seeds: list[str], keys: Any = None, document: bytes = b"", **changes: Any) -> None:
        from p2pfl.protocol.membership.seeds import Seed
        from p2pfl.protocol.membership.table import Me

        if node not in self.address:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.address[node] = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        car = self.sidecar.start()
        me = Me(node, self.clock.life(), self.address[node])
        whose = {address: node for node, address in self.address.items()} if keys else {}
        places, timing = [Seed(seed, whose.get(seed)) for seed in seeds], self.local._replace(**changes)
        car.begin(me, "play", places, timing, me.address, keys=keys, document=document)
        self.cars[node] = car

    def until(self, condition: Callable[[], bool], silent: int = -1) -> bool:
        """Let the sidecars run, with all nodes but `silent` showing life."""
        end = self.clock.now() + LIMIT
        while self.clock.now() < end:
            poll = select.poll()
            for node, car in self.cars.items():
                poll.register(car, select.POLLIN)
                if node != silent:
                    car.beat()
            poll.poll(50)
            for node, car in self.cars.items():
                for event in car.read():
                    if isinstance(event, self.changed):
                        self.fewest = min(self.fewest, len(event.members))
                        self.fell |= any(m.state == "dead" for m in event.members)
                        self.held[node] = {m.node: m for m in event.members}
                    else:
                        self.events.append((node, event))
            if condition():
                return True
        return False

    def state(self, node: int) -> set[str]:
        """Of a node, as the others hold it."""
        nothing = type("Nothing", (), {"state": "unknown"})
        return {self.held.get(other, {}).get(node, nothing).state for other in self.cars if other != node}

    def said(self, node: int, kind: str) -> list[Any]:
        return [event for who, event in self.events if who == node and type(event).__name__ == kind]

    def restarts(self, node: int) -> list[str]:
        return [event.how for event in self.said(node, "Restarted")]

    def run(self) -> dict[str, Any]:
        import zmq

        from p2pfl.drivers.live.zmtp import introduction
        from p2pfl.errors import ConfigError, LocalError
        from p2pfl.protocol.membership.table import Me

        seen: dict[str, Any] = {}
        self.begin(0, [])
        for node in (1, 2, 3):
            self.begin(node, [self.address[0]])
        seen["meet"] = self.until(lambda: all(self.state(node) == {"alive"} for node in range(4)))

        self.cars[1].progress(17)
        self.cars[2].busy(300.0)
        seen["progress"] = self.until(lambda: all(self.held[n][1].round == 17 for n in (0, 2, 3)))
        seen["busy"] = self.until(lambda: all(self.held[n][2].busy > self.clock.now() + 200 for n in (0, 1, 3)))
        self.cars[2].busy(0.0)
        seen["busy over"] = self.until(lambda: all(self.held[n][2].busy == 0 for n in (0, 1, 3)))

        taken = self.sidecar.start()
        self.address[9] = self.address[0]
        try:
            taken.begin(Me(9, 1, self.address[9]), "play", [], "local", self.address[9])
            seen["taken"] = "no error"
        except ConfigError as error:
            seen["taken"] = str(error)
        taken.close()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(self.cars[0].pid, number)
            os.kill(self.cars[0].member_pid, number)
        self.cars[1].progress(18)
        seen["signals"] = self.until(lambda: self.held[0][1].round == 18)

        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.ROUTING_ID, introduction("play", 7))
            dealer.connect(self.address[3])
            dealer.send(b"\xff\x00 nonsense")
            dealer.send_multipart([b"two", b"frames"])
            seen["nonsense"] = self.until(lambda: {"message", "size"} <= {e.reason for e in self.said(3, "MemberDrop")})

        self.fewest = 4
        os.kill(self.cars[0].member_pid, signal.SIGKILL)
        seen["another goes on"] = self.until(lambda: self.restarts(0) == ["killed by SIGKILL"])
        self.cars[0].progress(19)
        seen["where it was"] = self.until(lambda: all(self.held[n][0].round == 19 for n in (1, 2, 3)))
        self.until(lambda: self.cars[0].member_pid != 0)
        os.kill(self.cars[0].member_pid, signal.SIGSTOP)
        for round in range(20, 4000):
            self.cars[0].progress(round)
        seen["what stands still"] = self.until(lambda: all(self.held[n][0].round == 3999 for n in (1, 2, 3)))
        seen["nobody died"] = not self.fell and self.fewest == 4

        dead = self.cars.pop(2)
        dead._link.close()  # as when the node is killed
        seen["ends with its node"] = os.waitstatus_to_exitcode(os.waitpid(dead.pid, 0)[1])
        seen["dead"] = self.until(lambda: self.state(2) == {"dead"})
        self.begin(2, [self.address[3]])
        seen["back"] = self.until(lambda: self.state(2) == {"alive"} and len(self.held.get(2, ())) == 4)

        for one, others in ((0, [2, 3]), (1, [2, 3]), (2, [0, 1]), (3, [0, 1])):
            self.cars[one].cut(others)
        seen["cut"] = self.until(
            lambda: all(self.held[a][b].state == "dead" for a, b in ((0, 2), (0, 3), (1, 2), (3, 0), (2, 1), (2, 0)))
        )
        for car in self.cars.values():
            car.cut([])
        seen["accused"] = self.until(lambda: all(self.said(node, "Accused") for node in range(4)))
        for node in range(4):
            self.cars[node].reborn(self.said(node, "Accused")[-1].life + 1)
        seen["healed"] = self.until(lambda: all(self.state(node) == {"alive"} for node in range(4)))

        for car in self.cars.values():
            car.lag(0.02)
        self.cars[3].progress(19)
        seen["lag"] = self.until(lambda: self.held[0][3].round == 19)

        self.begin(4, [self.address[1]], stalled_after=1.0)
        self.until(lambda: self.state(4) == {"alive"})
        seen["stalled"] = self.until(lambda: self.state(4) == {"dead"}, silent=4)
        seen["wakes"] = self.until(lambda: bool(self.said(4, "Accused")))

        self.cars[1].leave()
        seen["left"] = self.until(lambda: self.state(1) == {"left"} and bool(self.said(1, "Gone")))
        self.cars.pop(1).close()

        try:
            for before in range(len(self.restarts(0)), 10):
                os.kill(self.cars[0].member_pid, signal.SIGKILL)
                self.until(lambda before=before: len(self.restarts(0)) > before and self.cars[0].member_pid != 0)
            seen["too often"] = "no error"
        except LocalError as error:
            seen["too often"] = str(error)
        self.cars.pop(0).close()

        parent, before, accused = self.cars[3].pid, len(self.restarts(3)), len(self.said(3, "Accused"))
        os.kill(parent, signal.SIGKILL)  # nobody notices, for the member goes on ...
        self.cars[3].progress(4001)
        seen["an orphan goes on"] = self.until(lambda: self.held[2][3].round == 4001)
        os.kill(self.cars[3].member_pid, signal.SIGKILL)  # ... until it dies as well
        seen["both begin anew"] = self.until(lambda: len(self.restarts(3)) > before and self.cars[3].pid != parent)
        self.cars[3].progress(4002)
        told = self.until(lambda: self.held[2][3].round == 4002)
        seen["as the same life"] = told and len(self.said(3, "Accused")) == accused
        os.kill(self.cars[3].pid, signal.SIGSTOP)  # nor is one waited for that can't start another
        os.kill(self.cars[3].member_pid, signal.SIGKILL)
        while len(self.restarts(3)) < before + 2:
            self.cars[3].progress(4003)
            self.until(lambda: True)
        # by then it was held for dead, as after any silence
        self.until(lambda: any(event.life >= self.cars[3]._said["begin"]["me"][1] for event in self.said(3, "Accused")))
        self.cars[3].reborn(self.said(3, "Accused")[-1].life + 1)
        seen["nor is one that stands still waited for"] = self.until(lambda: self.held[2][3].round == 4003)
        for car in self.cars.values():
            car.close()
        return seen


class PlayWithKeys(Play):
    """The same with keys: each has records of its own, in a document that is larger than a packet."""

    def run(self) -> dict[str, Any]:
        from p2pfl.protocol.membership.events import Told
        from p2pfl.trust import keyring, keys

        private = [keys.PrivateKey(bytes([node + 1]) * 32) for node in range(4)]
        public = {node: key.public for node, key in enumerate(private)}
        names = {node: f"site {node}" for node in public}

        def ring(node: int, without: int = -1) -> Any:
            known = {each: key for each, key in public.items() if each != without}
            return keyring.of(private[node], node, known, {each: names[each] for each in known}, "play")

        documents = {node: {b"%d" % node * 60_000} for node in range(3)}
        told = 0

        def merged() -> bool:
            nonlocal told
            for node, event in self.events[told:]:
                if isinstance(event, Told):
                    documents[node] |= {*event.document.split()}
                    self.cars[node].document(b"\n".join(sorted(documents[node])))
            told = len(self.events)
            return all(len(documents[node]) == 3 for node in range(3))

        seen: dict[str, Any] = {}
        for node in range(3):
            seeds = [self.address[0]] if node else []
            self.begin(node, seeds, ring(node), b"\n".join(sorted(documents[node])))
        seen["meet"] = self.until(lambda: all(self.state(node) == {"alive"} for node in range(3)))
        seen["merge"] = self.until(merged)

        secret = private[1].reveal()
        places = [f"/proc/{pid}/{file}" for pid in (self.cars[1].pid, self.cars[1].member_pid)
                  for file in ("cmdline", "environ")]  # fmt: skip
        read = []
        for place in places:
            with open(place, "rb") as file:
                read.append(file.read())
        seen["secret"] = not any(form in text for text in read for form in (secret, secret.hex().encode()))

        os.kill(self.cars[1].member_pid, signal.SIGKILL)
        seen["another goes on"] = self.until(lambda: self.restarts(1) == ["killed by SIGKILL"])
        self.cars[1].progress(19)
        seen["as itself"] = self.until(lambda: all(self.held[n][1].round == 19 for n in (0, 2)))

        self.cars[0].document(b"garbage from a member that has a bug")

        def garbage() -> list[Any]:
            return [e for _, e in self.events if isinstance(e, Told) and e.document.startswith(b"garbage")]

        seen["told garbage"] = self.until(lambda: bool(garbage()))
        for node in (1, 2):
            self.cars[node].unwanted(garbage()[0])
        seen["unwanted"] = self.until(lambda: any(e.reason == "document" for e in self.said(1, "MemberDrop")))

        for node in (0, 1):
            self.cars[node].document(b"2 is revoked")
            self.cars[node].admit(ring(node, without=2))
        gone = (1 << 63) - 1
        seen["revoked"] = self.until(lambda: all(self.held[n][2].life == gone for n in (0, 1)))
        seen["last word"] = self.until(lambda: any(told.document == b"2 is revoked" for told in self.said(2, "Told")))
        seen["stranger"] = self.until(lambda: any(e.reason == "stranger" for e in self.said(0, "MemberDrop")))
        os.kill(self.cars[0].member_pid, signal.SIGKILL)
        self.until(lambda: len(self.restarts(0)) == 1)
        self.held.pop(0)
        seen["revoked for good"] = self.until(lambda: 0 in self.held and self.held[0][1].state == "alive")
        seen["revoked for good"] &= self.held[0][2].life == gone
        self.cars[2].admit(ring(2, without=2))
        seen["expelled"] = self.until(lambda: bool(self.said(2, "Expelled")))
        for car in self.cars.values():
            car.close()
        return seen


PLAYS = {"plain": Play, "keys": PlayWithKeys}


@pytest.fixture(scope="module")
def played() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Both plays, at the same time: they wait, most of it."""
    pipe = subprocess.PIPE
    plays = {name: subprocess.Popen([sys.executable, __file__, name], stdout=pipe, stderr=pipe, text=True)
             for name in PLAYS}  # fmt: skip
    yield plays
    for each in plays.values():
        each.kill()
        each.communicate()


def seen_in(play: subprocess.Popen[str]) -> dict[str, Any]:
    """What it has seen; it ends within the time."""
    said, failed = play.communicate(timeout=300)
    assert play.returncode == 0 and not failed, failed
    return dict(json.loads(said))


@pytest.fixture(scope="module")
def seen(played: dict[str, subprocess.Popen[str]]) -> dict[str, Any]:
    return seen_in(played["plain"])


@pytest.mark.parametrize("scene", [
    "meet", "progress", "busy", "busy over", "signals", "nonsense", "another goes on", "where it was",
    "what stands still", "nobody died", "dead", "back", "cut", "accused", "healed", "lag",
    "stalled", "wakes", "left", "an orphan goes on", "both begin anew", "as the same life",
    "nor is one that stands still waited for",
])  # fmt: skip
def test_a_scene_of_the_play(seen: dict[str, Any], scene: str) -> None:
    assert seen[scene] is True


def test_a_sidecar_ends_with_its_node_and_a_node_hears_of_the_end_of_its_sidecar(seen: dict[str, Any]) -> None:
    assert seen["ends with its node"] == 0
    assert "has ended 6 times in 60.0 s: killed by SIGKILL" in seen["too often"]


def test_an_address_that_is_taken_is_a_config_error(seen: dict[str, Any]) -> None:
    assert "can't listen there" in seen["taken"] and seen["taken"].startswith("listen='tcp://127.0.0.1:")


def test_with_keys_they_meet_merge_documents_and_are_revoked(played: dict[str, subprocess.Popen[str]]) -> None:
    seen = seen_in(played["keys"])
    assert not [scene for scene, so in seen.items() if so is not True], seen


if __name__ == "__main__":
    print(json.dumps(PLAYS[sys.argv[1]]().run()))
