"""A run computed again from its trace: what was booked by whom decides, whenever that happened and however late.

The trace says for every life of a node how it began, which epochs it entered, in which rounds it trained, and what it
mixed; messages, clocks and losses need not be known. A life goes on as far as the payloads it needs are there, the
others likewise in turn, and a payload is kept until no line needs it any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2pfl.errors import DataError
from p2pfl.learning.batching import EvalSet
from p2pfl.node.replica import Replica
from p2pfl.node.task import Booked, Task
from p2pfl.types import Params, State

Lines = Sequence[Mapping[str, Any]]
"""Records of a trace.jsonl: those of records.Trace."""

_FOREVER = 1 << 62


class Name(NamedTuple):
    """A life of a node."""

    node: int
    life: int


@dataclass(slots=True)
class _Life:
    node: Replica
    adopted: tuple[Name, int] | None = None  # the model it began with: whose, and from after which round's local steps
    kept: tuple[Name, int] | None = None  # the state it began with: of which life, after which round
    entered: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # (round, members) of epochs to come
    states: dict[int, State] = field(default_factory=dict)  # after rounds that a later life goes on from
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    began: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # by round
    wanted: int = 0  # the last round of it that others have something of
    done: int = 0  # lines that have been computed again
    ready: bool = False  # for the mixing of the next line

    @property
    def name(self) -> Name:
        return Name(self.node.task.node, self.node.life)


def replay(tasks: Sequence[Task], traces: Mapping[int, Lines], ended: Collection[Name]) -> dict[Name, Params]:
    """Compute the final models of the lives in `ended` again, from the traces of each node.

    Raises DataError where a trace lacks something.
    """
    run = _Replay(tasks, traces, ended)
    run.compute()
    return {name: run.lives[name].node.task.program.params(run.lives[name].node.state) for name in ended}


class _Replay:
    def __init__(self, tasks: Sequence[Task], traces: Mapping[int, Lines], ended: Collection[Name]) -> None:
        self._tasks = [task._replace(test=EvalSet((), 0)) for task in tasks]  # nothing is evaluated
        self.lives: dict[Name, _Life] = {}
        self._payloads: Counter[tuple[Name, int]] = Counter()  # how many lines are to come that need it
        self._models: Counter[tuple[Name, int]] = Counter()
        self._states: set[tuple[Name, int]] = set()
        for name in ended:
            self._life(name)
        for node, lines in traces.items():
            for line in lines:
                self._read(node, line)
        for (name, round), _ in [*self._payloads.items(), *self._models.items()]:
            life = self._life(name)
            life.wanted = max(life.wanted, round)

    def _life(self, name: Name) -> _Life:
        if name not in self.lives:
            if not 0 <= name.node < len(self._tasks):
                raise DataError(f"trace: names node {name.node}; the experiment has nodes 0 to {len(self._tasks) - 1}")
            self.lives[name] = _Life(Replica(self._tasks[name.node], name.life, keep=_FOREVER))
        return self.lives[name]

    def _read(self, node: int, line: Mapping[str, Any]) -> None:
        life = self._life(Name(node, line["life"]))
        if "adopted" in line:
            other, its_life, round = line["adopted"]
            life.adopted = Name(other, its_life), round
            self._models[life.adopted] += 1
        elif "kept" in line:
            earlier, round = line["kept"]
            life.kept = Name(node, earlier), round
            self._states.add(life.kept)
            self._life(life.kept[0])
        elif "members" in line:
            life.entered.append((line["round"], tuple(line["members"])))
        elif "began" in line:
            life.began[line["round"]] = line
        elif "booked" in line:
            life.lines.append(line)
            self._payloads.update(self._needs(life, line))

    def _needs(self, life: _Life, line: Mapping[str, Any]) -> list[tuple[Name, int]]:
        """Return the payloads that a line mixes."""
        needs = []
        for node, its_life, _, mine, theirs in line["booked"]:
            needs.append((Name(node, its_life), theirs))
            if life.node.task.link == "exchange":
                needs.append((life.name, mine))
        return needs

    def compute(self) -> None:
        """Compute all lives to their ends."""
        left = list(self.lives.values())
        while left:
            moved = [self._forth(life) for life in left]
            left = [life for life in left if self._unfinished(life)]
            if left and not any(moved):
                life = left[0]
                round = life.lines[life.done]["round"] if life.done < len(life.lines) else life.wanted
                raise DataError(
                    f"trace: node {life.name.node}, life {life.name.life}, stands still at round {round}: something "
                    "that it mixed, adopted or sent is in no trace; the records are not whole"
                )

    def _unfinished(self, life: _Life) -> bool:
        due = {round for name, round in self._states if name == life.name} - set(life.states)
        begun = life.kept is None and life.adopted is None  # one that ends at once has no line
        return not begun or life.done < len(life.lines) or life.node.round < life.wanted or bool(due)

    def _forth(self, life: _Life) -> bool:
        """Compute a life as far as it gets with what is there; return whether it moved."""
        moved, node = False, life.node
        if life.kept is not None:
            earlier, round = life.kept
            if round not in self.lives[earlier].states:
                return False
            node.go_on(self.lives[earlier].states[round])
            life.kept, moved = None, True
        if life.adopted is not None:
            donor, round = life.adopted
            if round not in self.lives[donor].node.models:
                return False
            node.adopt(self.lives[donor].node.given(node.task.node, round), *donor, round)
            self._models[donor, round] -= 1
            self._forget(self.lives[donor])
            life.adopted, moved = None, True
        while life.done < len(life.lines):
            line = life.lines[life.done]
            if not life.ready:
                self._keep(life, line["round"])
                self._enter(life, line["round"])
                if line["trained"]:
                    node.train(line["round"], tuple(line["spoke"]))
                life.ready = moved = True
            needs = self._needs(life, line)
            if any(round not in self.lives[name].node.payloads for name, round in needs):
                return moved
            node.mix(line["round"], [self._booked(life, *entry) for entry in line["booked"]])
            self._payloads.subtract(needs)
            for name in {life.name, *(name for name, _ in needs)}:
                self._forget(self.lives[name])
            life.done, life.ready, moved = life.done + 1, False, True
        moved |= self._keep(life, _FOREVER)
        if node.round < life.wanted:  # it trained once more before its end, and others got that
            began = life.began.get(life.wanted, {"began": []})
            self._enter(life, life.wanted)
            node.train(life.wanted, tuple(began["began"]))
            moved = True
        return moved

    def _keep(self, life: _Life, round: int) -> bool:
        """Keep the state of before this round for the lives that go on from it; return whether there were any."""
        due = [r for name, r in self._states if name == life.name and r < round and r not in life.states]
        life.states.update(dict.fromkeys(due, life.node.kept))
        return bool(due)

    def _enter(self, life: _Life, round: int) -> None:
        """Enter the epochs up to this round."""
        while life.entered and life.entered[0][0] <= round:
            life.node.enter(*life.entered.pop(0))

    def _booked(self, life: _Life, node: int, its_life: int, number: int, mine: int, theirs: int) -> Booked:
        me, other = life.node, self.lives[Name(node, its_life)].node
        sent = me.side(node, mine) if me.task.link == "exchange" else me.latest(node)
        return Booked(node, its_life, number, mine, theirs, sent, other.sent(me.task.node, theirs))

    def _forget(self, life: _Life) -> None:
        """Forget payloads and models that no line needs any more, but the latest, which is the node's own."""
        node, name = life.node, life.name
        node.forget(
            [r for r in node.payloads if r < node.round and self._payloads[name, r] <= 0],
            [r for r in node.models if r < node.round and self._models[name, r] <= 0],
        )
