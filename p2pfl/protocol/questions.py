"""Questions: what a connection may ask that is of no node at work. It brings one, gets one answer, and is hung up.

A question is a topic, a blank, and what the topic has it say. Both ends are bounded: by CAP, and each topic bounds how
often it answers. Nothing that is asked changes anything here but counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from p2pfl.errors import RemoteError

CAP = 1 << 16
"""Bytes of a question, and of an answer, compressed."""

DIFFERS, STATUS = b"differs", b"status"
"""Topics: in what two experiments differ (see `strangers`), and how a node stands."""


class Asker(NamedTuple):
    """Who asks, as far as the connection shows it."""

    node: int | None = None  # whose key it has shown; None: it has shown none
    here: bool = False  # it is on this machine


Answer = Callable[[bytes, Asker, float], bytes]
"""Given what is asked, by whom and when, what is answered. RemoteError: nothing is, and the connection is hung up."""


class Questions:
    """Answers by topic."""

    def __init__(self, topics: Mapping[bytes, Answer]) -> None:
        self._topics = topics

    def answer(self, question: bytes, asker: Asker, now: float) -> bytes:
        """Return what is answered. RemoteError for what is not."""
        topic, _, asked = question.partition(b" ")
        known = self._topics.get(topic)
        if known is None:
            raise RemoteError("handshake", f"asks {topic[:20]!r}, which is no question")
        return known(asked, asker, now)


def question(topic: bytes, asked: bytes = b"") -> bytes:
    """Return what is asked, as it travels."""
    return topic + b" " + asked
