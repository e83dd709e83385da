"""The rules of a driver at the head of p2pfl/protocol: the tests that they name are there; two stand here alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from small import Case, write

from p2pfl import protocol
from p2pfl.config import experiment
from p2pfl.drivers.virtual.node import NodeSetup, VirtualNode
from p2pfl.drivers.virtual.world import World
from p2pfl.federation import federation as build
from p2pfl.node import records
from p2pfl.protocol.events import Advance, Finished, Trained
from p2pfl.protocol.membership.timing import PROBE_TIMINGS
from p2pfl.protocol.messages import Offer, Push
from p2pfl.protocol.neighbor import EpochPlan, Facts, RoundPlan
from p2pfl.protocol.timing import LOCAL
from p2pfl.runs import virtual

TESTS = Path(__file__).parent


def test_the_rules_are_numbered_and_name_tests_that_there_are() -> None:
    text = protocol.__doc__ or ""
    numbers = [int(number) for number in re.findall(r"^ ?(\d+)\. ", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    rules = re.split(r"^ ?\d+\. ", text, flags=re.MULTILINE)[1:]
    sources = {path.stem: path.read_text("utf-8") for path in TESTS.glob("test_*.py")}
    for rule in rules:
        (named,) = re.findall(r"\(((?:test_|transcripts/)[^()]*)\)\s*$", rule)
        for part in re.split(r"[;,]\s+", named):
            name, _, inside = part.partition(": ")
            if name.startswith("test_"):
                assert name in sources, part
                assert not inside or f"def {inside}(" in sources[name], part
            else:
                story = name.removeprefix("transcripts/peer/")
                assert (TESTS / "transcripts" / "peer" / f"{story}.txt").is_file(), part


def test_what_an_effect_brings_about_comes_after_all_effects() -> None:
    """A message that arrives at once, while the effects of an event are carried out, waits for its turn."""
    world, order = World(0, lambda source, to: pytest.fail("no network here")), []  # type: ignore[var-annotated]

    class Nothing:
        def advance(self, effect: Advance) -> Trained | Finished:
            order.append("computed")
            node.handle(Trained("not yet"))
            order.append("and on")
            return Finished()

        def adopt(self, effect: Any) -> None:
            raise AssertionError

    facts = Facts(
        node=0, life=1, nodes=1, expected=(0,), plan=lambda members: EpochPlan(lambda round: RoundPlan(), 1, ()),
        rounds=1, federation="f", schema="s", payload_bytes=8, timing=LOCAL, lateness=1,
    )  # fmt: skip
    node = VirtualNode(world, facts, NodeSetup(Nothing(), lambda round: 0.0, PROBE_TIMINGS["local"], ()))
    handle = node.peer.handle

    def told(event: Any, now: float) -> Any:
        order.append(type(event).__name__)
        return handle(event, now)

    node.peer.handle = told  # type: ignore[method-assign]
    world.add(node)
    world.run(until=0.5)
    at = order.index("computed")
    assert order[at : at + 3] == ["computed", "and on", "Trained"]


@pytest.mark.parametrize(
    ("algorithm", "message"), [("gradient_tracking", Offer), ("push_sum", Push)], ids=["exchange", "push"]
)
def test_what_is_sent_was_written_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, message: type[Any]
) -> None:
    """When a payload of round r goes out, round r - 1 stands in the files, and of a push that r sends it."""
    case = Case(algorithm, "ring" if message is Offer else "exponential", 3)
    made = build.build(experiment.load(write(tmp_path, case, rounds=4, timing={}), ['driver.kind="virtual"']))
    send, sent = World.send, []

    def checked(self: World, source: VirtualNode, to: int, envelope: Any) -> None:
        if isinstance(envelope.message, message):
            node, round = source.facts.node, envelope.message.round
            trace = records.read(tmp_path / "nodes" / str(node) / "trace.jsonl")
            assert {line["round"] for line in trace if "booked" in line} == set(range(1, round))
            measured = records.read(tmp_path / "nodes" / str(node) / "metrics.jsonl")
            assert [line["round"] for line in measured] == list(range(1, round))
            if message is Push:
                assert to in next(line["began"] for line in trace if "began" in line and line["round"] == round)
            sent.append(round)
        send(self, source, to, envelope)

    monkeypatch.setattr(World, "send", checked)
    virtual.into(made, tmp_path)
    assert set(sent) == {1, 2, 3, 4}
