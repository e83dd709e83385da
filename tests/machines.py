"""Machines of a test: network namespaces with addresses of their own, joined by wires or by a switch."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

FIREWALL = """
ip rule add pref 100 lookup local
ip rule del pref 0
ip rule add pref 10 iif wire ipproto tcp dport 5700-5701 blackhole
"""
"""What calls the ports of the node is dropped, without a word; answers to what the machine itself calls are not."""

OPEN = "ip rule del pref 10"


class Machine:
    """A network namespace, held by a process that sleeps."""

    def __init__(self, *before: str) -> None:
        self.holder = subprocess.Popen(
            [*before, "unshare", *([] if before else ["-r"]), "--net", "sh", "-c", "echo up; exec sleep 1200"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != "up\n":
            raise AssertionError(self.holder.communicate()[1])
        self.inside = ["nsenter", "--target", str(self.holder.pid), "--user", "--net", "--preserve-credentials"]

    def does(self, text: str) -> None:
        for line in text.strip().splitlines():
            done = subprocess.run([*self.inside, *line.split()], capture_output=True, text=True)
            assert not done.returncode, f"{line.strip()}: {done.stderr.strip()}"

    def ends(self) -> None:
        self.holder.kill()
        self.holder.communicate()


@functools.cache
def missing() -> str:
    """Why there can be no machines here: no tools, no permission, no wires, switches or rules in the kernel.

    "" where they can. Looked at once, apart from what a test does with them: whatever goes wrong there is a failure.
    """
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip")):
        return "unshare, nsenter and ip make the network namespaces"
    tried = "ip link add one type veth peer name other && ip link add every type bridge"
    tried += " && ip rule add pref 10 iif one ipproto tcp dport 1-2 blackhole"
    done = subprocess.run(["unshare", "-r", "--net", "sh", "-c", tried], capture_output=True, text=True)
    return f"no network namespaces here: {done.stderr.strip()}" if done.returncode else ""


def demand() -> None:
    """Skip the test where there can be no machines."""
    if missing():
        pytest.skip(missing())


@contextlib.contextmanager
def wired() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a wire between them, 10.77.0.1 and 10.77.0.2."""
    demand()
    one = Machine()
    other = Machine(*one.inside)
    try:
        one.does(
            f"""
            ip link set lo up
            ip link add wire type veth peer name wire netns {other.holder.pid}
            ip address add 10.77.0.1/24 dev wire
            ip link set wire up
            """
        )
        other.does("ip link set lo up\nip address add 10.77.0.2/24 dev wire\nip link set wire up")
        yield one, other
    finally:
        for each in (other, one):
            each.ends()


class Switched:
    """Machines at a switch, 10.77.0.1, 10.77.0.2 and so on; the switch is a machine, too, where all can be heard."""

    def __init__(self, count: int) -> None:
        demand()
        self.switch = Machine()
        self.at: list[Machine] = []
        with contextlib.ExitStack() as undone:
            undone.callback(self.close)
            self._wire(count)
            undone.pop_all()

    def _wire(self, count: int) -> None:
        self.switch.does("ip link set lo up\nip link add every type bridge\nip link set every up")
        for number in range(1, count + 1):
            made = Machine(*self.switch.inside)
            self.at.append(made)
            self.switch.does(
                f"""
                ip link add port{number} type veth peer name wire netns {made.holder.pid}
                ip link set port{number} master every
                ip link set port{number} up
                """
            )
            made.does(f"ip link set lo up\nip address add {self.address(number - 1)}/24 dev wire\nip link set wire up")

    @staticmethod
    def address(place: int) -> str:
        return f"10.77.0.{place + 1}"

    def cut(self, place: int) -> None:
        """Pull the cable of a machine."""
        self.switch.does(f"ip link set port{place + 1} down")

    def mend(self, place: int) -> None:
        """Put it back."""
        self.switch.does(f"ip link set port{place + 1} up")

    def close(self) -> None:
        for each in (*self.at, self.switch):
            each.ends()


HEAR = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
with open(sys.argv[1], "wb") as out:
    print("hears", flush=True)
    while True:
        out.write(link.recv(1 << 16))
        out.flush()
"""


def hearing(switch: Machine, file: str) -> subprocess.Popen[str]:
    """Write down all bytes that go through a switch, until it is killed."""
    made = subprocess.Popen(
        [*switch.inside, sys.executable, "-c", HEAR, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    if made.stdout.readline() != "hears\n":
        raise AssertionError(made.communicate()[1])
    return made
