"""What is shown in the terminal: live, plain, quiet, and the table of results."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from p2pfl.reporting import terminal as view
from p2pfl.reporting.run_data import Score, Summary
from p2pfl.reporting.terminal import NodeStatus, Status

SUMMARY = {"name": "<digits> [red]x[/red]", "accuracy_mean": 0.9618, "accuracy_worst": 0.9581,
           "accuracy_local_only": 0.609, "accuracy_local_only_worst": 0.52, "accuracy_pooled": 0.9634,
           "consensus_distance": 1.23e-3, "mean_residual": 2.5e-8, "residue": 1, "seconds_per_round_median": 0.0063,
           "bytes_sent_per_node_round": 77_000}  # fmt: skip

R2 = Score("explained", "R2", False)


def status(number: int, rounds: int = 100, nodes: int = 8) -> Status:
    states = ("alive", "alive", "lost", "starting", "left", "finished", "alive", "alive")
    there = tuple(NodeStatus(node, states[node % 8], number, 0.9) for node in range(nodes))
    return Status(number, rounds, there, 0.931, 0.902, 12_345_678, 75.0)


def terminal(**options: object) -> Console:
    return Console(file=io.StringIO(), width=100, **{"force_terminal": True, "color_system": "truecolor"} | options)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain() -> Console:
    return Console(file=io.StringIO(), width=60, force_terminal=False)


def test_plain_writes_a_start_and_a_line_per_tenth_and_no_codes() -> None:
    console = plain()
    with view.make(console, quiet=False) as seen:
        for number in range(1001):
            seen.update(status(number, 1000))
            if number == 205:
                seen.say("node 3 died at round 205")
    lines = shown(console).splitlines()
    assert "\x1b" not in shown(console)
    assert lines[0] == "start: 8 nodes, 1,000 rounds"
    assert lines[3] == "node 3 died at round 205"
    assert len(lines) == 1 + 10 + 1
    assert lines[1] == (
        "round 100/1000: accuracy mean 93.1 %, worst node 90.2 %; 1 starting, 4 alive, 1 lost, 1 left, 1 finished; "
        "12.3 MB sent, 1 min 15 s left"
    )


def test_plain_stays_sparse_when_rounds_are_skipped() -> None:
    console = plain()
    with view.make(console, quiet=False) as seen:
        for number in (0, 35, 36, 99, 100, 100):
            seen.update(status(number))
    assert [line.split(":")[0] for line in shown(console).splitlines()] == [
        "start", "round 35/100", "round 99/100", "round 100/100",
    ]  # fmt: skip


@pytest.mark.parametrize("quiet_console", [plain, terminal])
def test_quiet_shows_nothing(quiet_console) -> None:
    console = quiet_console()
    with view.make(console, quiet=True) as seen:
        seen.update(status(1))
        seen.say("anything")
    assert shown(console) == ""


@pytest.mark.parametrize("console", [plain(), terminal(color_system=None)], ids=["plain", "live"])
def test_what_is_said_is_one_line_that_moves_no_cursor(console: Console) -> None:
    with view.make(console, quiet=False) as seen:
        seen.say("node [red]3[/red] :boom: \x1b[2J\nsays \u202e so")
    assert "node [red]3[/red] :boom: \\x1b[2J says \\x202e so\n" in shown(console)
    assert "\x1b[2J" not in shown(console)


def test_live_shows_round_accuracy_nodes_bytes_and_time() -> None:
    console = terminal(color_system=None)
    with view.make(console, quiet=False) as seen:
        seen.say("node 2 died at round 40")
        seen.update(status(42))
    text = shown(console)
    for words in ("node 2 died at round 40", "round 42/100", "mean 93.1 %", "worst node 90.2 %", "12.3 MB sent",
                  "1 min 15 s left", "✕ 2", "● 0 90.0 %", "4 alive", "1 lost"):  # fmt: skip
        assert words in text, words
    assert text.endswith("\x1b[?25h"), "the cursor must be visible again"


def test_live_only_counts_many_nodes() -> None:
    console = terminal(color_system=None)
    with view.make(console, quiet=False) as seen:
        seen.update(status(42, nodes=1000))
    assert "500 alive" in shown(console) and "● 998" not in shown(console)
    assert shown(console).count("\n") < 12


def test_live_survives_no_status_an_unknown_state_and_an_error() -> None:
    console = terminal(color_system=None)
    seen = view.make(console, quiet=False)
    odd = Status(0, 0, (NodeStatus(0, "odd", 0, None),), None, None, 0, None)
    with pytest.raises(KeyboardInterrupt), seen:
        seen.update(odd)
        raise KeyboardInterrupt
    assert "? 0" in shown(console) and "? 1 odd" in shown(console) and "\N{EN DASH}" in shown(console)
    assert shown(console).endswith("\x1b[?25h")


def test_symbols_are_distinct_without_color() -> None:
    for column in (0, 1):
        assert len({symbols[column] for symbols in view.STATES.values()}) == len(view.STATES)
    assert all(symbols[1].isascii() for symbols in view.STATES.values())


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = terminal(color_system=None)
    with view.make(console, quiet=False) as seen:
        seen.update(status(0))
    assert shown(console) == "start: 8 nodes, 100 rounds\n"


def table(summary: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(view.results_table(Summary.of(summary)))
    return shown(console)


def test_the_table_sets_the_run_beside_the_baselines() -> None:
    text = table(SUMMARY)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "96.2 %" in rows["this run"] and "95.8 %" in rows["this run"]
    assert "60.9 %" in rows["every node alone"] and "52.0 %" in rows["every node alone"]
    assert "96.3 %" in rows["all data pooled"]
    assert "majority class" not in rows and "own test" not in text
    assert "<digits> [red]x[/red]" in text
    for words in ("consensus distance 0.00123", "mean residual 2.50e-08", "residue 1", "6.3 ms per round", "77.0 kB"):
        assert words in text
    assert "not measured" not in text


def test_the_table_adds_own_tests_and_majority_where_present() -> None:
    text = table(SUMMARY | {"accuracy_own_mean": 0.981, "accuracy_own_worst": 0.942, "accuracy_majority": 0.113})
    assert "98.1 %" in text and "94.2 %" in text and "majority class" in text and "11.3 %" in text


def test_a_score_is_called_by_its_name_and_only_a_fraction_is_a_percentage() -> None:
    console = plain()
    with view.make(console, quiet=False) as seen:
        seen.update(status(0))
        seen.update(Status(100, 100, (NodeStatus(0, "finished", 100, -0.31),), -0.31, -0.5, 0, None, R2))
    assert "round 100/100: R2 mean -0.310, worst node -0.500;" in shown(console)
    console = terminal(color_system=None)
    with view.make(console, quiet=False) as seen:
        seen.update(Status(100, 100, (NodeStatus(0, "finished", 100, -0.31),), -0.31, -0.5, 0, None, R2))
    assert "✓ 0 -0.310" in shown(console)
    summary = {"score": "explained", "score_name": "R2", "score_in_percent": False, "explained_mean": -0.31}
    text = table(summary | {"explained_pooled": 0.75, "accuracy_mean": 0.9})
    assert "R2, mean" in text and "-0.310" in text and "0.750" in text and "%" not in text and "accuracy" not in text
    text = table({"score": "dice", "score_name": "Dice", "dice_mean": 0.81234})
    assert "Dice, mean" in text and "81.2 %" in text


def test_an_empty_summary_is_said_to_be_not_measured() -> None:
    assert "\N{EN DASH} not measured" in table({})
    assert "\N{EN DASH} not measured" in table(SUMMARY | {"accuracy_pooled": float("nan")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (Score().text(1), "100.0 %"), (Score().text(None), "\N{EN DASH}"), (Score().text(True), "\N{EN DASH}"),
        (R2.text(-0.31), "-0.310"), (R2.text(float("nan")), "\N{EN DASH}"),
        (view.size(0), "0 B"), (view.size(999), "999 B"), (view.size(999_960), "1.0 MB"),
        (view.size(2e15), "2,000.0 TB"),
        (view.duration(0.9999), "1.0 s"), (view.duration(59.97), "1 min 0 s"), (view.duration(7_260), "2 h 1 min"),
        (view.figure(0.0), "0"), (view.figure(12_345), "12,345"), (view.figure(0.25), "0.25"),
        (view.figure("x"), "\N{EN DASH}"),
    ],
)  # fmt: skip
def test_words_for_figures(text: str, expected: str) -> None:
    assert text == expected
