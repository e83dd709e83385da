"""What one node says and does in a small federation with a death and a return, line by line, as written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peer_script import said
from test_peer import Node
from test_peer_epochs import Ring, Tracker

from p2pfl.protocol.events import Advance, Members, Received, Send, Tick

TRANSCRIPT = Path(__file__).parent / "transcripts" / "peer.txt"


def short(event: Any) -> str:
    """Without payloads, and with epochs as a mark."""
    match event:
        case Send(to, envelope):
            return f"    -> {to}: {said(envelope.message)} [{envelope.life}>{envelope.to}]"
        case Received(envelope):
            return f"<- {envelope.node}: {said(envelope.message)} [{envelope.life}>{envelope.to}]"
        case Advance():
            booked = [(b.node, b.number, b.opened, b.theirs.round) for b in event.booked]
            return f"    advance {event.finished} -> {event.next}: mixes {booked}, members {event.members}"
        case Members():
            return f"members {[(s.node, s.life) for s in event.seen]}, over {sorted(event.over)}"
    return f"    {event}" if hasattr(event, "about") else type(event).__name__


def transcript() -> str:
    lines: list[str] = []

    class Told(Tracker):
        def handle(self, event: Any) -> None:
            if self.node != 1 or self.dead or self.done or isinstance(event, Tick):
                super().handle(event)
                return
            lines.append(f"{self.world.now:.3f} {short(event)}")
            real = self.peer.handle

            def handle(event: Any, now: float) -> list[Any]:
                effects = real(event, now)
                lines.extend(f"      {short(effect)}" for effect in effects)
                return effects

            self.peer.handle = handle  # type: ignore[method-assign]
            super().handle(event)
            self.peer.handle = real  # type: ignore[method-assign]

    class World(Ring):
        kind: type[Node] = Told

    world = World(3, 60, seed=1)
    world.run_until_round(3)
    world.kill(2)
    world.run_until_round(40)
    world.restart(2)
    world.run()
    assert world.check() == 3
    return "\n".join(lines) + "\n"


def test_the_transcript_is_as_written(request: pytest.FixtureRequest) -> None:
    """`pytest --rewrite-transcripts` writes it anew: read the difference before it is committed."""
    now = transcript()
    if request.config.getoption("--rewrite-transcripts"):
        TRANSCRIPT.write_text(now, "utf-8")
    assert TRANSCRIPT.read_text("utf-8").splitlines() == now.splitlines()
    for needed in ("Offer(number=0, round=1, last=)", "members (0, 1)", "removed", "Bye(round=60)", "over [(2, 1)]"):
        assert needed in now
