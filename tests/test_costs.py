"""What a member can cost the others that sends what is well-formed, again and again: each of it has a bound."""

from __future__ import annotations

from collections import Counter
from typing import Any

from test_peer import described
from test_peer_turns import driven

from p2pfl.drivers.live import clock
from p2pfl.drivers.live.member_process import _STRANGE, MemberSockets
from p2pfl.drivers.live.ports import reserved
from p2pfl.protocol import agreement
from p2pfl.protocol.events import Advance, Drop, Members, Note, Received, Seen, Send, Start, Tick, Trained
from p2pfl.protocol.messages import Bye, Description, Envelope, Hello, Offer, Ping, Pong, Push, Want
from p2pfl.protocol.neighbor import ASYNC, EpochPlan, RoundPlan, epoch_of
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.timing import LOCAL

SCHEMA = "s"


def counted(effects: list[Any]) -> Counter[str]:
    """Effects by kind, those that are dropped by cause, notes by what happened, what is said by kind."""
    names = Counter[str]()
    for effect in effects:
        match effect:
            case Drop(reason):
                names[reason] += 1
            case Note(event=event):
                names[event] += 1
            case Send(envelope=envelope):
                names[type(envelope.message).__name__] += 1
    return names


def heard(peer: Peer, now: float, node: int, *messages: Any, life: int = 5, payload: Any = None) -> list[Any]:
    said = (Envelope(node, life, peer.life, message, payload) for message in messages)
    return [effect for each in said for effect in peer.handle(Received(each), now)]


def test_a_model_is_given_at_the_pace_of_one_who_has_lost_it() -> None:
    """Its digest is computed for each, and it may have 44 MB."""
    peer, _ = driven()
    peer.handle(Trained("mine"), 0.1)
    given = [counted(heard(peer, 0.1 + i / 1000, 1, Want(0)))["Model"] for i in range(200)]
    assert sum(given) == 1
    assert counted(heard(peer, 0.2 + LOCAL.retry_every, 1, Want(0)))["Model"] == 1


def test_a_wish_that_came_too_soon_is_granted_with_the_next_round() -> None:
    peer, _ = driven(turn=lambda round: RoundPlan())
    peer.handle(Trained("mine"), 0.1)
    assert counted(heard(peer, 0.1, 2, Want(0), Want(0)))["Model"] == 1
    assert counted(peer.handle(Trained("mine"), 0.2))["Model"] == 0
    assert counted(peer.handle(Trained("mine"), 9.0))["Model"] == 1


def test_new_lives_and_good_byes_of_a_neighbour_are_lines_in_the_log_and_few() -> None:
    peer, _ = driven()
    told = counted([e for i in range(500) for e in heard(peer, 1.0 + i / 500, 1, Hello(1, "f", SCHEMA, 0), life=6 + i)])
    assert told["restarted"] <= 12 and told["restarted"] + told["lives"] == 500
    assert counted(heard(peer, 60.0, 1, Hello(1, "f", SCHEMA, 0), life=1000))["restarted"] == 1  # one that has waited
    assert counted(heard(peer, 60.0, 2, *[Bye(3)] * 100))["left"] == 1


def test_pings_are_answered_at_a_bounded_rate_and_pongs_that_nobody_asked_for_make_nobody_offer_again() -> None:
    peer, _ = driven()
    peer.handle(Trained("mine"), 0.1)
    told = counted([e for i in range(1000) for e in heard(peer, 1.0 + i / 1000, 1, Ping(0, False, "", 1))])
    assert 200 <= told["Pong"] <= 260 and told["Pong"] + told["flood"] == 1000
    peer, _ = driven()
    peer.handle(Trained("mine"), 0.1)
    told = counted(heard(peer, 0.1, 2, *[Pong(0, False, "", 1)] * 100))
    assert told["unasked"] == 100 and not told["Offer"]
    assert counted(peer.handle(Tick(), 0.5))["Ping"] == 2
    told = counted(heard(peer, 0.5, 2, *[Pong(0, False, "", 1)] * 5))
    assert told["Offer"] == 1 and told["unasked"] == 4


def test_descriptions_are_compared_at_a_bounded_rate() -> None:
    """Of lives that the membership has not heard of, each of which says that it has something else."""
    compared = []
    facts = {**described("d"), "compare": lambda theirs: compared.append(theirs) or ("other",)}
    peer = Peer(driven()[0].state.facts._replace(**facts))
    peer.handle(Members((Seen(0, 1), Seen(1, 5), Seen(2, 5))), 0.0)
    packed = agreement.pack("d" + "x" * 100)
    for i in range(300):
        heard(peer, 1.0 + i / 100, 1, Description(0, 1, packed, True), life=6 + i)
    assert 8 <= len(compared) <= 12


def four(turn: RoundPlan, **facts: Any) -> Peer:
    """Node 0 of four, which trains its first round; its neighbours are 1 and 2, and 3 has said hello all the same."""
    plan = EpochPlan(lambda round: turn, 2, (1, 2))
    peer = Peer(driven()[0].state.facts._replace(plan=lambda members: plan, nodes=4, expected=(0, 1, 2, 3), **facts))
    peer.handle(Start(), 0.0)
    peer.handle(Members(tuple(Seen(node, 5 if node else 1) for node in range(4))), 0.0)
    for node in (3, 1, 2):
        heard(peer, 0.1, node, Hello(1, "f", SCHEMA, 0))
    assert peer.stage == "training"
    return peer


def test_without_a_barrier_an_exchange_that_no_neighbour_offers_is_not_taken() -> None:
    """There is no slot for it; who is no neighbour may yet say what it likes."""
    peer, effects = four(RoundPlan(exchange=(1, 2)), sync=ASYNC), list[Any]()
    for round in (1, 2, 3):
        effects += heard(peer, round, 3, Offer(0, round, "", peer.state.epoch), payload="theirs")
        effects += peer.handle(Trained("mine"), round)
    said = [(effect.to, type(effect.envelope.message)) for effect in effects if isinstance(effect, Send)]
    assert (1, Offer) in said and (3, Offer) not in said
    assert not any(each.node == 3 for effect in effects if isinstance(effect, Advance) for each in effect.booked)


def test_a_push_for_an_epoch_to_come_waits_only_where_the_schedule_has_one() -> None:
    """Its epoch can be foreseen: who is no neighbour has no slot in it."""
    peer = four(RoundPlan(receives_from=(1,), sends_to=(2,)))
    to_come = epoch_of([(0, 1), (1, 5), (2, 5), (3, 7)])
    for node in (1, 3):
        heard(peer, 0.2, node, Push(3, to_come), payload="early")
    assert [len(peer.state.neighbors[node].pushes) for node in (1, 3)] == [1, 1]
    peer.handle(Members((Seen(0, 1), Seen(1, 5), Seen(2, 5), Seen(3, 7))), 0.2)
    peer.handle(Trained("mine"), 0.3)
    assert peer.state.epoch == to_come
    assert [len(peer.state.neighbors[node].pushes) for node in (1, 3)] == [1, 0]


def test_addresses_that_others_have_made_up_cost_a_bounded_number_of_sockets() -> None:
    with reserved(1) as (port,):
        sockets = MemberSockets(f"tcp://127.0.0.1:{port}", 0, "cluster", lambda reason, detail: None, 3)
        try:
            sockets.known = {f"tcp://127.0.0.1:{port}", "tcp://127.0.0.2:9"}
            for address in sockets.known:
                sockets.send(address, b"ping", clock.now())
            for i in range(4 * _STRANGE):
                sockets.send(f"tcp://127.1.{i // 200}.{i % 200 + 1}:9", b"ping", clock.now())
                sockets.flush(clock.now())
            assert len(sockets.dealers) == _STRANGE + 2 and sockets.known <= sockets.dealers.keys()
            assert len(sockets._used) <= _STRANGE + 2
        finally:
            sockets.close()
