"""The table of stages of a peer: it is total, it names what there is, and the drawing beside it is what happens."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from typing import Any, get_args

import pytest
from peer_script import Script, play
from test_peer_stories import STORIES

from p2pfl.protocol import peer, state
from p2pfl.protocol.events import Event, Finished, Leave, Start, Tick, Trained
from p2pfl.protocol.messages import KINDS
from p2pfl.protocol.peer import IGNORED, STAGES, Peer
from p2pfl.protocol.state import (
    CLOSING,
    DONE,
    EXCHANGING,
    JOINING,
    LEAVING,
    SETTLING,
    STARTING,
    TRAINING,
    WAITING,
    PeerState,
)

ALL = (STARTING, JOINING, TRAINING, EXCHANGING, SETTLING, WAITING, LEAVING, CLOSING, DONE)
MORE = {
    "one node": "nodes 1; start 0; members 0; train 0 0 0 0",
    "met before it is a member": "nodes 2; start 0; say 1>0 Hello 1 f s 0; members 0 1 > 0",
    "leave at the start": "nodes 2; start 0; leave 0",
    "leave while joining": "nodes 2; start 0; members 0; wait 4; start 1; members 0 1 > 1; deliver 1>0 0>1; leave 1",
    "leave in settling": "nodes 3; begin; train 0; kill 2; deliver; members 0 1 > 0; live 7; wait 1; leave 0",
    "leave while too few are there": "nodes 3; begin; kill 1; kill 2; members 0; train 0; live 4; leave 0; train 0",
    "settle, and too few are there": "nodes 3; begin; train 0; kill 2; deliver; members 0 1 > 0; live 7; wait 1; "
    "kill 1; members 0",
    "more are there again": "nodes 3; begin; kill 1; kill 2; members 0; train 0; members 0 1 2 > 0",
    "more are there again, and something is open": "nodes 5; begin; train 0; kill 2; kill 3; kill 4; members 0 1 > 0; "
    "live 8; members 0 1 2 > 0; wait 13",
    "leave in a round": "nodes 2; begin; train 0; leave 0",
    "fail in training after being asked to leave": "nodes 2; begin; leave 0; finish 0",
    "fail after leaving in training": "nodes 2; begin; leave 0 idle; finish 0",
    "one that has begun is met before all are there": "nodes 3; start 0; members 0; wait 4; start 2; "
    "members 0 2 > 2; say 0>2 Hello 1 f s 1; members 0 1 2 > 2",
    "one that has begun is met, and one never comes": "nodes 3; start 0; members 0; wait 4; start 2; "
    "members 0 2 > 2; say 0>2 Hello 1 f s 1; wait 4",
    "keep, and all have finished": "nodes 2 rounds=2; begin; train 0 1; deliver; kill 1; wait 7; train 0; "
    "restart 1 kept_round=2; members 0 1 > 1; deliver",
    "nobody to join with is left": "nodes 2 rounds=2; start 0; members 0; wait 4; start 1; members 0 1 > 1; "
    "deliver 1>0 0>1; say 0>1 Bye 2; wait 1",
}
"""Scripts beside those of the stories, so that every move of the drawing is made."""


def drawn() -> dict[tuple[str, str], set[str]]:
    """The drawing in the docstring: (from, to) -> the events upon which."""
    lines = re.findall(r"^    (\w+) +-> (\w+) +on ([\w ]+)", peer.__doc__ or "", re.MULTILINE)
    return {(before, after): set(events.split()) for before, after, events in lines}


def moves(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], set[str]]:
    """What happens in all stories and in the scripts above."""
    made: dict[tuple[str, str], set[str]] = defaultdict(set)
    now: list[str] = []
    set_, handle = PeerState.__setattr__, Peer.handle

    def noted(self: PeerState, name: str, value: Any) -> None:
        if name == "stage" and getattr(self, "stage", value) != value:
            made[self.stage, value].add(now[-1])
        set_(self, name, value)

    def handled(self: Peer, event: Event, at: float) -> Any:
        now.append(type(event.envelope.message if hasattr(event, "envelope") else event).__name__)
        return handle(self, event, at)

    monkeypatch.setattr(PeerState, "__setattr__", noted)
    monkeypatch.setattr(Peer, "handle", handled)
    for path in STORIES:
        play(path.read_text("utf-8"))
    for script in MORE.values():
        run(script)
    return made


def run(script: str) -> Script:
    played = Script()
    for command in script.split(";"):
        played.run(command.strip())
    return played


def test_the_table_has_an_entry_for_every_event_in_every_stage() -> None:
    assert tuple(STAGES) == ALL
    assert {value for name, value in vars(state).items() if name.isupper()} == set(ALL)
    for stage, row in STAGES.items():
        assert set(row) == {*get_args(Event), *KINDS}, stage


def test_it_names_methods_and_each_event_is_handled_somewhere() -> None:
    named = {method for row in STAGES.values() for method in row.values() if method is not IGNORED}
    assert all(callable(getattr(Peer, method)) for method in named)
    for kind in (*get_args(Event), *KINDS):
        assert any(row[kind] is not IGNORED for row in STAGES.values()), kind
    assert not any(STAGES[DONE].values())


@pytest.mark.parametrize(
    ("script", "stage"),
    [
        ("nodes 2; start 0", STARTING),
        ("nodes 2; begin", TRAINING),
        ("nodes 2; begin; train 0", EXCHANGING),
        ("nodes 2; begin; train 0; deliver; leave 0", LEAVING),
        ("nodes 1 rounds=1; begin; train 0", CLOSING),
        ("nodes 1 rounds=1; begin; train 0 0", DONE),
    ],
)
def test_what_is_ignored_changes_nothing(script: str, stage: str) -> None:
    played = run(script)
    node = played.peers[0]
    assert node.stage == stage
    before = told(node)
    for event in (Start(), Trained("late"), Finished(), Leave(False), Tick()):
        if STAGES[stage][type(event)] is IGNORED:
            assert node.handle(event, played.now) == []
            assert told(node) == before


def told(node: Peer) -> dict[str, str]:
    """All that it knows, but for what the present event has changed in any case."""
    names = {field.name for field in dataclasses.fields(node.state)} - {"now", "out"}
    return {name: repr(getattr(node.state, name)) for name in names}


def test_the_drawing_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    made, drawing = moves(monkeypatch), drawn()
    assert set(made) == set(drawing)
    named = {move: made[move] for move, events in drawing.items() if events != {"any"}}
    assert named == {move: events for move, events in drawing.items() if events != {"any"}}
    assert {after for _, after in made} == set(ALL) - {STARTING}
