"""What is said, as text and as lines of JSON: levels, events, nodes and rounds."""

from __future__ import annotations

import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from p2pfl.cli import main
from p2pfl.console import LOG_LEVEL, Failure, also_told
from p2pfl.errors import Exit
from p2pfl.node.event_log import EventLog
from p2pfl.node.said import SAID, Said, level_of, whole
from p2pfl.protocol.events import Drop
from p2pfl.reporting import terminal
from p2pfl.reporting.terminal import Status
from p2pfl.runs.log import FORMS, LEVELS, Log

NOON = datetime(2026, 11, 30, 12, 0, 0, 1500, UTC)
LINES = [
    Said("round 3: mixed", "round", logging.DEBUG, round=3),
    "as plain text",
    Said("dropped a message, stale: of node 1", "dropped", logging.WARNING, 2, 3, reason="stale"),
    Said("stopping: the disk is full", "stopping", logging.ERROR),
]


def written(form: str, level: str) -> list[str]:
    found: list[str] = []
    log = Log(found.append, form, level, lambda: NOON)
    for line in LINES:
        log.say(line)
    return found


@pytest.mark.parametrize(("level", "first"), [("debug", 0), ("info", 1), ("warning", 2), ("error", 3)])
def test_a_log_takes_what_is_of_its_level_or_above(level: str, first: int) -> None:
    assert written("text", level) == LINES[first:]
    assert [json.loads(line)["text"] for line in written("json", level)] == LINES[first:]
    assert [*LEVELS] == ["debug", "info", "warning", "error"] and [*FORMS] == ["text", "json"]


def test_a_line_of_json() -> None:
    plain, dropped = map(json.loads, written("json", "info")[:2])
    assert plain == {
        "time": "2026-11-30T12:00:00.001Z", "level": "info", "node": None, "round": None, "event": SAID,
        "text": "as plain text",
    }  # fmt: skip
    assert dropped["fields"] == {"reason": "stale"}
    assert (dropped["level"], dropped["node"], dropped["round"], dropped["event"]) == ("warning", 2, 3, "dropped")
    found: list[str] = []
    Log(found.append, "json").say(Said("of\ntwo \x1b[2J lines", path=Path("/x")))
    assert found[0].isprintable() and json.loads(found[0])["fields"] == {"path": "/x"}


def test_what_is_said_knows_the_node_and_the_round_that_it_says_itself() -> None:
    line = whole(Said("of round 3", "epoch", round=3, members=[0, 1]), node=7, round=4)
    assert (line, line.node, line.round, line.event, line.fields) == ("of round 3", 7, 3, "epoch", {"members": [0, 1]})
    assert (whole("text", 7, 4).node, whole("text", 7, 4).round) == (7, 4)
    assert whole(Said("x", node=0), node=7).node == 0
    assert isinstance(line, str) and f"{line}" == "of round 3"


def test_events_have_levels() -> None:
    assert [level_of(event) for event in ("detected", "waiting", "joined", "recovered")] == [30, 30, 20, 20]


def test_a_view_shows_what_is_of_the_level() -> None:
    shown: list[str] = []
    log = Log(shown.append, "json", "info", lambda: NOON)
    with log.view(Console(), quiet=True) as view:
        view.update(Status(5, 10, (), None, None, 0, None))
        view.say(LINES[2])
        view.say(LINES[0])
    assert [json.loads(line)["event"] for line in shown] == ["progress", "progress", "dropped"]
    assert [json.loads(line)["round"] for line in shown] == [5, 5, 3]
    assert [json.loads(line)["text"][:10] for line in shown[:2]] == ["start: 0 n", "round 5/10"]
    console = Console(record=True, width=99, file=io.StringIO())
    with Log(shown.append, "text", "warning").view(console, quiet=False) as view:
        for line in LINES:
            view.say(line)
        view.update(Status(5, 10, (), None, None, 0, None))
    assert console.export_text().splitlines() == LINES[2:]


def test_failures_are_told_as_json_too_and_once_as_text() -> None:
    for form, count in (("json", 1), ("text", 0)):
        found: list[str] = []
        with pytest.raises(Failure), also_told(Log(found.append, form).failed):
            raise Failure("no such file", Exit.MISTAKE)
        assert len(found) == count
        assert all(
            json.loads(line)["level"] == "error" and json.loads(line)["text"] == "no such file" for line in found
        )


@pytest.mark.parametrize("command", ["run", "node"])
def test_a_mistake_is_a_line_of_json_as_well(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [command, str(tmp_path / "nowhere.toml"), "--log", "json"])
    (line,) = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1 and line["event"] == "failed" and "no such file" in line["text"]
    assert "no such file" in done.stderr


def test_levels_come_from_the_environment_too(tmp_path: Path) -> None:
    arguments = ["node", str(tmp_path / "nowhere.toml"), "--log", "json"]
    wrong = CliRunner().invoke(main, arguments, env={LOG_LEVEL: "loud"})
    assert wrong.exit_code == 2 and "loud" in wrong.output


TINY = """
name = "tiny"
rounds = 20
[data]
source = "quadratic"
dim = 3
[training]
optimizer = { name = "sgd", learning_rate = 0.01 }
batch_size = 2
local_steps = 1
[topology]
graph = "ring"
nodes = 3
[algorithm]
name = "dsgd"
"""


@pytest.mark.more
def test_a_run_says_everything_as_json(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(TINY)
    arguments = ["run", str(tmp_path / "e.toml"), "--driver", "simulate", "--log", "json"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "a")])
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0, done.output
    assert lines[-1]["text"].startswith("report: ") and any(line["text"].startswith("round 20/20") for line in lines)
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(done.stdout)["nodes"] == 3  # the summary alone; what is said goes beside it
    assert all(json.loads(line)["text"] for line in done.stderr.splitlines())


def test_drops_are_written_down_ten_times_each() -> None:
    rows: list[str] = []
    log = EventLog(0, lambda event, about, round, detail, rounds: rows.append(detail))
    told = [log.drop(Drop("stale", "x"), 1) for _ in range(200)]
    assert told == [True] * 10 + [False] * 190 and len(rows) == 10 and log.dropped == {"stale": 200}


def test_plain_lines_come_as_they_are_to_whoever_writes_them() -> None:
    found: list[str] = []
    terminal.lines(found.append).say(LINES[2])
    assert found[0] is LINES[2]
