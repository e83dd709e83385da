"""Every test has a lane, and every lane a command: what `make test`, `make test-all` and `make soak` select."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from conftest import LANES, by_night, pytest_collection_modifyitems

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
DEFAULT = re.findall(r"-m '(.+?)'", OPTIONS["addopts"])[0]
MARKS = {mark.split(":")[0] for mark in OPTIONS["markers"]}


def selections() -> list[tuple[str, str]]:
    """Each target of the Makefile that runs pytest, with the expression that it selects by."""
    result, target = [], ""
    for line in (ROOT / "Makefile").read_text("utf-8").splitlines():
        if rule := re.match(r"([\w-]+):", line):
            target = rule[1]
        elif "-m pytest" in line:
            options = line.split("||")[0].split("-m pytest")[1]  # what follows tries again what has failed
            chosen = re.search(r'-m (?:"(.+?)"|(\w+))', options)
            result.append((target, (chosen[1] or chosen[2]) if chosen else DEFAULT))
    return result


def selected(expression: str, marks: set[str]) -> bool:
    return bool(eval(expression, {}, {mark: mark in marks for mark in MARKS}))


def test_every_mark_is_declared() -> None:
    assert {*LANES, "live"} == MARKS


@pytest.mark.parametrize("lane", [None, *LANES])
@pytest.mark.parametrize("live", [False, True])
def test_every_test_is_run_by_exactly_one_command(lane: str | None, live: bool) -> None:
    if live and lane is None:
        return  # which is refused
    marks = {*([lane] if lane else []), *(["live"] if live else [])}
    targets = [target for target, expression in selections() if selected(expression, marks)]
    assert targets == [{None: "fast", "more": "test-all"}.get(lane, lane)]


def test_ci_runs_all_lanes_but_the_nights() -> None:
    makefile, ci = ((ROOT / name).read_text("utf-8") for name in ("Makefile", ".ci/run"))
    assert re.findall(r"^make (.+)$", ci, re.MULTILINE) == ["test", "test-all"]
    assert re.search(r"^test-all:.*\bfaults$", makefile, re.MULTILINE)
    assert re.search(r"^test:.*\n\t\$\(MAKE\) .*\blint fast$", makefile, re.MULTILINE)
    assert selected(DEFAULT, set()) and not any(selected(DEFAULT, {lane}) for lane in LANES)


def test_nights_are_told_from_days() -> None:
    assert [by_night(each) for each in ("soak", "soak and live", "live and soak")] == [True] * 3
    assert not any(by_night(expression) for target, expression in selections() if target != "soak")


@pytest.mark.parametrize("lanes", [*itertools.combinations(LANES, 2)])
def test_a_test_of_two_lanes_is_refused(request: pytest.FixtureRequest, lanes: tuple[str, str]) -> None:
    item = pytest.Function.from_parent(request.node.parent, name="twice", callobj=lambda: None)
    item.add_marker(lanes[0])
    pytest_collection_modifyitems([item])
    item.add_marker(lanes[1])
    with pytest.raises(pytest.UsageError, match=f"twice is marked {' and '.join(sorted(lanes))}"):
        pytest_collection_modifyitems([item])


def test_a_live_test_without_a_lane_is_refused(request: pytest.FixtureRequest) -> None:
    item = pytest.Function.from_parent(request.node.parent, name="alone", callobj=lambda: None)
    item.add_marker("live")
    with pytest.raises(pytest.UsageError, match="alone is marked live and has no lane"):
        pytest_collection_modifyitems([item])
    item.add_marker("more")
    pytest_collection_modifyitems([item])
