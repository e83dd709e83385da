"""What comes in on a node's sockets: messages as ZeroMQ sends them, and a bound on all that anybody can cost."""

from __future__ import annotations

import itertools
import random
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest
import zmq
from test_curve import ring

from p2pfl.drivers.live import addresses, clock, listener, ports, reach, zmtp
from p2pfl.drivers.live.addresses import Names
from p2pfl.drivers.live.listener import Allowance, Arrived, Listener, Volume
from p2pfl.drivers.live.member_process import MemberSockets
from p2pfl.drivers.live.parcels import MARK, Letter, ParcelId, _Head
from p2pfl.drivers.live.transport import Transport, dealer
from p2pfl.drivers.live.zmtp import Command, Limits, Reader
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.protocol.budget import Budget
from p2pfl.protocol.codec import HEADER_CAP, Schema
from p2pfl.protocol.questions import DIFFERS, Questions
from p2pfl.protocol.strangers import Stranger, Strangers
from p2pfl.trust.keyring import Keyring

LIMITS = Limits(frame=100_000, frames=5, message=200_000)
FEDERATION = "digest"


def frame(body: bytes, more: bool = False, flags: int = 0) -> bytes:
    size = struct.pack(">B", len(body)) if len(body) < 256 else struct.pack(">Q", len(body))
    return bytes([flags | more | 2 * (len(size) == 8)]) + size + body


def message(*frames: bytes) -> bytes:
    return b"".join(frame(body, more=True) for body in frames[:-1]) + frame(frames[-1])


def handshake(node: int = 1, federation: str = FEDERATION) -> bytes:
    return zmtp.GREETING + zmtp.ready(b"DEALER", zmtp.introduction(federation, node))


def read(data: bytes, cuts: list[int], limits: Limits = LIMITS) -> list[Command | list[bytes]]:
    """What a reader makes of these bytes when they come in pieces."""
    reader, items = Reader(), []
    for piece in (data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)):
        while piece:
            space = reader.space
            part, piece = piece[: len(space)], piece[len(space) :]
            space[: len(part)] = part
            reader.took(len(part))
            while (item := reader.next()) is not None:
                if isinstance(item, Command):
                    zmtp.introduced(zmtp.identity(item), FEDERATION)
                    reader.limits = limits
                    items.append(item)
                else:
                    items.append([bytes(each) for each in item])
    return items


@pytest.mark.parametrize("seed", range(20))
def test_messages_are_the_same_however_they_are_cut(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [0, 1, 20, 255, 256, 4000, 32767, 32768, 70_000]
    sent = [[draw.randbytes(draw.choice(sizes)) for _ in range(draw.randint(1, 2))] for _ in range(20)]
    data = handshake() + b"".join(message(*frames) for frames in sent)
    cuts = sorted(draw.sample(range(len(data)), draw.choice([0, 5, 200])))
    command, *messages = read(data, cuts)
    assert isinstance(command, Command)
    assert messages == sent


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"GET / HTTP/1.1\r\n\r\n", "handshake"),
        (b"\xff" + bytes(8) + b"\x7f\x01" + bytes(53), "handshake"),  # ZMTP 1
        (zmtp.GREETING.replace(b"NULL", b"PLAI"), "handshake"),
        (zmtp.GREETING + frame(b"\x04PING\0\0", flags=4), "handshake"),
        (zmtp.GREETING + frame(b"hello"), "size"),
        (zmtp.GREETING + zmtp.ready(b"DEALER", b"somebody"), "handshake"),
        (handshake(federation="another"), "handshake"),
        (zmtp.GREETING + zmtp.ready(b"DEALER", b"p2pfl/1 digest -1"), "handshake"),
        (zmtp.GREETING + zmtp.ready(b"DEALER", b"p2pfl/1 digest 1")[:-3] + bytes(3), "handshake"),
        (zmtp.GREETING + frame(b"\x05READY\x0bSocket-Type\xff\xff\xff\xff", flags=4), "handshake"),
        (handshake() + b"\x02" + struct.pack(">Q", 1 << 63), "size"),
        (handshake() + b"\x06" + struct.pack(">Q", 2000), "size"),
        (handshake() + frame(b"x", flags=8), "handshake"),
        (handshake() + 6 * frame(b"", more=True), "size"),  # it has said nothing and does not end
        (handshake() + 3 * frame(bytes(90_000), more=True), "size"),
    ],
)
def test_what_no_node_sends_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteError) as error:
        read(data, [])
    assert error.value.reason == reason


def test_a_frame_that_is_announced_takes_no_memory_before_it_comes() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = Reader()
    for data in (handshake(), b"\x02" + struct.pack(">Q", 1 << 30) + b"x" * 100):
        reader.space[: len(data)] = data
        reader.took(len(data))
        reader.next()
        reader.limits = Limits(1 << 30, 1, 1 << 30)
    assert len(reader.space) == (1 << 30) - 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (100 << 10)


def test_a_budget_refills_and_can_be_overspent() -> None:
    budget = Budget(rate=10, burst=5, now=0)
    assert budget.left(0)
    budget.spend(7)
    assert not budget.left(0.1)
    assert not budget.left(0.2)
    assert budget.left(0.3)
    assert not budget.full(0.6)
    assert budget.full(0.8)
    budget.spend(5)
    assert not budget.left(0.7)  # no clock runs back here; one that did would give nothing


class Bench:
    """A listener, in whose time only this passes, and raw connections to it."""

    def __init__(
        self, rate: float = 1e6, burst: float = 1e6, unit: float = float("inf"), volume: Volume | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.where = free.getsockname()
        self.now = 100.0
        self.early: list[Arrived] = []  # what came in when a connection was made
        allowance = Allowance(LIMITS, rate, burst, unit, volume=volume)
        self.listener = Listener(f"tcp://127.0.0.1:{self.where[1]}", FEDERATION, 10, allowance, self.now)
        self.stack = ExitStack()
        self.stack.callback(self.listener.close)

    def call(self, *data: bytes) -> socket.socket:
        link = self.stack.enter_context(socket.create_connection(self.where))
        for each in data:
            link.sendall(each)
        return link

    def connect(self, *data: bytes) -> socket.socket:
        link = self.call(*data)
        self.early = [*self.turn(), *self.turn()]  # it is accepted, then read
        return link

    def turn(self, seconds: float = 0.0) -> list[Arrived]:
        self.now += seconds
        early, self.early = self.early, []
        return early + list(self.listener.receive(self.now))

    def hung_up(self, link: socket.socket) -> bool:
        """The other end has closed."""
        link.setblocking(False)
        try:
            while data := link.recv(4096):
                assert data
            return True
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def bench() -> Iterator[type[Bench]]:
    made: list[Bench] = []

    class Made(Bench):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            made.append(self)

    yield Made
    for each in made:
        each.stack.close()


def test_who_has_not_said_who_it_is_in_time_is_hung_up(bench: type[Bench]) -> None:
    at = bench()
    silent, node = at.connect(), at.connect(handshake())
    at.turn(listener._INTRODUCTION - 0.1)
    assert not at.hung_up(silent)
    at.turn(0.5)
    assert at.hung_up(silent)
    assert not at.hung_up(node)
    assert at.listener.dropped == {"handshake": 1}


def test_strangers_are_hung_up_at_once_and_are_few(bench: type[Bench]) -> None:
    at = bench()
    for data in (b"GET / HTTP/1.1\r\n\r\n", handshake(federation="another"), handshake(node=10)):
        assert at.hung_up(at.connect(data))
    silent = [at.connect() for _ in range(80)]
    at.turn(1.0)
    assert sum(not at.hung_up(link) for link in silent) <= listener._STRANGERS
    assert not at.hung_up(at.connect(handshake()))


def test_a_stranger_that_has_been_admitted_may_connect(bench: type[Bench]) -> None:
    at = bench()
    assert at.hung_up(at.connect(handshake(node=10)))
    at.listener.grow(11)
    at.listener.grow(3)  # which is no news
    link = at.connect(handshake(node=10), message(b"x"))
    assert [each.node for each in at.turn()] == [10] and not at.hung_up(link)
    assert at.hung_up(at.connect(handshake(node=11)))


def test_who_sends_much_delays_nobody_and_a_turn_has_an_end(bench: type[Bench]) -> None:
    at = bench()
    at.connect(handshake(1), message(b"x" * 20) * 2000)
    at.connect(handshake(2), message(b"y"))
    early = at.turn()
    turns = [at.turn(0.01) for _ in range(3)]
    assert max(map(len, turns)) <= listener._TURN
    assert sum(each.node == 2 for each in [*early, *turns[0]]) == 1
    assert all(sum(each.node == 1 for each in turn) <= listener._SHARE for turn in turns)
    assert at.listener.delay == 0.0
    assert sum(len(at.turn(0.01)) for _ in range(300)) + sum(map(len, [early, *turns])) == 2001


def test_what_exceeds_the_budget_waits_at_its_own_end(bench: type[Bench]) -> None:
    at = bench(rate=50, burst=100)
    link = at.connect(handshake())
    at.turn(10.0)
    link.sendall(message(b"x") * 200)
    arrived = sum(len(at.turn()) for _ in range(50))
    assert 100 <= arrived <= 100 + listener._SHARE
    assert at.listener.delay == listener._REFILL
    arrived += sum(len(at.turn(0.1)) for _ in range(10))
    assert 140 <= arrived <= 160
    at.listener.allow(30)
    arrived += sum(len(at.turn()) for _ in range(20))
    assert 170 <= arrived <= 190
    arrived += sum(len(at.turn(0.1)) for _ in range(9))
    assert arrived == 200
    at.turn(5.0)
    assert not at.listener.dropped


def test_what_would_be_read_too_late_is_not_read_and_its_node_is_barred_for_a_while(bench: type[Bench]) -> None:
    at = bench(rate=50, burst=100)
    link = at.connect(handshake(), message(b"x") * 1000)
    other = at.connect(handshake(2))
    arrived = sum(len(at.turn(0.1)) for _ in range(30))
    assert arrived <= 5 + 2.5 * 50 + listener._SHARE
    assert at.hung_up(link)
    assert at.listener.dropped == {"flood": 1}
    assert at.hung_up(at.connect(handshake()))
    at.turn(listener._BARRED)
    assert not at.hung_up(at.connect(handshake()))
    assert not at.hung_up(other)


def test_large_messages_cost_more(bench: type[Bench]) -> None:
    at = bench(rate=10, burst=10, unit=1000.0)
    link = at.connect(handshake())
    at.turn(10.0)
    link.sendall(message(bytes(5000)) * 4)
    assert sum(len(at.turn()) for _ in range(10)) == 2
    assert sum(len(at.turn(0.1)) for _ in range(10)) == 2


def test_the_bytes_of_a_node_have_a_bound_whatever_its_messages_and_connections(bench: type[Bench]) -> None:
    """50 kB a second for long and 100 kB at once; its other connection, and one made anew, bring no more."""
    at = bench(volume=Volume(50_000, 100_000))
    at.connect(handshake(2), message(b"y" * 20_000) * 2)
    links = [at.connect(handshake(), message(b"x" * 20_000) * 20) for _ in range(2)]
    came = [each for _ in range(20) for each in at.turn()]
    assert [each.node for each in came].count(2) == 2  # whose bytes are not those of another
    nbytes = 20_000 * [each.node for each in came].count(1)
    assert 100_000 <= nbytes < 120_000
    links[0].close()
    links.append(at.connect(handshake(), message(b"x" * 20_000) * 20))
    nbytes += 20_000 * sum(each.node == 1 for _ in range(15) for each in at.turn(0.1))
    assert 160_000 <= nbytes <= 200_000
    at.listener.allow(0.0, 60_000)  # a round of this node
    assert 60_000 <= 20_000 * sum(each.node == 1 for _ in range(10) for each in at.turn()) <= 80_000
    at.listener.restore(1, 40_000)  # what it had for others
    assert 40_000 <= 20_000 * sum(each.node == 1 for _ in range(10) for each in at.turn()) <= 60_000
    for _ in range(30):
        at.turn(0.1)
    assert at.hung_up(links[1]) and at.listener.dropped["flood"]  # it does not stop for a while


@pytest.mark.parametrize("payload", [10_000, 44_000_000])
def test_what_a_member_may_send_follows_from_what_was_agreed(payload: int) -> None:
    """Large messages count little as messages; their bytes count."""
    with ExitStack() as stack:
        here, _ = pair(stack, (payload,))
        agreed = payload + HEADER_CAP
        assert here._listener._allowance.volume == Volume(max(8e6, 2 * agreed), 8e6 + 4 * agreed)
        assert here._bytes_per_round == 3 * agreed


def test_much_that_is_of_no_use_is_hung_up_and_coming_back_has_a_bound(bench: type[Bench]) -> None:
    at = bench()
    useless = 0
    links = [at.call(handshake(), message(b"x") * 1000) for _ in range(30)]
    for _ in range(400):
        for each in at.turn(0.001):
            useless += 1
            at.listener.blame(each, at.now)
    assert all(at.hung_up(link) for link in links)
    assert useless <= sum(listener._USELESS) + listener._CONNECTS[1] * listener._SHARE
    assert any("too often" in detail for _, detail in at.listener.told())
    at.turn(120.0)
    assert not at.hung_up(at.connect(handshake()))


def test_a_node_has_two_connections_and_the_latest_stays(bench: type[Bench]) -> None:
    at = bench()
    links = []
    for _ in range(3):
        links.append(at.connect(handshake()))
        at.turn(1.0)
    assert [at.hung_up(link) for link in links] == [True, False, False]


def test_a_message_that_never_ends_is_given_up(bench: type[Bench]) -> None:
    at = bench()
    link = at.connect(handshake(), frame(b"x", more=True))
    for _ in range(100):
        at.turn(1.0)
        if at.hung_up(link):
            break
        link.setblocking(True)
    assert 50 < at.now - 100 < 70
    other = at.connect(handshake(), frame(bytes(70_000)))
    assert not at.hung_up(other)
    assert at.listener.dropped == {"connection": 1}


def pair(stack: ExitStack, sizes: tuple[int, ...] = (400_000, 12, 0)) -> tuple[Transport, Transport]:
    """Two nodes that know each other, and the bytes of the tensors they send."""
    addresses = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            addresses.append(f"tcp://127.0.0.1:{free.getsockname()[1]}")
    schema = Schema("", sizes)
    nodes = [Transport(address, node, 2, FEDERATION, [schema]) for node, address in enumerate(addresses)]
    for node, each in enumerate(nodes):
        each.know(1 - node, addresses[1 - node])
        stack.callback(each.close, 0)
    return nodes[0], nodes[1]


def sent(one: Transport, two: Transport, messages: list[list[bytes]]) -> list[Arrived]:
    """What comes in at `two` of what `one` sends, with two's turns in between."""
    came: list[Arrived] = []
    poller, limit, left = zmq.Poller(), clock.now() + 30, [*messages]
    poller.register(two.fileno(), zmq.POLLIN)
    while len(came) < len(messages):
        while left and one.send(1, Letter(left[0], sum(map(len, left[0])))):
            del left[0]
        poller.poll(min(5, 1000 * two.delay))
        came += two.receive()
        assert clock.now() < limit
    return came


def test_what_zeromq_sends_comes_in_whole_and_in_order() -> None:
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        one, two = pair(stack)
        messages = [[rng.bytes(60), rng.bytes(400_000), rng.bytes(12), b""] for _ in range(30)]
        came = sent(one, two, messages)
        assert [[bytes(each) for each in message.frames] for message in came] == messages
        assert {message.node for message in came} == {0}
        assert two.bytes_received == one.bytes_sent
        assert not two.watch()


@pytest.mark.parametrize("cuts", [1, 3])
def test_a_transfer_of_44_mb_that_is_cut_is_resumed(cuts: int) -> None:
    sizes = (30_000_001, 12, 0, 14_000_000)
    body = [np.random.default_rng(0).integers(0, 256, size, np.uint8).data for size in sizes]
    frames = [b"header", *body]
    with ExitStack() as stack:
        one, two = pair(stack, sizes)
        meet(one, two)
        total, cut_at = sum(sizes), [i * sum(sizes) // (cuts + 1) for i in range(1, cuts + 1)]
        before = one.bytes_sent
        one.send(1, Letter(frames, total + 6, "Offer"))
        one.send(1, Letter([b"said behind it"], 14))
        came: list[Arrived] = []
        poller, limit, gained, acknowledged = zmq.Poller(), clock.now() + 60, 0, 0
        for each in (one, two):
            poller.register(each.fileno(), zmq.POLLIN)
        while len(came) < 2:
            poller.poll(20)
            assert not came_in(one)
            came += came_in(two)
            acknowledged += sum(each.nbytes for each in one.step())
            gained += sum(each.nbytes for each in two.step())
            if cut_at and gained >= cut_at[0]:
                del cut_at[0]
                hang_up(two, of=0)
            assert clock.now() < limit
        assert not cut_at
        assert [[bytes(frame) for frame in each.frames] for each in came] == [
            [bytes(frame) for frame in frames], [b"said behind it"]
        ]  # fmt: skip
        assert gained == acknowledged == total
        assert one.bytes_sent - before < (1 + 0.1 * cuts) * total


def test_what_is_wrong_with_a_piece_is_told_and_blamed() -> None:
    with ExitStack() as stack:
        one, two = pair(stack)
        meet(one, two)
        for _ in range(3):
            one.send(1, Letter([MARK + b"nonsense"], 9))
        faults: list[str] = []
        limit = clock.now() + 30
        while len(faults) < 3:
            assert not came_in(two)
            faults += [reason for reason, _ in two.watch()]
            assert clock.now() < limit
        assert set(faults) == {"parcel"}


def test_pieces_that_bring_nothing_are_hung_up() -> None:
    """Parcels that are begun and never gone on with; honest nodes send a few such pieces after a break."""
    with ExitStack() as stack:
        one, two = pair(stack, (5_000_000,))
        meet(one, two)
        limit, number, told = clock.now() + 60, 0, list[str]()
        while "flood" not in told:
            head = _Head(0, ParcelId(5, 9, number), 0, 0, 0).packed()
            number += one.send(1, Letter([head, b"header", bytes(50_000)], 50_100))
            assert not came_in(two)
            told += [reason for reason, _ in two.watch()]
            assert clock.now() < limit
        assert number > listener._USELESS[1]


@pytest.mark.more
def test_a_node_that_closes_lets_what_is_under_way_arrive() -> None:
    sizes = (20_000_000,)
    with ExitStack() as stack:
        one, two = pair(stack, sizes)
        meet(one, two)
        one.send(1, Letter([b"header", bytes(sizes[0])], sizes[0] + 6, "Model"))
        one.send(1, Letter([b"bye"], 3))
        came: list[Arrived] = []
        closing = threading.Thread(target=one.close, args=(60.0,))
        closing.start()
        limit = clock.now() + 60
        while len(came) < 2:
            came += came_in(two)
            assert clock.now() < limit
        closing.join()
        stack.pop_all()
        two.close(0)
        assert [len(each.frames) for each in came] == [2, 1]


def meet(one: Transport, two: Transport) -> None:
    """Both ways are connected."""
    limit = clock.now() + 30
    for source, to, number in ((one, two, 1), (two, one, 0)):
        while True:
            source.send(number, Letter([b"hello"], 5))
            if list(to.receive()):
                break
            assert clock.now() < limit


def came_in(at: Transport) -> list[Arrived]:
    """Without what was said to meet."""
    return [each for each in at.receive() if each.frames != [b"hello"]]


def hang_up(at: Transport, of: int) -> None:
    """Break the connection by which a node sends, as when a network fails."""
    for file, connection in [*at._listener._connections.items()]:
        if connection.node == of:
            at._listener._hang_up(file, "connection", "as when a network fails")


def test_a_node_says_who_it_is_each_time_that_its_connection_is_made_anew() -> None:
    with ExitStack() as stack:
        one, two = pair(stack)
        for _ in range(3):
            came: list[Arrived] = []
            limit = clock.now() + 30
            while not came:  # what is on a link when it breaks is lost
                one.send(1, Letter([b"hello"], 5))
                came += two.receive()
                assert clock.now() < limit
            message = came[-1]
            assert message.node == 0
            two._listener._hang_up(message.link, "connection", "as when a network fails")
            assert [reason for reason, _ in two.watch()] == ["connection"]


def test_whatever_listens_at_an_address_can_put_nothing_into_a_node() -> None:
    """The end that sends reads nothing: a listener that floods it waits, and is only a bad place to send to."""
    with socket.create_server(("127.0.0.1", 0)) as hostile, zmq.Context() as context:
        hostile.settimeout(30)
        sending = dealer(context, b"me", None, 4, 20, f"tcp://127.0.0.1:{hostile.getsockname()[1]}")
        link, _ = hostile.accept()
        link.settimeout(0.2)
        link.sendall(zmtp.GREETING + zmtp.ready(b"ROUTER"))
        ping = frame(b"\x04PING\0\0", flags=4)
        thrown = 0
        try:
            while thrown < 100_000_000:
                thrown += link.send((message(b"x" * 20) * 100 + ping) * 300)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            assert thrown < 50_000_000
        link.close()
        sending.close()
    assert thrown < 100_000_000


def test_an_address_that_is_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_AT_LAST", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"can't listen there: Address already in use. Free the port"):
            Transport(address, 0, 2, FEDERATION, [Schema("", (4,))])
        monkeypatch.setattr(ports.clock, "pause", lambda seconds: taken.close())  # what held it ends meanwhile
        Transport(address, 0, 2, FEDERATION, [Schema("", (4,))]).close(0)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://203.0.113.9:5555", "Cannot assign requested address. This machine has no such address"),
        ("tcp://no.such.name.invalid:5555", r"(Name|Temporary).*Write a name that this machine knows"),
    ],
)
def test_where_nobody_can_listen_is_said_with_the_way_out(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"listen='{address}': can't listen there: {said}"):
        ports.demand([address], lambda text: pytest.fail(text))


def free(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        return int(held.getsockname()[1])


ADDRESSES = (
    ("::1", "tcp://[::1]:{}", "tcp://[::1]:{}"),
    ("::1", "tcp://[::]:{}", "tcp://127.0.0.1:{}"),  # all addresses of the machine, of both kinds
    ("::1", "tcp://*:{}", "tcp://[::1]:{}"),
    ("127.0.0.1", "tcp://127.0.0.1:{}", "tcp://localhost:{}"),
)
"""Where to look for a free port, where to listen, and where others connect to."""


@pytest.mark.parametrize("keys", [(None, None), (ring(0), ring(1))], ids=["no keys", "keys"])
@pytest.mark.parametrize(("host", "listen", "connect"), ADDRESSES)
def test_models_and_members_reach_each_other_by_every_kind_of_address(
    host: str, listen: str, connect: str, keys: Sequence[Keyring | None]
) -> None:
    schema, limit = Schema("", (4,)), clock.now() + 30
    address, free_port = connect.format(port := free(host)), free(host)
    with ExitStack() as stack:
        here = Transport(listen.format(port), 0, 2, FEDERATION, [schema], keyring=keys[0])
        stack.callback(here.close, 0)
        there = Transport(f"tcp://127.0.0.1:{free('127.0.0.1')}", 1, 2, FEDERATION, [schema], keyring=keys[1])
        stack.callback(there.close, 0)
        there.know(0, address)
        came: list[Arrived] = []
        while not came:
            assert clock.now() < limit
            there.send(0, Letter((b"head",), 4))
            came += here.receive()
        assert came[0].node == 1 and bytes(came[0].frames[0]) == b"head"
    dropped: list[tuple[str, str]] = []
    one, two = (
        MemberSockets(at, node, FEDERATION, lambda *why: dropped.append(why), keyring=keys[node])
        for node, at in enumerate((listen.format(free_port), f"tcp://127.0.0.1:{free('127.0.0.1')}"))
    )
    came = []
    while not came:
        assert clock.now() < limit
        two.send(connect.format(free_port), b"ping", clock.now(), 0)
        two.flush(clock.now())
        came += one.receive(clock.now())
    assert bytes(came[0].frames[0]) == b"ping" and not dropped
    for each in (one, two):
        each.close()


SAYS = {"a web server": b"HTTP/1.1 400 Bad Request\r\n\r\n", "nothing": b""}


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ("this federation", ""),
        ("another federation", "the node at port {} is of another federation: its experiment differs from this one"),
        ("a web server", "what listens at port {} is no node"),
        ("nothing", "what listens at port {} says nothing"),
        ("nobody", "refused: nothing listens at port {}"),
    ],
)
def test_why_nobody_is_reached_at_an_address(monkeypatch: pytest.MonkeyPatch, there: str, why: str) -> None:
    """A listener of another federation hangs up when it has read the introduction; one of this goes on listening."""
    monkeypatch.setattr(reach, "_PATIENCE", 0.3)
    introduction, seen = zmtp.introduction(FEDERATION, 1), list[str]()
    port = free("127.0.0.1")
    address = f"tcp://127.0.0.1:{port}"
    looks = threading.Thread(
        target=lambda: seen.append(reach.examine(address, reach.Caller(introduction, about=zmtp.ASKS)).why)
    )
    with ExitStack() as stack:
        if there in ("this federation", "another federation"):
            name = FEDERATION if there == "this federation" else "another"
            listening = Listener(address, name, 3, Allowance(LIMITS, 100, 100, 1e9), clock.now())
            stack.callback(listening.close)
        elif there != "nobody":
            held = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            held.settimeout(30)
        looks.start()
        if there in ("a web server", "nothing"):
            link, _ = held.accept()
            link.send(SAYS[there])
            stack.callback(link.close)
        while looks.is_alive():
            looks.join(0.01)
            if there in ("this federation", "another federation"):
                list(listening.receive(clock.now()))
    assert seen == [why.format(port)]
    if there == "this federation":
        assert not listening.dropped  # it has been asked as a node asks


def test_a_look_has_an_end_however_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a listener that greets, and then says a command and the beginning of the next, again and again."""
    said, seconds = zmtp.command(b"PING", b"\0\0"), 0.0
    comes = itertools.chain([zmtp.GREETING + said[:3]], itertools.repeat(said[3:] + said[:3]))

    class Dribbling:
        def settimeout(self, left: float) -> None:
            nonlocal seconds
            seconds += 0.1

        def recv_into(self, space: memoryview) -> int:
            assert seconds < 30
            piece = next(comes)
            space[: len(piece)] = piece
            return len(piece)

    monkeypatch.setattr(reach.clock, "now", lambda: seconds)
    look = reach._listen(reach.Call(Dribbling(), reach.Caller(b"me")), None, "port 1")  # type: ignore[arg-type]
    assert look.how == reach.LookEnd.REACHED and 0 < seconds < 3


def test_a_node_of_another_federation_is_asked_in_what_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers once a connection, and is not there for whoever asks something else."""
    monkeypatch.setattr(reach, "_PATIENCE", 0.3)
    ours, theirs = ({"name": "a", "rounds": str(rounds), "seed": "0"} for rounds in (7, 20))
    port, there, seen = free("127.0.0.1"), Strangers(0, theirs, clock.now()), list[Stranger | None]()
    address = f"tcp://127.0.0.1:{port}"
    answers = Questions({DIFFERS: lambda asked, asker, now: there.answer(asked, now)}).answer
    with closing(
        Listener(address, FEDERATION, 3, Allowance(LIMITS, 100, 100, 1e9), clock.now(), answers=answers)
    ) as listening:
        for fields in (ours, {"name": "b"}, theirs):
            asks = threading.Thread(
                target=lambda fields=fields: seen.append(reach.ask(address, Strangers(1, fields, 0)))
            )
            asks.start()
            while asks.is_alive():
                asks.join(0.01)
                list(listening.receive(clock.now()))
        with socket.create_connection(("127.0.0.1", port)) as link:  # more than a question may be
            link.sendall(zmtp.GREETING + zmtp.ready(b"DEALER", zmtp.QUESTION) + b"\2" + (1 << 40).to_bytes(8, "big"))
            while not listening.dropped["size"]:
                list(listening.receive(clock.now()))
        assert seen == [Stranger(0, "rounds: 20 there, 7 here"), None, None] and there._askers == {1}
        assert listening.dropped == {"handshake": 1, "size": 1}


def test_a_name_that_nobody_knows_and_a_firewall_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reach.examine("tcp://no.such.name.invalid:7", reach.Caller(b"me")).why.startswith("can't be resolved: ")

    class Firewall(socket.socket):
        def connect(self, where: Any) -> None:
            raise TimeoutError

    monkeypatch.setattr(reach.socket, "socket", Firewall)
    assert (
        reach.examine("tcp://127.0.0.1:7", reach.Caller(b"me")).why
        == "no answer from port 7: a firewall, or the machine is off"
    )


def test_what_was_seen_at_an_address_is_looked_at_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    refused = reach.Look(reach.LookEnd.REFUSED, "refused")
    monkeypatch.setattr(reach, "examine", lambda address, introduction: looked.append(address) or refused)
    seen, limit = reach.Reachability(b"me", Strangers(0, {}, 0.0)), clock.now() + 30
    for time, times in ((0.0, 1), (9.0, 1), (10.5, 2)):
        seen.why("tcp://a:7", time)
        while len(looked) < times or seen.why("tcp://a:7", time) is None:
            assert clock.now() < limit
    assert looked == ["tcp://a:7"] * 2


def test_a_name_is_looked_up_again_and_its_next_address_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a machine that has one address of each kind, and a firewall before the first; then it moves."""
    answers = [[("10.0.0.3", 7)], [("10.0.0.3", 7), ("fd00::3", 7, 0, 0)], [("10.0.0.4", 7)]]
    monkeypatch.setattr(addresses, "lookup", lambda host, port: [(0, 0, 0, "", each) for each in answers[0]])
    names, address = Names(), "tcp://site-a.example.org:7"

    def looked_up(now: float) -> str | None:
        while names.under_way:
            pass
        return names.numbers(address, now)

    assert names.numbers("tcp://[fd00::9]:7", 0.0) == "tcp://[fd00::9]:7"
    assert names.numbers(address, 0.0) is None  # nothing waits for a name server
    assert looked_up(0.1) == "tcp://10.0.0.3:7"
    answers.pop(0)
    names.blocked(address, 0.0, 2.9)
    assert looked_up(2.9) == "tcp://10.0.0.3:7"
    names.blocked(address, 0.0, 3.1)
    assert looked_up(3.1) == "tcp://[fd00::3]:7"
    answers.pop(0)
    names.blocked(address, 3.1, 9.0)
    assert looked_up(9.0) == "tcp://10.0.0.4:7"


def test_with_keys_a_name_that_is_known_late_and_moves_is_followed_and_nobody_else_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At first nobody knows it; then it leads to a site that has another key; then to the one that is meant."""
    looked_up, where = addresses.lookup, list[str]()

    def lookup(host: str, port: int) -> list[tuple[Any, ...]]:
        if host == "north.example.org" and not where:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return looked_up(where[0] if host == "north.example.org" else host, port)

    monkeypatch.setattr(addresses, "lookup", lookup)
    monkeypatch.setattr(addresses, "_AGAIN", 0.1)
    port, schema, limit = free("127.0.0.1"), Schema("", (4,)), clock.now() + 30
    with ExitStack() as stack:
        north, wrong, caller = (
            Transport(at, node, 3, FEDERATION, [schema], keyring=ring(node))
            for node, at in ((0, f"tcp://127.0.0.1:{port}"), (2, f"tcp://127.0.0.2:{port}"),
                             (1, f"tcp://127.0.0.1:{free('127.0.0.1')}"))
        )  # fmt: skip
        for each in (north, wrong, caller):
            stack.callback(each.close, 0)
        caller.know(0, f"tcp://north.example.org:{port}")

        def turn(until: Callable[[], object]) -> None:
            while not until():
                assert clock.now() < limit, where
                caller.send(0, Letter((b"head",), 4))
                seen["north"] += list(north.receive())
                seen["wrong"] += list(wrong.receive())

        seen: dict[str, list[Arrived]] = {"north": [], "wrong": []}
        asked = clock.now()
        turn(lambda: clock.now() > asked + 0.3)  # nobody knows it, and nothing waits for that
        where.append("127.0.0.2")
        turn(lambda: wrong._listener.dropped["encryption"])
        where[0] = "127.0.0.1"
        turn(lambda: seen["north"])
        assert seen["north"][0].node == 1 and not seen["wrong"]


def test_a_name_that_is_none_is_asked_for_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nobody_knows(host: str, port: int) -> Any:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(addresses, "lookup", nobody_knows)
    names = Names()
    for time in (0.0, 1.0, 2.9, 3.1):
        assert names.numbers("tcp://nowhere:7", time) is None
        while names.under_way:
            pass
    assert asked == ["nowhere"] * 2
