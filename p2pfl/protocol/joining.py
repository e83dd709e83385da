"""Joining: a node starts with the others, or joins those who have begun, with a model of theirs or its own."""

from __future__ import annotations

from typing import Any

from p2pfl.protocol.agreement import Agreement
from p2pfl.protocol.events import Adopt, Note
from p2pfl.protocol.messages import Want
from p2pfl.protocol.neighbor import Neighbor
from p2pfl.protocol.presence import DONORS, Presence
from p2pfl.protocol.state import PeerState


class Joining:
    """Find out whether this node can begin, and with what. It changes no stage: that is up to `Peer`."""

    def __init__(self, state: PeerState, presence: Presence, agreement: Agreement) -> None:
        self._state, self._presence, self._agreement = state, presence, agreement
        self._models: dict[int, tuple[int, int, Any]] = {}  # what has been given: life, round, model
        self._wishes: dict[int, int] = {}  # who has been asked, and in which life
        self._asked = 0.0  # when a model was last asked for
        self._stretch = state.facts.payload_bytes / state.facts.timing.bandwidth

    # --- the start

    @property
    def others_have_begun(self) -> bool:
        """A neighbour is at hand that had begun before this node met it."""
        state = self._state
        others = (state.neighbors[node] for node in state.plan.neighbors)
        return any(other.linked and other.begun for other in others)

    def first_round(self) -> int | None:
        """Return the round to start with once every neighbour has been met, or waited for; None: not yet."""
        state, timing = self._state, self._state.facts.timing
        others = [state.neighbors[node] for node in state.plan.neighbors]
        waiting = [
            other.node
            for other in others
            if not other.linked and not other.left and not self._agreement.settled(other.node)
        ]
        # those who have lost patience with somebody at about the same time still meet each other
        if waiting and state.now - state.since < timing.start_timeout + timing.silence:
            return None
        absent = sorted({*self._presence.missing, *waiting})
        if len(absent) == 1:
            state.note("absent", absent[0], "not met at the start; it can join later")
        elif absent:  # one line, however many they are
            more = ", ".join(map(str, absent[1:]))
            state.note("absent", absent[0], f"not met at the start, nor is node {more}; they can join later")
        return max(1, state.facts.join_round, state.facts.kept_round + 1)

    # --- models

    def begin(self) -> None:
        """Begin to ask: the time runs from now on."""
        self._asked = self._state.now
        self.ask_donors()

    def ask_donors(self) -> None:
        """Ask those donors that are at hand and have not been asked: where one is lost, it is another's turn."""
        for node in self._presence.donors():
            other = self._state.neighbors.get(node)
            if other is not None and other.linked and other.begun and self._wishes.get(node) != other.life:
                self._ask(other)

    def _ask(self, other: Neighbor) -> None:
        """Ask a neighbour for its model, if it has not given it; who has kept its own wants none."""
        facts = self._state.facts
        if not facts.kept_round and other.node not in self._models:
            self._wishes[other.node], self._asked = other.life, self._state.now
            self._state.send(other, Want(max(facts.join_round - 1, 0)))

    def ask_again(self) -> None:
        """Ask everybody at hand who has not given theirs, after a while: a wish, or a model, can be lost."""
        state = self._state
        if state.now - self._asked >= state.facts.timing.retry_every + self._stretch:
            for other in state.neighbors.values():
                if other.linked and other.begun:
                    self._ask(other)

    def progressed(self) -> None:
        """A model is on its way: it need not be asked for again."""
        self._asked = self._state.now

    def give(self, other: Neighbor, round: int, model: Any) -> None:
        """Keep the model of a neighbour, from after its local steps in a round."""
        self._models[other.node] = (other.life, round, model)

    # --- the way in

    def joined_after(self) -> int | None:
        """Return the round after which this node takes part, having adopted a model or with its own; None: not yet.

        It joins once a second neighbour has given its model, or none can; with a model of its own, at once.
        """
        state, facts = self._state, self._state.facts
        donors = [other for other in state.neighbors.values() if other.linked and other.begun]
        silent = state.now - state.since >= facts.timing.silence + self._stretch
        if facts.kept_round:
            latest = max((other.round for other in donors), default=-1)
            met = silent or all(state.neighbors[n].linked for n in state.plan.neighbors if n in state.seen)
            if donors and met and latest >= facts.join_round - 1:
                return self._join(latest, "with its own model")
            return None
        wanted = [state.neighbors.get(node, Neighbor(node)) for node in self._presence.wanted()]
        able = [other for other in wanted if (other.usable and other.begun) or not other.linked]
        if not self._models or (len(self._models) < min(DONORS, len(able)) and not silent):
            return None
        node = min(self._models, key=lambda each: (-self._models[each][1], each))  # who is furthest
        life, round, model = self._models[node]
        state.out.append(Adopt(node, life, round, model))
        return self._join(round, f"with the model of node {node}, of {len(self._models)} that were given")

    def _join(self, round: int, how: str) -> int:
        state = self._state
        round = max(round, state.facts.kept_round)
        self._models = {}
        state.round = round
        state.out.append(Note("joined", state.facts.node, round + 1, how))
        return round

    @property
    def lost(self) -> bool:
        """Every neighbour that could give a model is gone."""
        return not any(other.linked and not other.suspect for other in self._state.neighbors.values())

    @property
    def too_late(self) -> bool:
        """All neighbours that this node has met have finished, or left."""
        met = [other for other in self._state.neighbors.values() if other.life]
        return bool(met) and all(other.left for other in met)

    @property
    def patience_is_over(self) -> bool:
        """No neighbour has given a model for as long as a start waits."""
        return self._state.now - self._state.since >= self._state.facts.timing.start_timeout
