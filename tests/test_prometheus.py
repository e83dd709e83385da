"""Metrics for Prometheus: what is exported is what docs/commands.md says, and the server is bounded."""

from __future__ import annotations

import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_docs import DASH, rows
from test_status import REPORT, change

from p2pfl.config.experiment import NodeFile, parse
from p2pfl.drivers.live import metrics
from p2pfl.drivers.live.metrics import COUNTER, FIGURES, Exporter, samples
from p2pfl.errors import ConfigError
from p2pfl.node.status import LateNode

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "commands.md").read_text("utf-8")


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    made = Exporter("127.0.0.1:0")
    made.start()
    yield made
    made.close()


def scraped(exporter: Exporter) -> dict[str, dict[str, float]]:
    """name -> value of the label -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})["".join(sample.labels.values())] = sample.value
    return found


def test_what_is_exported_is_what_the_node_has(exporter: Exporter) -> None:
    assert scraped(exporter) == {}  # nothing is known yet
    exporter.show(change(late=(LateNode(1, 4.5),), dropped={"stale": 3, "size": 1}))
    found = scraped(exporter)
    assert found.keys() == {figure.name for figure in FIGURES}
    assert found["p2pfl_round"] == {"": 120.0} and found["p2pfl_exchanges_booked_total"] == {"": 240.0}
    assert found["p2pfl_members"] == {"alive": 2.0, "silent": 0.0, "suspect": 0.0, "dead": 0.0, "left": 0.0}
    assert found["p2pfl_dropped_total"] == {"stale": 3.0, "size": 1.0}
    assert found["p2pfl_late_seconds"] == {"1": 4.5} and found["p2pfl_score"] == {"accuracy": 0.931}
    assert found["p2pfl_info"] == {"0.1.0": 1.0} and found["p2pfl_waiting"] == {"": 0.0}
    exporter.show(change(round=121, score=None, loss=None, seconds_left=None, late=()))
    found = scraped(exporter)
    assert found["p2pfl_round"] == {"": 121.0}
    assert not {"p2pfl_score", "p2pfl_train_loss", "p2pfl_left_seconds", "p2pfl_late_seconds"} & found.keys()


def test_the_table_of_metrics_is_what_is_exported() -> None:
    documented = rows(PAGE, "Metric")
    assert documented.keys() == {figure.name for figure in FIGURES}
    for figure in FIGURES:
        kind, label, meaning = documented[figure.name]
        assert (kind, label.strip("`") if label != DASH else "") == (figure.kind, figure.label), figure.name
        assert meaning == figure.meaning, figure.name


def test_names_are_those_of_prometheus() -> None:
    for figure in FIGURES:
        assert re.fullmatch(r"p2pfl_[a-z]+(_[a-z]+)*", figure.name)
        assert figure.name.endswith("_total") == (figure.kind == COUNTER)
        assert all(isinstance(value, float) for _, value in samples(figure, REPORT))


def test_who_dawdles_is_hung_up_and_keeps_nobody_from_ending(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_PATIENCE", 0.05)
    exporter.show(REPORT)
    with socket.create_connection(("127.0.0.1", exporter.port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        slow.settimeout(30)
        assert slow.recv(1) == b""
    assert scraped(exporter)["p2pfl_round"] == {"": 120.0}
    monkeypatch.setattr(metrics, "_PATIENCE", 1000.0)
    with socket.create_connection(("127.0.0.1", exporter.port)) as slow:
        slow.sendall(b"GET")
        while exporter._server.under_way is None:
            pass
        exporter.close()
        assert not any(thread.name == "metrics" for thread in threading.enumerate())


@pytest.mark.parametrize("said", [b"\xff" * 9000 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b""])
def test_garbage_ends_nothing(exporter: Exporter, said: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    exporter.show(REPORT)
    with socket.create_connection(("127.0.0.1", exporter.port)) as link:
        link.sendall(said)
    assert scraped(exporter)["p2pfl_round"] == {"": 120.0}
    assert capsys.readouterr() == ("", "")


def test_what_is_missing_or_taken_is_said(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"can't listen there: Address already in use; free the port"):
        Exporter(f"127.0.0.1:{exporter.port}")
    for address in ("127.0.0.1:70000", "no.such.name.invalid:9100"):
        with pytest.raises(ConfigError, match="can't listen there"):
            Exporter(address)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'p2pfl-jax[metrics]'")):
        Exporter("127.0.0.1:0")


def test_a_node_file_says_where() -> None:
    table = {"experiment": "e.toml", "node": 0, "listen": "tcp://127.0.0.1:5700"}
    for address in ("127.0.0.1:9100", "[::1]:9100", "site-a.example.org:9100", "0.0.0.0:9100"):
        assert parse({**table, "metrics": address}, "node.toml", NodeFile).metrics == address
    for address in ("9100", "tcp://127.0.0.1:9100", ":9100", "a b:1"):
        with pytest.raises(ConfigError, match=r"metrics='.*': must be written HOST:PORT"):
            parse({**table, "metrics": address}, "node.toml", NodeFile)
