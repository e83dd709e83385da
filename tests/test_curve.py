"""Keys on connections: our ends of CURVE against libzmq's, and what becomes of whoever holds another key, or none."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import MappingProxyType

import pytest
import zmq
from zmq.utils import z85

from p2pfl.drivers.live import clock, curve, forwarding, reach, zmtp
from p2pfl.drivers.live.curve import Answering, Calling, KeyPair, Keys
from p2pfl.drivers.live.listener import Allowance, Arrived, Listener, Volume
from p2pfl.drivers.live.parcels import Letter
from p2pfl.drivers.live.reach import Call, Caller, LookEnd
from p2pfl.drivers.live.transport import Transport, dealer
from p2pfl.drivers.live.zmtp import Limits
from p2pfl.errors import RemoteError
from p2pfl.protocol.codec import Schema
from p2pfl.protocol.strangers import Strangers
from p2pfl.trust import keyring
from p2pfl.trust.keyring import Keyring
from p2pfl.trust.keys import PrivateKey

FEDERATION = "digest"
LIMITS = Limits(200_000, 4, 400_000)
PRIVATE = [PrivateKey(bytes([i]) * 32) for i in range(5)]
NAMES = {0: "north", 1: "east", 2: "south"}
LIMIT = 20.0


def ring(node: int, members: tuple[int, ...] = (0, 1, 2), former: tuple[int, ...] = ()) -> Keyring:
    """The keyring of a node of a federation."""
    keys = {i: PRIVATE[i].public for i in members}
    names = {i: NAMES.get(i, str(i)) for i in members}
    return keyring.of(PRIVATE[node], node, keys, names, "f", {PRIVATE[i].public: str(i) for i in former})


def pair(node: int) -> KeyPair:
    return KeyPair(PRIVATE[node].public.link, PRIVATE[node].link_secret)


class Door:
    """A listener of node 0, and whoever calls there."""

    def __init__(self, stack: ExitStack, keys: Keyring | None, records: bytes = b"") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        allowance = Allowance(LIMITS, 1e6, 1e6, float("inf"))
        about = zmtp.Kind("1", 1, 1, 0, "models").encode()
        self.listener = Listener(
            self.address, FEDERATION, 5, allowance, clock.now(), about, keyring=keys, records=lambda: records
        )
        stack.callback(self.listener.close)
        self._context, self._stack = stack.enter_context(zmq.Context()), stack

    def dealer(self, says: int, keys: Keys | None) -> zmq.Socket[bytes]:
        """A socket of libzmq that says it is that node."""
        made = dealer(self._context, zmtp.introduction(FEDERATION, says), keys, 8, 20, self.address)
        return self._stack.enter_context(made)

    def until(self, came: Callable[[list[Arrived]], bool]) -> list[Arrived]:
        """Read until that is so."""
        limit, got = clock.now() + LIMIT, list[Arrived]()
        while not came(got):
            assert clock.now() < limit, dict(self.listener.dropped)
            got += self.listener.receive(clock.now())
        return got


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_what_libzmq_seals_is_read(stack: ExitStack) -> None:
    draw = random.Random(1)
    door = Door(stack, ring(0))
    sending = door.dealer(1, Keys(pair(1), PRIVATE[0].public.link))
    sizes = [[0], [1, 254, 255], [4000], [32767, 32768], [100_000, 7, 200_000]]
    sent = [[draw.randbytes(size) for size in each] for each in sizes]
    door.until(lambda got: bool(sending.poll(0, zmq.POLLOUT)))
    for each in sent:
        sending.send_multipart(each, zmq.NOBLOCK)
    came = door.until(lambda got: len(got) == len(sent))
    assert [[bytes(frame) for frame in each.frames] for each in came] == sent
    assert {each.node for each in came} == {1} and not door.listener.dropped


def test_what_is_sealed_here_is_read_by_libzmq(stack: ExitStack) -> None:
    context = stack.enter_context(zmq.Context())
    router = stack.enter_context(context.socket(zmq.ROUTER))
    router.curve_server = 1
    router.curve_publickey, router.curve_secretkey = map(z85.encode, pair(0))
    port = router.bind_to_random_port("tcp://127.0.0.1")
    link = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    call = Call(link, Caller(b"it is me", Keys(pair(1), PRIVATE[0].public.link)))
    assert zmtp.identity(call.greet()) == b""
    sealing = call.reader.sealing
    assert sealing is not None
    link.sendall(sealing.seal(1, b"one") + sealing.seal(0, bytes(70_000)))
    assert router.poll(1000 * LIMIT)
    assert router.recv_multipart() == [b"it is me", b"one", bytes(70_000)]
    router.send_multipart([b"it is me", b"and back", b""])
    call.reader.limits = LIMITS
    item = call.next()
    assert not isinstance(item, zmtp.Command) and [bytes(each) for each in item] == [b"and back", b""]


@pytest.mark.parametrize(
    ("says", "own", "members", "former", "reason"),
    [
        (1, 1, (0, 1, 2), (), None),
        (1, 3, (0, 1, 2), (), "stranger"),  # a key that nobody knows
        (1, 2, (0, 1, 2), (), "identity"),  # a member that says it is another
        (1, 1, (0, 2), (1,), "revoked"),
        (0, 1, (0, 1, 2), (), "identity"),  # that it is this very node
    ],
)
def test_whose_key_it_is(
    stack: ExitStack, says: int, own: int, members: tuple[int, ...], former: tuple[int, ...], reason: str | None
) -> None:
    door = Door(stack, ring(0, members, former))
    sending = door.dealer(says, Keys(pair(own), PRIVATE[0].public.link))
    if reason is None:
        assert door.until(lambda got: sending.poll(0, zmq.POLLOUT) != 0) == []
        sending.send(b"hello")
        assert door.until(lambda got: len(got) == 1)[0].node == 1
    else:
        assert door.until(lambda got: door.listener.dropped[reason] > 0) == []
        assert {*door.listener.dropped} == {reason}


def test_who_expects_another_key_is_told_nothing(stack: ExitStack) -> None:
    door = Door(stack, ring(0))
    door.dealer(1, Keys(pair(1), PRIVATE[2].public.link))
    assert door.until(lambda got: door.listener.dropped["encryption"] > 0) == []


def test_nothing_in_the_clear_is_taken_where_there_are_keys(stack: ExitStack) -> None:
    door = Door(stack, ring(0))
    link = stack.enter_context(socket.create_connection(("127.0.0.1", door.port)))
    link.sendall(zmtp.GREETING + zmtp.ready(b"DEALER", zmtp.introduction(FEDERATION, 1)) + zmtp.message(b"model"))
    assert door.until(lambda got: door.listener.dropped["plaintext"] > 0) == []


def test_nothing_is_sent_in_the_clear_where_there_are_keys(stack: ExitStack) -> None:
    """libzmq hangs up as soon as it sees that the other end wants no keys."""
    door = Door(stack, None)
    sending = door.dealer(1, Keys(pair(1), PRIVATE[0].public.link))
    assert door.until(lambda got: door.listener.dropped["connection"] > 0) == []
    assert not sending.poll(0, zmq.POLLOUT)


def test_who_is_revoked_is_hung_up_at_once(stack: ExitStack) -> None:
    door = Door(stack, ring(0))
    first, second = (door.dealer(i, Keys(pair(i), PRIVATE[0].public.link)) for i in (1, 2))
    door.until(lambda got: bool(first.poll(0, zmq.POLLOUT) and second.poll(0, zmq.POLLOUT)))
    for each in (first, second):
        each.send(b"before")
    door.until(lambda got: len(got) == 2)
    door.listener.admit(ring(0, (0, 2), (1,)))
    first.send(b"after")
    second.send(b"still here")
    came = door.until(lambda got: bool(got) and door.listener.dropped["revoked"] > 1)  # it has tried again
    assert {each.node for each in came} == {2}


def agreed() -> tuple[Calling, Answering, curve.Session, curve.Session]:
    calling, answering = Calling(pair(1), pair(0).public), Answering(pair(0))
    about = zmtp.properties(b"DEALER", b"me")
    welcome = answering.take(command(calling.hello()), b"")
    ready = answering.take(command(calling.take(command(welcome), about)), zmtp.properties(b"ROUTER"))
    assert calling.take(command(ready), about) == b""
    assert calling.session is not None and answering.session is not None and answering.said is not None
    assert answering.key == pair(1).public and zmtp.identity(answering.said) == b"me"
    return calling, answering, calling.session, answering.session


def command(data: bytes) -> zmtp.Command:
    body = data[9:]
    return zmtp.Command(body[1 : 1 + body[0]], body[1 + body[0] :])


def test_a_frame_is_taken_once_in_its_direction_and_unchanged() -> None:
    _, _, caller, listener = agreed()
    first, second = caller.seal(0, b"first")[9:], caller.seal(1, b"second")[9:]
    flags, body = listener.open(first)
    assert (flags, bytes(body)) == (0, b"first")
    with pytest.raises(RemoteError, match="come before"):
        listener.open(first)
    for bit in range(8 * 8, 8 * len(second), 13):  # of all but its name
        changed = bytearray(second)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteError, match=r"does not open|come before"):
            listener.open(bytes(changed))
    with pytest.raises(RemoteError, match="does not open"):
        caller.open(second)  # sent back to who has sent it
    assert bytes(listener.open(second)[1]) == b"second"
    with pytest.raises(RemoteError, match="come before"):
        listener.open(first)


def test_what_was_recorded_opens_nothing_later() -> None:
    """Neither a handshake nor a frame of another connection, of the same two."""
    about = zmtp.properties(b"DEALER", b"me")
    calling, before = Calling(pair(1), pair(0).public), Answering(pair(0))
    hello = command(calling.hello())
    initiate = command(calling.take(command(before.take(hello, b"")), about))
    before.take(initiate, b"")
    frame = calling.session
    again = Answering(pair(0))
    again.take(hello, b"")
    with pytest.raises(RemoteError, match="cookie"):
        again.take(initiate, b"")
    assert frame is None
    _, _, caller, _ = agreed()
    _, _, _, other = agreed()
    with pytest.raises(RemoteError, match="does not open"):
        other.open(caller.seal(0, b"model")[9:])


@pytest.mark.parametrize("name", [b"HELLO", b"INITIATE", b"READY", b"WELCOME", b"MESSAGE", b""])
@pytest.mark.parametrize("size", [0, 8, 96, 160, 192, 500])
def test_garbage_in_a_handshake_is_refused(name: bytes, size: int) -> None:
    body = random.Random(size).randbytes(size)
    calling = Calling(pair(1), pair(0).public)
    greeted = Answering(pair(0))
    greeted.take(command(calling.hello()), b"")
    for take in (Answering(pair(0)).take, greeted.take, calling.take):
        with pytest.raises(RemoteError):
            take(zmtp.Command(name, body), b"")


@pytest.mark.parametrize(
    ("there", "expected", "how", "why"),
    [
        (ring(0), 0, LookEnd.REACHED, ""),
        (ring(0), 2, LookEnd.KEY, "has another key than the federation's file says of it"),
        (ring(0, (0, 2)), 0, LookEnd.KEY, "does not take this node's key"),
        (None, 0, LookEnd.KEY, "was started without keys"),
    ],
)
def test_why_a_node_with_keys_is_not_reached(
    stack: ExitStack, there: Keyring | None, expected: int, how: LookEnd, why: str
) -> None:
    door = Door(stack, there)
    caller = Caller(zmtp.introduction(FEDERATION, 1), Keys(pair(1), PRIVATE[expected].public.link))
    seen = looked(door, caller)
    assert seen.how == how and why in seen.why
    assert (seen.kind is not None) == (how == LookEnd.REACHED)


def looked(door: Door, caller: Caller) -> reach.Look:
    """What is seen at a door."""
    seen: list[reach.Look] = []
    looks = threading.Thread(target=lambda: seen.append(reach.examine(door.address, caller)))
    looks.start()
    while looks.is_alive():
        looks.join(0.01)
        list(door.listener.receive(clock.now()))
    return seen[0]


@pytest.mark.parametrize("size", [700, 200_000])
def test_who_was_a_member_and_asks_is_shown_the_records_and_nobody_else_is(stack: ExitStack, size: int) -> None:
    """A few times a second, whatever it asks; then it is hung up as before."""
    records = random.Random(size).randbytes(size)
    door = Door(stack, ring(0, (0, 2), (1,)), records)
    me, keys = zmtp.introduction(FEDERATION, 1), Keys(pair(1), PRIVATE[0].public.link)
    seen = looked(door, Caller(me, keys, zmtp.ASKS))
    assert (seen.how, seen.said) == (LookEnd.KEY, records) and "the others have revoked us" in seen.why
    stranger = looked(door, Caller(me, Keys(pair(3), PRIVATE[0].public.link), zmtp.ASKS))
    silent = looked(door, Caller(me, keys))  # as a node's own sockets, which read nothing
    assert all((each.how, each.said) == (LookEnd.KEY, b"") for each in (stranger, silent))
    assert door.listener.dropped == {"revoked": 2, "stranger": 1}
    again = [looked(door, Caller(me, keys, zmtp.ASKS)) for _ in range(6)]
    assert {each.how for each in again} == {LookEnd.KEY} and 1 < sum(each.said == records for each in again) < 6


def test_records_that_are_shown_reach_the_node_once(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    look = reach.Look(LookEnd.KEY, "revoked", None, b"records")
    monkeypatch.setattr(reach, "examine", lambda address, caller: look)
    seen, told = reach.Reachability(b"me", Strangers(0, {}, 0.0)), list[tuple[str, bytes]]()
    limit = clock.now() + LIMIT
    while not told:
        assert clock.now() < limit
        seen.why("tcp://a:7", 0.0)
        told = seen.told()
    assert told == [("tcp://a:7", b"records")] and not seen.told()


def test_a_secret_is_not_shown() -> None:
    keys = Keys(pair(1), pair(0).public)
    assert pair(1).secret.hex() not in repr(keys) and repr(pair(1).secret) not in repr(keys)
    assert isinstance(ring(1).members, MappingProxyType)


# --- those that nobody can call


SIZES = (6_000_000,)


class Hub:
    """Nodes that can be called (0, 3) and nodes that nobody can call (1, 2), as they know each other."""

    def __init__(self, stack: ExitStack, hidden: tuple[int, ...] = (1, 2), open_: tuple[int, ...] = (0, 3)) -> None:
        members, schema = tuple(sorted(hidden + open_)), Schema("", SIZES)
        self.at: dict[int, Transport] = {}
        addresses = {}
        for node in members:
            keys = ring(node, members)
            listen = f"tcp://127.0.0.1:{free()}"
            addresses[node] = f"dials://{node}" if node in hidden else listen
            self.at[node] = Transport(listen, node, 5, FEDERATION, [schema], keyring=keys, life=7, calls=node in hidden)
            stack.callback(lambda node=node: self.at[node].close(0))
        for node, transport in self.at.items():
            for other, address in addresses.items():
                if other != node:
                    transport.know(other, address)
        limit = clock.now() + LIMIT
        while not all(self.at[node]._listener.takes(each) for node in open_ for each in hidden):
            self.turn()
            assert clock.now() < limit

    def turn(self) -> dict[int, list[Arrived]]:
        came = {node: list(each.receive()) for node, each in self.at.items()}
        for each in self.at.values():
            each.step()
        return came

    def bring(self, one: int, two: int, letter: Letter) -> Arrived:
        """Send until it is there."""
        limit = clock.now() + LIMIT
        while not self.at[one].send(two, letter):
            self.turn()
            assert clock.now() < limit
        while not (came := self.turn()[two]):
            assert clock.now() < limit
        return came[0]


def free() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


@pytest.mark.parametrize(("one", "two"), [(0, 1), (1, 0), (1, 2)])
def test_links_of_who_cannot_be_called_go_both_ways(stack: ExitStack, one: int, two: int) -> None:
    hub, body = Hub(stack), random.Random(3).randbytes(SIZES[0])
    came = hub.bring(one, two, Letter([b"small"], 5))
    assert came.node == one and [bytes(each) for each in came.frames] == [b"small"]
    came = hub.bring(one, two, Letter([b"header", body], len(body) + 6))  # in pieces, which are answered
    assert came.node == one and [bytes(each) for each in came.frames] == [b"header", body]
    passed = {ends for node in (0, 3) for ends in hub.at[node].forwarded}
    assert passed == ({(1, 2), (2, 1)} if {one, two} == {1, 2} else set())


def test_another_passes_on_when_one_is_gone(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_SILENT", 0.3)
    hub = Hub(stack)
    hub.bring(1, 2, Letter([b"first"], 5))
    gone = next(node for node in (0, 3) if hub.at[node].forwarded)
    hub.at[gone].close(0)
    del hub.at[gone]
    stack.pop_all()
    limit, came = clock.now() + LIMIT, list[Arrived]()
    while not came:
        hub.at[1].send(2, Letter([b"again"], 5))
        came = hub.turn()[2]
        assert clock.now() < limit
    assert bytes(came[0].frames[0]) == b"again"
    for each in hub.at.values():
        each.close(0)


def test_what_is_passed_on_is_neither_read_nor_changed_nor_taken_twice() -> None:
    one, way, two = (forwarding.Forwarder(ring(node), 7) for node in (1, 0, 2))
    frames = one.seal(2, [b"header", b"model" * 100])
    assert frames is not None and forwarding.is_forwarded(frames) and forwarding.ends(frames) == (1, 2)
    assert not any(b"model" in each for each in frames)
    with pytest.raises(RemoteError, match="forwarded for node 2"):
        way.open(frames, 0)
    assert [bytes(each) for each in two.open(frames, 0)[1]] == [b"header", b"model" * 100]
    with pytest.raises(RemoteError) as error:
        two.open(frames, 0)
    assert error.value.reason == "replay"
    second = one.seal(2, [b"header", b"other"])
    assert second is not None
    for lie in (
        [second[0], second[2], second[1]],  # another order
        second[:2],  # less of it
        [second[0], frames[1], second[2]],  # of two messages
        [second[0], second[1], second[2][:-1] + bytes([second[2][-1] ^ 1])],
        [second[0], b"", second[2]],
        [second[0]],
    ):
        with pytest.raises(RemoteError):
            two.open(lie, 0)
    forged = forwarding.Forwarder(ring(0), 8).seal(2, [b"header"])  # by the one that forwards, in the name of node 1
    assert forged is not None
    with pytest.raises(RemoteError, match="does not open"):
        two.open([second[0], *forged[1:]], 0)
    again = forwarding.Forwarder(ring(1), 8).seal(2, [b"of its next life"])
    assert again is not None
    assert two.open(again, 0)[0] == 1
    with pytest.raises(RemoteError, match="come before"):
        two.open(second, 0)
    two.admit(ring(2, (0, 2), (1,)))
    with pytest.raises(RemoteError, match="forwarded for"):
        two.open(again, 0)


def test_nothing_is_passed_on_in_the_name_of_another(stack: ExitStack) -> None:
    hub = Hub(stack)
    hub.bring(1, 2, Letter([b"hello"], 5))
    hub.bring(3, 2, Letter([b"hello"], 5))
    forged = forwarding.Forwarder(ring(1, (0, 1, 2, 3)), 9).seal(2, [b"header"])
    assert forged is not None
    told: list[tuple[str, str]] = []
    limit = clock.now() + LIMIT
    while not told:
        hub.at[3].send(0, Letter(forged, 10))
        assert not hub.turn()[2]
        told = hub.at[0].watch()
        assert clock.now() < limit
    assert told[0][0] == "identity"


class Counted:
    """A listener by which node 2 takes what is for it."""

    def __init__(self) -> None:
        self.put_for, self.restored = Counter[int](), Counter[int]()

    def takes(self, node: int) -> bool:
        return node == 2

    def put(self, node: int, frames: Sequence[bytes]) -> bool:
        self.put_for[node] += sum(map(len, frames))
        return True

    def restore(self, node: int, nbytes: int) -> None:
        self.restored[node] += nbytes


def test_what_is_forwarded_between_two_has_a_bound_of_its_own() -> None:
    """100 kB at once, 10 kB a second, and what rounds add; what is beyond counts as what the node itself may send."""
    listener = Counted()
    way, volume = forwarding.Forwarder(ring(0, (0, 1, 2, 3)), 7, Volume(10_000, 100_000)), 100_000

    def forwards(sender: int, now: float) -> int:
        """How much of 40 messages of 10 kB gets through."""
        one, before = forwarding.Forwarder(ring(sender, (0, 1, 2, 3)), 7), listener.put_for[2]
        for _ in range(40):
            frames = one.seal(2, [bytes(10_000)])
            assert frames is not None
            try:
                assert way.take(Arrived(sender, 5, [*frames]), listener, now) is None  # type: ignore[arg-type]
            except RemoteError as error:
                assert error.reason == "flood" and f"from node {sender} to node 2" in error.detail
        return listener.put_for[2] - before

    assert volume <= forwards(1, 0.0) < volume + 11_000
    assert volume <= forwards(3, 0.0) < volume + 11_000  # another's is not the first one's
    assert forwards(1, 0.05) == 0
    assert 10_000 < forwards(1, 4.0) < 50_000
    way.allow(60_000)
    assert 50_000 < forwards(1, 4.0) < 71_000
    assert listener.restored == {1: listener.put_for[2] - way.forwarded[forwarding.Ends(3, 2)],
                                 3: way.forwarded[forwarding.Ends(3, 2)]}  # fmt: skip
    way.admit(ring(0, (0, 2, 3), (1,)))
    assert {ends.sender for ends in way._between} == {3}


def test_what_comes_for_a_node_by_way_of_another_counts_as_the_senders() -> None:
    listener = Counted()
    one, two = forwarding.Forwarder(ring(1), 7), forwarding.Forwarder(ring(2), 7, Volume(10_000, 100_000))
    came = 0
    for _ in range(40):
        frames = one.seal(2, [bytes(10_000)])
        assert frames is not None
        with contextlib.suppress(RemoteError):
            came += two.take(Arrived(0, 5, [*frames]), listener, 0.0) is not None  # type: ignore[arg-type]
    assert came == 10 and 100_000 < listener.restored[0] < 111_000


@pytest.mark.parametrize("frames", [1, 3])
def test_one_that_passes_on_garbage_is_not_believed(frames: int) -> None:
    two, draw = forwarding.Forwarder(ring(2), 7), random.Random(frames)
    head = forwarding.Forwarder(ring(1), 7).seal(2, [])
    assert head is not None
    for _ in range(300):
        with pytest.raises(RemoteError):
            two.open([head[0], *(draw.randbytes(draw.randint(0, 200)) for _ in range(frames))], 0)
            two.blame(1, 0)
