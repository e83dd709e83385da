"""The report of a run: what it says, what it must never contain, and how large it may grow."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from p2pfl.errors import ConfigError
from p2pfl.reporting import figures as plots
from p2pfl.reporting import page as report
from p2pfl.reporting import run_data

NASTY = "<script>alert('x')</script> & $\\frac{$"
SUMMARY = {
    "name": "digits", "nodes": 8, "rounds": 60, "algorithm": "gradient_tracking", "graph": "ring",
    "accuracy_mean": 0.9618, "accuracy_worst": 0.9581, "accuracy_own_mean": 0.981, "accuracy_own_worst": 0.942,
    "accuracy_local_only": 0.609, "accuracy_local_only_worst": 0.52, "accuracy_pooled": 0.9634,
    "accuracy_majority": 0.113, "consensus_distance": 1.23e-3, "mean_residual": 2.5e-8, "residue": 1,
    "keeps_mean": "exchange", "seconds_per_round_median": 0.0063, "seconds_startup": 3.1, "seconds_total": 8.4,
    "bytes_sent_per_node_round": 77_000, "exchanges_booked": 1543, "exchanges_voided": 12,
    "messages_dropped": {"stale_epoch": 4, "too_late": 31}, "lost": [], "notes": ["a note of the run"],
}  # fmt: skip
CHURN = [
    {"event": "crash", "node": 3, "round": 20, "detail": "killed"},
    {"event": "detected", "node": 3, "by": 2, "round": 22, "detail": "no answer"},
    {"event": "detected", "node": 3, "by": 4, "round": 23, "detail": "no answer"},
    {"event": "rejoined", "node": 3, "round": 41, "detail": "copied the model of node 4"},
]


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(
    run: Path, *, nodes: int = 8, rounds: int = 60, evaluate: int = 2, events: Any = (), **changed: Any
) -> Path:
    """A synthetic run in which node 3 is away in rounds 20 to 40, accuracies are null in unevaluated rounds."""

    def accuracy(number: int, node: float) -> float | None:
        return 0.96 - 0.8 * math.exp(-9 * number / rounds) + node / 1e4 if number % evaluate == 0 else None

    away = range(20, 41)
    lines(run / "metrics.jsonl", [
        {"node": node, "life": 2 if node == 3 and number > 40 else 1, "round": number, "train_loss": 0.3,
         "accuracy_before_mixing": accuracy(number, node), "accuracy_after_mixing": accuracy(number, node),
         "accuracy_own": None, "bytes_sent": 77_000, "seconds": 0.006, "waited": 0.002}
        for number in range(1, rounds + 1) for node in range(nodes) if not (node == 3 and number in away)
    ])  # fmt: skip
    lines(run / "rounds.jsonl", [
        {"round": number, "alive": [0, 1], "accuracy_mean": accuracy(number, 4), "accuracy_worst": accuracy(number, 0),
         "consensus_distance": 1 / number, "bytes_sent": 77_000 * nodes, "seconds_median": 0.006}
        for number in range(1, rounds + 1)
    ])  # fmt: skip
    edges = [[node, (node + 1) % nodes] for node in range(nodes)]
    (run / "topology.json").write_text(json.dumps({"graph": "ring", "nodes": nodes, "edges": edges}))
    (run / "experiment.toml").write_text('name = "digits"\nseed = 7\n')
    lines(run / "events.jsonl", list(events))
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"nodes": nodes, "rounds": rounds} | changed))
    return run


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see: tags, attributes, the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("th", "td", "dt", "dd", "b", "text") else ""

    def handle_data(self, data: str) -> None:
        self.text += data


def written(run: Path) -> tuple[str, Reader]:
    page = report.write(run).read_text(encoding="utf-8")
    return page, Reader(page)


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_headline_says_what_happened(tmp_path: Path) -> None:
    _, read = written(make_run(tmp_path, events=CHURN))
    assert (
        "8 nodes on a ring reached 96.2 % mean accuracy (worst node 95.8 %) in 60 rounds; alone they reach 60.9 %, "
        "all data pooled 96.3 %. Node 3 crashed at round 20 and was back at round 41."
    ) in flat(read.text)


def test_the_page_holds_tables_figures_events_truth_and_experiment(tmp_path: Path) -> None:
    _, read = written(make_run(tmp_path, events=CHURN))
    text = flat(read.text)
    for words in (
        "every node alone 60.9 % 52.0 %", "majority class 11.3 %", "98.1 % 94.2 %", "node 3 crash", "node 3 back",
        "all data pooled 96.3 %", "worst: node 0", "2.50e-08", "both ends of an exchange mix", "1,543", "31 too_late",
        "detected 3 22 to 23 2 2, 4 no answer", "a note of the run", 'name = "digits"', "77.0 kB",
    ):  # fmt: skip
        assert words in text, words
    assert read.tags.count("svg") == 5 and read.tags.count("details") == 1 and "title" in read.tags
    labels = [value for name, value in read.attributes if name == "aria-label"]
    assert len(labels) == 5 and all(len(label) > 20 for label in labels)
    assert ("name", "viewport") in read.attributes


def test_figures_are_sound_svg_in_colors_of_the_page(tmp_path: Path) -> None:
    page, read = written(make_run(tmp_path, events=CHURN))
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for figure in figures:
        ElementTree.fromstring(figure)
        assert not re.search("#0000[01][0-9a-f]", figure), "a stand-in colour is left"
        assert "var(--" in figure
    assert len(read.ids) == len(set(read.ids)), "an id is there twice"
    targets = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert targets and set(targets) <= set(read.ids)
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert used <= set(re.findall(r"(--\w+):", page)), "a colour without a value"


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page, read = written(make_run(tmp_path, events=CHURN))
    assert set(re.findall(r"\w+://[^\s\"'<>]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "script" not in read.tags and "link" not in read.tags and "img" not in read.tags
    assert not [name for name, _ in read.attributes if name.startswith("on") or name == "src"]


def test_names_from_files_are_only_text(tmp_path: Path) -> None:
    events = [{"event": NASTY, "node": 1, "by": 2, "round": 5, "detail": NASTY},
              {"event": "late", "node": NASTY, "by": [NASTY], "round": NASTY, "detail": {"a": NASTY}}]  # fmt: skip
    run = make_run(tmp_path, events=events, name=NASTY, graph=NASTY, algorithm=NASTY, keeps_mean=NASTY, notes=[NASTY],
                   messages_dropped={NASTY: 3, "b": None}, lost=[NASTY])  # fmt: skip
    (run / "experiment.toml").write_text(f"name = '</pre></details>{NASTY}'")
    _, read = written(run)
    assert "script" not in read.tags
    assert read.text.count(NASTY) >= 9


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path, events=CHURN)
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first
    assert not re.search(rb"20\d\d-\d\d-\d\dT", first), "a date"


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path, **dict.fromkeys(set(SUMMARY) - {"nodes", "rounds"}))
    for name in ("metrics.jsonl", "rounds.jsonl", "events.jsonl", "topology.json", "experiment.toml"):
        (run / name).unlink()
    _, read = written(run)
    assert "accuracy was not measured" in read.text
    assert read.text.count("\N{EN DASH} not measured") >= 10
    assert "svg" not in read.tags and "NaN" not in read.text and "None" not in read.text.replace("None.", "")
    (run / "summary.json").write_text("{}")
    written(run)


def test_nulls_everywhere_still_give_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("metrics.jsonl", "rounds.jsonl"):
        records = [json.loads(line) for line in (run / name).read_text().splitlines()]
        keep = ("node", "round", "life")
        lines(run / name, [{key: record[key] if key in keep else None for key in record} for record in records])
    _, read = written(run)
    assert read.tags.count("svg") == 1  # the topology


def test_a_torn_line_is_counted_not_fatal(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with (run / "metrics.jsonl").open("a") as torn:
        torn.write('{"node": 3, "rou')
    assert "metrics.jsonl: 1 line could not be read" in written(run)[1].text


def test_without_a_pooled_test_set_the_own_one_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, accuracy_mean=None, accuracy_worst=None)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["accuracy_own"] = record["accuracy_after_mixing"]
        record["accuracy_after_mixing"] = record["accuracy_before_mixing"] = None
    lines(run / "metrics.jsonl", records)
    text = flat(written(run)[1].text)
    assert "reached 98.1 % mean accuracy on their own test data (worst node 94.2 %)" in text
    assert "accuracy on own test data" in text


@pytest.mark.more
def test_another_score_is_called_by_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path, score="explained", score_name="R2", score_in_percent=False)
    for path in (run / "metrics.jsonl", run / "rounds.jsonl", run / "summary.json"):
        path.write_text(path.read_text().replace('"accuracy_', '"explained_'))
    page, read = written(run)
    text = flat(read.text)
    assert "8 nodes on a ring reached 0.962 mean R2 (worst node 0.958) in 60 rounds; alone they reach 0.609" in text
    assert "R2 on the common test set" in text and "Coloured by final R2." in text and "every node alone 0.609" in text
    assert "ccuracy" not in page and " %" not in text
    (run / "summary.json").unlink()  # as if it were still running
    assert "ran to the end; explained was not measured" in flat(written(run)[1].text)
    assert "mean 0.9" in read.text and "every node" not in flat(written(run)[1].text).split("Result")[0]


def test_a_summary_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = run_data.Summary.of(SUMMARY | {"lost": [3], "auc_own_mean": 0.9, "auc_worst": None, "residue": 0})
    assert (whole.score_mean, whole.score_pooled, whole.lost, whole.residue) == (0.9618, 0.9634, (3,), 0)
    assert whole.metrics == {"auc_own_mean": 0.9, "auc_worst": None}
    whole.write(tmp_path)
    table = json.loads((tmp_path / "summary.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert run_data.Summary.of(table) == whole and table["accuracy_mean"] == 0.9618 and table["auc_own_mean"] == 0.9
    other = dataclasses.replace(whole, score="dice", score_name="Dice")
    assert other.as_dict()["dice_mean"] == 0.9618 and "accuracy_mean" not in other.as_dict()
    assert run_data.Summary.of(other.as_dict()) == other


def test_a_summary_takes_figures_by_name_and_keeps_what_it_knows() -> None:
    summary = run_data.Summary(score_mean=0.5).adding({"accuracy_mean": 0.6, "accuracy_pooled": 0.7, "auc_mean": 0.8})
    assert (summary.score_mean, summary.score_pooled, summary.metrics) == (0.5, 0.7, {"auc_mean": 0.8})


@pytest.mark.parametrize("value", [None, "x", [1], {"a": 1}, True])
def test_what_is_of_another_type_is_not_known(value: object) -> None:
    assert run_data.Summary.of({"accuracy_mean": value, "nodes": value}) == run_data.Summary()


def test_baselines_are_read_from_their_rounds(tmp_path: Path) -> None:
    run = make_run(tmp_path, accuracy_pooled=None, accuracy_local_only=None, accuracy_local_only_worst=None)
    lines(run / "baselines/local/rounds.jsonl", [
        {"round": 1, "accuracy_mean": 0.2}, {"round": 2, "accuracy_mean": 0.611, "accuracy_worst": 0.4},
        {"round": 3, "accuracy_mean": None},
    ])  # fmt: skip
    text = flat(written(run)[1].text)
    assert "alone they reach 61.1 %." in text and "every node alone 61.1 % 40.0 %" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no summary\.json"):
        report.write(tmp_path)


@pytest.mark.more
def test_a_huge_run_gives_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, nodes=1000, rounds=100, evaluate=1)
    rounds = [{"round": number, "accuracy_mean": 0.5 + number / 3e4, "consensus_distance": 1 / (number % 97 + 1),
               "bytes_sent": number % 89, "seconds_median": 0.01} for number in range(1, 10_001)]  # fmt: skip
    lines(run / "rounds.jsonl", rounds)
    text = (run / "metrics.jsonl").read_text()  # its 100 rounds are spread over the 10,000
    (run / "metrics.jsonl").write_text(re.sub(r'"round": (\d+)', r'"round": \g<1>00', text))
    edges = [[a, (a + step) % 1000] for a in range(1000) for step in range(1, 11)]
    (run / "topology.json").write_text(json.dumps({"graph": "ring", "nodes": 1000, "edges": edges}))
    crashes = [{"event": "crash", "node": n, "by": n, "round": n, "detail": f"{n}"} for n in range(1000)]
    lines(run / "events.jsonl", crashes + [{"event": f"kind {n}", "round": n} for n in range(500)])
    page, read = written(run)
    assert len(page) < 3_000_000
    assert "60 of 1,000 nodes" in read.text and "of 10,000 edges are drawn" in read.text
    assert "1000 nodes went away" in read.text.replace(",", "")
    assert read.tags.count("tr") < 80
    assert re.search(r"crash\s+1,000 nodes\s+0 to 999\s+1,000", read.text)
    assert re.search(r"of other kinds\s+\N{EN DASH}\s+441", read.text), "what the table leaves out is counted"


def test_many_nodes_with_one_event_each_are_one_row() -> None:
    rows = report.grouped([{"event": "late", "node": node, "by": 1, "round": node} for node in range(100)])
    assert [(row["event"], row["nodes"], row["count"], row["rounds"]) for row in rows] == [
        ("late", "100 nodes", 100, "0 to 99")
    ]


def test_tables_and_lines_are_bounded(tmp_path: Path) -> None:
    records = ({"node": 0, "round": number, "accuracy_after_mixing": number / 10_000} for number in range(1, 10_001))
    lines(tmp_path / "metrics.jsonl", list(records))
    nodes = run_data._nodes(tmp_path / "metrics.jsonl", "accuracy", 10_000, [])
    assert nodes.score.shape == (1, run_data.COLUMNS)
    assert nodes.final() == {0: 1.0} and nodes.round[0, -1] == 10_000
    x, y = plots.thin(nodes.round[0].repeat(9), nodes.score[0].repeat(9), max)
    assert len(x) == len(y) == plots.POINTS and x[-1] == 10_000


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([("crash", 3, 20), ("detected", 3, 22), ("rejoined", 3, 41)], [(3, "crash", 20, 41)]),
        ([("crash", 3, 20), ("rejoined", 3, 41), ("detected", 3, 43)], [(3, "crash", 20, 41)]),  # said late
        ([("detected", 3, 22), ("detected", 3, 23)], [(3, "detected", 22, None)]),
        ([("left", 1, 5), ("crash", 0, 9)], [(1, "left", 5, None), (0, "crash", 9, None)]),
        ([("joined", 0, 0), ("joined", 7, 30), ("joined", 7, 31)], [(7, "joined", None, 30)]),
        ([("rejoined", 3, 41), ("crash", 3, 20)], [(3, "crash", 20, 41)]),  # by rounds, not by lines
        ([("crash", 3, 20), ("rejoined", 3, 41), ("crash", 3, 50)], [(3, "crash", 20, 41), (3, "crash", 50, None)]),
        ([("late", 3, 20), ("dropped", 3, 20)], []),
    ],
)
def test_absences(told: list[tuple[str, int, int]], expected: list[tuple[Any, ...]]) -> None:
    events = [{"event": event, "node": node, "round": number} for event, node, number in told]
    assert [tuple(absence) for absence in run_data.absences(events)] == expected
