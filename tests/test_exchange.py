"""The real exchange code, explored exhaustively: every interleaving on one edge, up to a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import pytest

from p2pfl.errors import RemoteError
from p2pfl.protocol import exchange
from p2pfl.protocol.exchange import ASKING, IDLE, OPEN, Edge, Ended, Side, Step
from p2pfl.protocol.messages import BOOKED, VOID, AskVoid, Closed, Message, Offer, Ping, Pong, Receipt

Link = tuple[Message, ...]
Ends = tuple[Edge, Edge]
Outcomes = tuple[str, ...]


class Bounds:
    """How much of each kind may happen. `moves`: in which exchange each end is in a new epoch, from then on."""

    def __init__(
        self, exchanges: int, breaks: int, asks: int, pings: int, refusals: int = 0, moves: tuple[int, int] = (9, 9)
    ) -> None:
        self.exchanges, self.budget, self.moves = exchanges, (breaks, asks, pings, refusals), moves


class State:
    """Two ends, what is under way in each direction, how earlier exchanges ended at each end, what may still happen."""

    __slots__ = ("budget", "ends", "links", "outcomes")

    def __init__(
        self, ends: Ends, links: tuple[Link, Link], outcomes: tuple[Outcomes, Outcomes], budget: tuple
    ) -> None:
        self.ends, self.links, self.outcomes, self.budget = ends, links, outcomes, budget

    def key(self) -> tuple:
        return self.ends, self.links, self.outcomes, self.budget


class Violation(Exception):
    pass


Receive = Callable[[Edge, Message, Side | None], Step]


def side(end: int, number: int, moves: tuple[int, int] = (9, 9)) -> Side:
    return Side(f"payload {number} of end {end}", number, int(number >= moves[end]))


def after(state: State, end: int, step: Step, links: list[Link], budget: tuple) -> State:
    ends, outcomes = list(state.ends), list(state.outcomes)
    ends[end] = step.edge
    for ended in step.ended:
        check(end, ended)
        outcomes[end] = (*outcomes[end], ended.outcome)
    links[end] = (*links[end], *step.say)
    for mine, theirs in zip(*outcomes, strict=False):
        if mine != theirs:
            raise Violation(f"one end says {mine}, the other {theirs}")
    return State((ends[0], ends[1]), (links[0], links[1]), (outcomes[0], outcomes[1]), budget)


def check(end: int, ended: Ended) -> None:
    if ended.outcome != BOOKED:
        return
    assert ended.mine is not None
    assert ended.theirs is not None
    if ended.mine.epoch != ended.theirs.epoch:
        raise Violation(f"end {end} books across epochs: {ended}")
    said = ended.mine.payload, ended.theirs.payload
    if said != (side(end, ended.number).payload, side(1 - end, ended.number).payload):
        raise Violation(f"end {end} books {ended}")


def moves(state: State, bounds: Bounds, receive: Receive) -> Iterator[tuple[str, State]]:
    breaks, asks, pings, refusals = state.budget
    for end in (0, 1):
        edge = state.ends[end]
        if edge.phase == IDLE and edge.number < bounds.exchanges:
            step = exchange.open(edge, side(end, edge.number, bounds.moves))
            yield f"{end} opens {edge.number}", after(state, end, step, list(state.links), state.budget)
        if edge.phase == OPEN and asks:
            step, left = exchange.ask(edge), (breaks, asks - 1, pings, refusals)
            yield f"{end} asks void {edge.number}", after(state, end, step, list(state.links), left)
        if edge.phase != IDLE and pings:
            step, left = Step(edge, (exchange.ping(edge),)), (breaks, asks, pings - 1, refusals)
            yield f"{end} pings", after(state, end, step, list(state.links), left)
        if state.links[1 - end]:
            message, *rest = state.links[1 - end]
            links = list(state.links)
            links[1 - end] = tuple(rest)
            theirs = side(1 - end, message.number, bounds.moves) if isinstance(message, Offer) else None
            yield (
                f"{end} gets {message}",
                after(state, end, receive(edge, message, theirs), list(links), state.budget),
            )
            if isinstance(message, Offer) and refusals and edge.theirs is None:
                left = (breaks, asks, pings, refusals - 1)
                yield f"{end} refuses {message}", after(state, end, exchange.refuse(edge, message), list(links), left)
    if breaks and (state.links[0] or state.links[1]):
        left = (breaks - 1, asks, pings, refusals)
        yield "the link breaks", State(state.ends, ((), ()), state.outcomes, left)


def explore(bounds: Bounds, receive: Receive = exchange.receive) -> tuple[int, set[Outcomes]]:
    """All reachable states; raises Violation with the path to it. Returns their number and the outcomes at the ends."""
    start = State((Edge(), Edge()), ((), ()), ((), ()), bounds.budget)
    seen: dict[tuple, tuple | None] = {start.key(): None}
    how: dict[tuple, str] = {}
    todo, finals = deque([start]), set()
    while todo:
        state = todo.popleft()
        stuck = True
        try:
            for what, new in moves(state, bounds, receive):
                stuck = False
                if new.key() not in seen:
                    seen[new.key()], how[new.key()] = state.key(), what
                    todo.append(new)
            if stuck:
                heal(state, bounds, receive)
                finals.add(state.outcomes[0])
        except (Violation, RemoteError, ValueError) as error:
            path, key = [], state.key()
            while key is not None:
                path.append(how.get(key, "start"))
                key = seen[key]
            raise Violation(f"{error}\n" + "\n".join(reversed(path))) from error
    return len(seen), finals


def heal(state: State, bounds: Bounds, receive: Receive) -> None:
    """Nothing moves any more: pings, of which a waiting node always has more, must resolve every exchange."""
    for _ in range(4 * bounds.exchanges + 4):
        if all(edge.number == bounds.exchanges and edge.phase == IDLE for edge in state.ends):
            return
        for end in (0, 1):
            edge = state.ends[end]
            if edge.phase == IDLE and edge.number < bounds.exchanges:
                state = after(
                    state,
                    end,
                    exchange.open(edge, side(end, edge.number, bounds.moves)),
                    list(state.links),
                    state.budget,
                )
            elif edge.phase != IDLE:
                state = after(state, end, Step(edge, (exchange.ping(edge),)), list(state.links), state.budget)
        while any(state.links):
            for end in (0, 1):
                if state.links[1 - end]:
                    message, *rest = state.links[1 - end]
                    links = list(state.links)
                    links[1 - end] = tuple(rest)
                    theirs = side(1 - end, message.number, bounds.moves) if isinstance(message, Offer) else None
                    state = after(state, end, receive(state.ends[end], message, theirs), links, state.budget)
    raise Violation(f"stuck: {state.ends}")


BOUNDS = {
    "plain": Bounds(3, 0, 0, 0),
    "deadlines": Bounds(3, 0, 3, 0),
    "breaks": Bounds(2, 2, 1, 2),
    "refusals": Bounds(2, 1, 1, 1, refusals=2),
    "pings": Bounds(2, 0, 2, 3),
    "epochs": Bounds(3, 1, 1, 1, moves=(1, 2)),
    "epochs, the other first": Bounds(2, 1, 2, 2, moves=(2, 1)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.more] * (name in ("pings", "epochs, the other first"))) for name in BOUNDS],
)
def test_no_interleaving_books_at_one_end_only_or_gets_stuck(name: str) -> None:
    states, outcomes = explore(BOUNDS[name])
    assert states > 50
    apart = [k for k in range(BOUNDS[name].exchanges) if len({k >= m for m in BOUNDS[name].moves}) > 1]
    best = tuple(VOID if k in apart else BOOKED for k in range(BOUNDS[name].exchanges))
    assert best in outcomes  # what is opened in two epochs is void, whatever happens; all else can be booked
    assert all(outcome[k] == VOID for outcome in outcomes for k in apart if k < len(outcome))
    if name != "plain":
        assert any(VOID in outcome for outcome in outcomes)


@pytest.mark.soak
def test_larger_bounds() -> None:
    states, _ = explore(Bounds(4, 2, 3, 2))
    assert states > 100_000


def book_without_receipt(edge: Edge, message: Message, side: Side | None) -> Step:
    step = exchange.receive(edge, message, side)
    if isinstance(message, Offer) and step.edge.phase == OPEN and step.edge.theirs is not None:
        step = exchange.receive(step.edge._replace(receipt=True), Receipt(step.edge.number), None)._replace(
            say=step.say
        )
    return step


def grant_without_voiding(edge: Edge, message: Message, side: Side | None) -> Step:
    if isinstance(message, AskVoid) and message.number == edge.number:
        return Step(edge, (Closed(edge.number, VOID),))
    return exchange.receive(edge, message, side)


def book_while_asking(edge: Edge, message: Message, side: Side | None) -> Step:
    step = exchange.receive(edge, message, side)
    if step.edge.phase == ASKING and step.edge.theirs is not None and step.edge.receipt:
        return exchange.receive(step.edge, Closed(step.edge.number, BOOKED), None)._replace(say=step.say)
    return step


def forget_what_was_lost(edge: Edge, message: Message, side: Side | None) -> Step:
    step = exchange.receive(edge, message, side)
    return step._replace(say=()) if isinstance(message, Pong) else step


def deaf_to_pings(edge: Edge, message: Message, side: Side | None) -> Step:
    return Step(edge) if isinstance(message, Ping | Pong) else exchange.receive(edge, message, side)


def book_across_epochs(edge: Edge, message: Message, side: Side | None) -> Step:
    same = side and side._replace(epoch=edge.mine.epoch if edge.mine else 0)
    return exchange.receive(edge, message, same)


@pytest.mark.parametrize("broken", [book_across_epochs, exchange.receive])
def test_the_exploration_finds_a_booking_across_epochs(broken: Receive) -> None:
    def run() -> None:
        explore(Bounds(2, 0, 1, 1, moves=(0, 1)), broken)

    if broken is exchange.receive:
        run()
    else:
        with pytest.raises(Violation):
            run()


def test_what_is_forsaken_is_void_here_and_what_the_peer_says_of_it_changes_nothing() -> None:
    edge = exchange.open(Edge(number=5, last=BOOKED), side(0, 5)).edge
    step = exchange.forsake(edge)
    assert [(ended.number, ended.outcome) for ended in step.ended] == [(5, VOID)]
    assert (step.edge.number, step.edge.phase, step.edge.last) == (6, IDLE, VOID)
    assert exchange.receive(step.edge, Closed(5, BOOKED)) == Step(step.edge)  # residue
    assert exchange.receive(step.edge, AskVoid(5)).say == (Closed(5, VOID),)
    # the peer, still at 5, learns how it ended and goes on with 6
    peer = exchange.open(Edge(number=5, last=BOOKED), side(1, 5)).edge
    pong = exchange.receive(step.edge, exchange.ping(peer)).say[0]
    told = exchange.receive(peer, pong)
    assert [(ended.number, ended.outcome) for ended in told.ended] == [(5, VOID)]
    assert told.edge.number == 6
    assert exchange.forsake(Edge()) == Step(Edge())


@pytest.mark.parametrize(
    "broken", [book_without_receipt, grant_without_voiding, book_while_asking, forget_what_was_lost, deaf_to_pings]
)
def test_the_exploration_finds_a_broken_rule(broken: Receive) -> None:
    with pytest.raises(Violation):
        explore(Bounds(2, 2, 2, 1), broken)


def test_what_no_honest_peer_says_is_a_remote_error() -> None:
    edge = exchange.open(Edge(number=5, last=BOOKED), side(0, 5)).edge
    for message in (Offer(7, 1, BOOKED, 0), Receipt(7), AskVoid(7), Closed(7, VOID), Ping(7, True, BOOKED, 1)):
        with pytest.raises(RemoteError, match="number"):
            exchange.receive(edge, message, side(1, 7))
    with pytest.raises(RemoteError, match="booking"):
        exchange.receive(edge, Closed(5, BOOKED), None)  # said to be booked, but the payload never came
    with pytest.raises(RemoteError, match="booking"):
        exchange.receive(edge, Closed(4, VOID), None)  # it was booked here
    for message in (Receipt(0), Ping(0, True, "", 1), Pong(0, True, "", 1)):
        with pytest.raises(RemoteError, match="a receipt for what was never offered"):
            exchange.receive(Edge(), message)


def test_an_edge_has_one_open_exchange() -> None:
    edge = exchange.open(Edge(), side(0, 0)).edge
    with pytest.raises(ValueError, match="one open exchange"):
        exchange.open(edge, side(0, 0))


# --- ends that crash and come back


class Lives:
    """Two ends of which each may crash and begin a new life. What is said is for one life of the receiver only."""

    def __init__(
        self,
        ends: Ends,
        links: tuple[tuple[tuple[int, int, Message], ...], ...],  # (life of the sender, life it is meant for, what)
        life: tuple[int, int],
        known: tuple[int, int],  # the life of the other that each end has met
        outcomes: tuple[tuple[tuple[int, int, str], ...], ...],  # (own life, the other's, outcome) of each end
        budget: tuple[int, int, int],
    ) -> None:
        self.ends, self.links, self.life, self.known, self.outcomes, self.budget = (
            ends, links, life, known, outcomes, budget,
        )  # fmt: skip

    def key(self) -> tuple:
        return self.ends, self.links, self.life, self.known, self.outcomes, self.budget

    def put(self, end: int, **changed: object) -> Lives:
        """With the end's entry of each of these replaced."""
        parts = {}
        for name, value in changed.items():
            pair = list(getattr(self, name))
            pair[end] = value
            parts[name] = tuple(pair)
        given = {name: getattr(self, name) for name in ("ends", "links", "life", "known", "outcomes", "budget")}
        return Lives(**{**given, **parts})

    def after(self, end: int, step: Step, budget: tuple[int, int, int] | None = None) -> Lives:
        said = tuple((self.life[end], self.known[end], message) for message in step.say)
        ended = tuple((self.life[end], self.known[end], each.outcome) for each in step.ended)
        new = self.put(end, ends=step.edge, links=self.links[end] + said, outcomes=self.outcomes[end] + ended)
        if budget is not None:
            new.budget = budget
        return new


def steps_of(state: Lives, exchanges: int) -> Iterator[Lives]:
    crashes, asks, pings = state.budget
    for end in (0, 1):
        edge, met = state.ends[end], state.known[end] == state.life[1 - end] and state.known[1 - end] == state.life[end]
        if edge.phase == IDLE and edge.number < exchanges and met:
            yield state.after(end, exchange.open(edge, side(end, edge.number)))
        if edge.phase == OPEN and asks:
            yield state.after(end, exchange.ask(edge), (crashes, asks - 1, pings))
        if edge.phase != IDLE and pings:
            yield state.after(end, Step(edge, (exchange.ping(edge),)), (crashes, asks, pings - 1))
        if state.links[1 - end]:
            (sender, receiver, message), *rest = state.links[1 - end]
            left = state.put(1 - end, links=tuple(rest))
            if (sender, receiver) != (state.known[end], state.life[end]):
                yield left
            else:
                theirs = side(1 - end, message.number) if isinstance(message, Offer) else None
                yield left.after(end, exchange.receive(edge, message, theirs))
        if crashes:  # it comes back with nothing, and has met the other at once
            dead = state.put(end, ends=Edge(), life=state.life[end] + 1, known=state.life[1 - end], links=())
            dead.budget = (crashes - 1, asks, pings)
            yield dead
        if state.known[end] != state.life[1 - end]:  # it hears of the new life
            gone = tuple((state.life[end], state.known[end], each.outcome) for each in exchange.broken(edge))
            yield state.put(end, ends=Edge(), known=state.life[1 - end], outcomes=state.outcomes[end] + gone)


def between(state: Lives, mine: int, theirs: int) -> tuple[list[str], list[str]]:
    """How the exchanges between two lives ended at each end."""
    first = [outcome for own, other, outcome in state.outcomes[0] if (own, other) == (mine, theirs)]
    second = [outcome for own, other, outcome in state.outcomes[1] if (own, other) == (theirs, mine)]
    return first, second


@pytest.mark.parametrize(
    ("crashes", "asks", "pings"),
    [
        pytest.param(1, 1, 1, marks=pytest.mark.more),
        *(pytest.param(*bounds, marks=pytest.mark.soak) for bounds in ((2, 0, 1), (2, 2, 2))),
    ],
)
def test_a_crash_leaves_one_exchange_at_most_that_the_ends_do_not_agree_on(crashes: int, asks: int, pings: int) -> None:
    start = Lives((Edge(), Edge()), ((), ()), (1, 1), (1, 1), ((), ()), (crashes, asks, pings))
    seen, todo, residues = {start.key()}, deque([start]), 0
    while todo:
        state = todo.popleft()
        for mine in range(1, state.life[0] + 1):
            for theirs in range(1, state.life[1] + 1):
                first, second = between(state, mine, theirs)
                apart = [k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
                over = mine < state.life[0] or theirs < state.life[1]
                assert len(apart) <= over, (first, second)
                assert not apart or apart[0] == min(len(first), len(second)) - 1
                residues += len(apart)
        for new in steps_of(state, 2):
            if new.key() not in seen:
                seen.add(new.key())
                todo.append(new)
    assert len(seen) > 500
    assert residues  # it does happen, and is what the ledger counts
