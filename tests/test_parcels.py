"""Large messages in pieces: whatever a link loses, all comes once, in order, and little of it is sent again."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pfl.drivers.live import parcels
from p2pfl.drivers.live.parcels import GIVEN_UP, WINDOW, Letter, ParcelsIn, ParcelsOut
from p2pfl.errors import RemoteError
from p2pfl.protocol.events import Progressed

PIECE = 100
FORMATS = [(350, 0, 7, 643), (50, 50)]
TOTAL = sum(FORMATS[0])


def large(seed: int = 0, kind: str = "Offer", lives: tuple[int, int] = (5, 9)) -> Letter:
    rng = np.random.default_rng(seed)
    frames = [f"{kind} {seed}".encode(), *(rng.integers(0, 256, size, np.uint8).data for size in FORMATS[0])]
    return Letter(frames, TOTAL + len(frames[0]), kind, lives)


def small(text: str, lives: tuple[int, int] = (5, 9)) -> Letter:
    return Letter([text.encode()], len(text), "Ping", lives)


def plain(frames: Any) -> list[bytes]:
    return [bytes(frame) for frame in frames]


class Link:
    """A way from node 0 to node 1 and back, that keeps order, and what comes out of it."""

    def __init__(self) -> None:
        self.out, self.inbox = ParcelsOut(FORMATS, PIECE), ParcelsIn(FORMATS)
        self.there: deque[list[bytes]] = deque()
        self.back: deque[bytes] = deque()
        self.now, self.nbytes, self.pieces, self.progress = 0.0, 0, 0, 0
        self.came: list[list[bytes]] = []

    def say(self, letter: Letter) -> None:
        if not self.out.add(1, letter, self.now):
            self.there.append(plain(letter.frames))

    def pump(self, most: int = 1000) -> int:
        count = 0
        while count < most and (portion := self.out.next(1, self.now)) is not None:
            self.there.append(plain(portion.frames))
            self.out.took(1, portion, self.now)
            self.nbytes += portion.nbytes
            count += 1
        return count

    def arrive(self) -> None:
        frames = self.there.popleft()
        if not parcels.is_parcel(frames):
            self.came.append(frames)
            return
        self.pieces += 1
        taken = self.inbox.take(0, frames, self.now)
        self.progress += taken.progress.nbytes if taken.progress else 0
        if taken.message is not None:
            self.came.append(plain(taken.message))
        if taken.answer is not None:
            self.back.append(taken.answer)

    def answer(self) -> None:
        self.out.answered(1, [self.back.popleft()], self.now)

    def run(self, before: Callable[[], None] = lambda: None) -> None:
        """Until nothing is under way; time passes where nothing happens."""
        while True:
            before()
            self.pump()
            if self.there:
                self.arrive()
            elif self.back:
                self.answer()
            elif self.out.idle:
                return
            else:
                self.now += 0.1
                self.out.give_up(self.now)

    def cut(self) -> None:
        self.there.clear()
        self.back.clear()


def test_a_message_comes_whole_and_what_was_said_later_comes_later() -> None:
    link, letters = Link(), [small("a"), large(1), small("b"), small("c"), large(2, "Push"), small("d")]
    for letter in letters:
        link.say(letter)
        link.pump(1)
    link.run()
    assert link.came == [plain(letter.frames) for letter in letters]
    assert link.progress == 2 * TOTAL
    assert link.pieces == 2 * -(-TOTAL // PIECE)


@pytest.mark.parametrize("piece", range(-(-TOTAL // PIECE) + 1))
@pytest.mark.parametrize("answers", [False, True])
def test_cut_at_any_piece_it_goes_on_from_there(piece: int, answers: bool) -> None:
    link, cuts = Link(), [piece]
    link.say(large())
    link.say(small("behind"))

    def cut() -> None:
        if cuts and link.pieces == cuts[0]:
            cuts.clear()
            link.pump()
            link.cut() if answers else link.there.clear()

    link.run(cut)
    assert not cuts
    assert link.came == [plain(large().frames), [b"behind"]]
    heads = 60 * (link.pieces + WINDOW)
    assert link.nbytes <= TOTAL + WINDOW * PIECE + heads
    assert link.progress == TOTAL


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_lost_all_comes_once_and_in_order(seed: int) -> None:
    link, draw = Link(), random.Random(seed)
    letters = [large(i, f"k{i}") if draw.random() < 0.4 else small(f"s{i}") for i in range(12)]
    letters.insert(0, large(99, "first"))  # what is small and alone on a link may be lost
    left = deque(letters)

    def befalls() -> None:
        if left and (draw.random() < 0.2 or link.out.idle):
            link.say(left.popleft())
        if draw.random() < 0.05:
            if all(map(parcels.is_parcel, link.there)):
                link.cut()
        elif link.there and link.back and draw.random() < 0.5:
            link.answer()

    link.run(befalls)
    link.run()
    assert not left
    assert link.came == [plain(letter.frames) for letter in letters]


def test_pieces_of_an_earlier_connection_change_nothing() -> None:
    link = Link()
    link.say(large())
    link.pump()
    early = [*link.there]
    link.run()
    for frames in early:  # come again, after all
        taken = link.inbox.take(0, frames, link.now)
        assert taken.message is None
        assert taken.progress is None
        assert taken.useless
    link.say(large(1))
    link.run(lambda: None)
    for frames in early:  # ... and after the next one
        assert link.inbox.take(0, frames, link.now) == parcels.Taken(useless=True)
    assert link.came == [plain(large().frames), plain(large(1).frames)]


def test_the_same_again_is_sent_once_and_a_later_one_of_a_kind_makes_an_earlier_one_useless() -> None:
    link = Link()
    for letter in (large(1), large(1), small("ping"), small("ping"), large(2), large(2), large(3), large(4, "Push")):
        link.say(letter)
        link.pump(1)
    link.run()
    assert link.came == [plain(e.frames) for e in (large(1), small("ping"), large(3), large(4, "Push"))]


@pytest.mark.parametrize("lives", [(6, 9), (5, 10)])
def test_what_was_said_between_earlier_lives_is_void(lives: tuple[int, int]) -> None:
    link = Link()
    link.say(large(1))
    link.say(small("old"))
    link.pump()
    link.say(small("hello", lives))
    assert link.out.idle
    link.say(large(2, lives=lives))
    link.run()
    assert link.came == [[b"hello"], plain(large(2).frames)]
    link.say(large(3, lives=lives))
    link.out.lose(1)
    assert link.out.idle


def test_what_nobody_takes_is_given_up_and_little_is_kept_until_then() -> None:
    link = Link()
    link.say(large())
    link.pump()
    for i in range(1000):
        link.say(small(f"{i}"))
    assert link.out.dropped.total() == 1000 - parcels._QUEUE
    asked = 0
    while not link.out.idle:
        asked += link.pump()
        link.now += 0.1
        link.out.give_up(link.now)
    assert GIVEN_UP < link.now < GIVEN_UP + 1
    assert asked < 2 * GIVEN_UP / parcels._ASK + 2 * WINDOW
    assert link.out.dropped["unsent"] == 1001


def test_a_receiver_that_says_for_ever_that_it_has_nothing_is_given_up() -> None:
    link, sent = Link(), 0
    link.say(large())
    while not link.out.idle:
        sent += link.pump()
        head = parcels._head(link.there[-1][0])
        link.there.clear()
        link.out.answered(1, [parcels._answer(head, 0, gap=True)], link.now)
    assert sent <= (parcels._TURNS + 1) * WINDOW


def test_a_model_for_one_that_joins_goes_slowly_and_does_not_stand_still() -> None:
    """Whatever else is under way, to others or behind it; and one for another joiner costs as much again."""
    out, now, sent = ParcelsOut(FORMATS, PIECE), 0.0, Counter[int]()
    for to, kind in ((1, "Model"), (2, "Offer"), (3, "Model")):
        out.add(to, large(to, kind), now)
    out.add(1, small("a pong"), now)
    while sent[1] * PIECE < TOTAL:
        now += 0.05
        for to in (1, 3):
            if (portion := out.next(to, now)) is not None:
                out.took(to, portion, now)
                head = parcels._head(portion.frames[0])
                out.answered(to, [parcels._answer(head, portion.end or 0, gap=False)], now)
                sent[to] += 1
    assert sent[1] == sent[3] == -(-TOTAL // PIECE)
    assert (sent[1] - 1) * parcels._APART <= now < sent[1] * parcels._APART + 0.1 * sent[1]


@pytest.mark.parametrize("come", [1, 3])
def test_a_joiner_that_asks_again_after_a_break_gets_the_rest_of_the_model(come: int) -> None:
    """A later model would make what has come of the first one useless; only of one that waits, it does."""
    link = Link()
    link.say(large(1, "Model"))
    while link.pieces < come:
        link.now += 2 * parcels._APART
        link.pump()
        link.arrive()
        link.answer()
    link.cut()
    link.now += 20.0
    link.say(large(2, "Model"))
    link.run()
    assert link.came == [plain(large(1, "Model").frames)]
    assert link.progress == TOTAL and link.nbytes < TOTAL + 2 * PIECE + 100 * link.pieces


@pytest.mark.parametrize("begun", [False, True])
def test_who_has_joined_gets_no_model_any_more_and_what_is_behind_it_at_once(begun: bool) -> None:
    link = Link()
    link.say(large(1, "Model"))
    if begun:
        link.now += 2 * parcels._APART
        link.pump()
        link.arrive()
    link.say(small("behind"))
    link.say(large(2, "Offer"))
    link.out.withdraw(1)
    sent = link.nbytes
    link.run()
    assert link.came == [[b"behind"], plain(large(2, "Offer").frames)]
    assert link.nbytes - sent < TOTAL + PIECE + 100 * link.pieces
    link.out.withdraw(1)  # there is nothing
    assert link.out.idle and not link.out.dropped


PARCEL = parcels.ParcelId(5, 9, 1)


def piece(at: int = 0, size: int = 100, form: int = 0, what: int = 0, tag: parcels.ParcelId = PARCEL) -> list[bytes]:
    return [parcels._Head(what, tag, at, 0, form).packed(), b"header", bytes(size)]


@pytest.mark.parametrize(
    "frames",
    [
        [parcels.MARK],
        [parcels.MARK + bytes(200), b"header", b"x"],
        piece()[:1],
        [piece()[0], bytes(2000), b"x"],
        piece(form=2),
        piece(what=7),
        piece(size=TOTAL + 1),
        piece(at=(1 << 64) - 1),
        piece(at=TOTAL, size=1),
        [piece(at=100)[0], b"another", b"x"],
        piece(at=50, form=1, size=10),
    ],
)
def test_what_no_node_sends_is_refused_and_nothing_is_taken_for_it(frames: list[bytes]) -> None:
    inbox = ParcelsIn(FORMATS)
    inbox.take(0, piece(), 0.0)
    before = inbox.nbytes
    with pytest.raises(RemoteError) as error:
        inbox.take(0, frames, 0.0)
    assert error.value.reason == "parcel"
    with pytest.raises(RemoteError):
        ParcelsIn(FORMATS).take(0, [parcels.MARK + frames[0][1:38], *frames[1:]], 0.0)
    assert inbox.nbytes == before


@pytest.mark.parametrize("at, carries", [(101, []), (TOTAL + 1, []), (1 << 63, []), (0, [b"x"])])
def test_an_answer_that_cannot_be_is_refused(at: int, carries: list[bytes]) -> None:
    out = ParcelsOut(FORMATS, PIECE)
    out.add(1, large(), 0.0)
    portion = out.next(1, 0.0)
    assert portion is not None
    out.took(1, portion, 0.0)
    head = parcels._head(portion.frames[0])
    with pytest.raises(RemoteError):
        out.answered(1, [parcels._answer(head, at, gap=False), *carries], 0.0)
    assert out.answered(2, [parcels._answer(head, 100, gap=False)], 0.0) is None  # it is sent nothing
    assert out.answered(1, [parcels._answer(head, 100, gap=False)], 0.0) == Progressed(1, 9, 5, 100)


def test_a_node_holds_one_parcel_of_each_other_however_many_begin() -> None:
    inbox = ParcelsIn(FORMATS)
    for number in range(100):
        for node in range(3):
            assert inbox.take(node, piece(tag=parcels.ParcelId(5, 9, number)), 0.0).useless == (number > 0)
    assert inbox.nbytes == 3 * TOTAL
    inbox.take(0, piece(at=100, tag=parcels.ParcelId(6, 9, 0)), 0.0)  # without its beginning: nothing is taken
    assert inbox.nbytes == 3 * TOTAL
    inbox.forget(1000.0)
    assert inbox.nbytes == 0
