"""Inquiries: whoever is said to be gone is asked, before that is believed."""

from __future__ import annotations

from p2pfl.protocol.membership.table import NOBODY, MemberEntry, join

PINGS = 5
"""Pings of an inquiry, spread over its window: with a loss of 5 % each way, one in 100,000 has no answer."""


class Inquiry:
    """An inquiry about a member. `claim`: what is believed unless the life that is held answers; None: a suspicion."""

    def __init__(self, began: float, window: float, claim: MemberEntry | None = None) -> None:
        self.next, self._pause = began, window / PINGS
        self.asked = 0
        self.claim = claim
        self.alive = False  # the life that is held has answered
        self.source = NOBODY  # who has told the claim last ...
        self.answer = False  # ... and whether anybody has in answer to a question

    def ask(self) -> bool:
        """Take one more ping; False when the window is over."""
        if self.asked == PINGS:
            return False
        self.asked += 1
        self.next += self._pause
        return True

    def add(self, claim: MemberEntry, source: int, answer: bool) -> None:
        """Take in one more claim about the same member."""
        self.claim = claim if self.claim is None else join(self.claim, claim)
        self.source, self.answer = source, self.answer or answer
