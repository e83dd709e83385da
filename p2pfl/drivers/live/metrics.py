"""Metrics of a node for Prometheus, on request: the figures of its latest status at http://ADDRESS/metrics.

One request at a time and for some seconds at most: whoever dawdles keeps other scrapers waiting, and never the node.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from p2pfl.drivers.live import addresses
from p2pfl.errors import ConfigError
from p2pfl.node.status import SELF, SILENT, StatusReport

if TYPE_CHECKING:
    from prometheus_client.core import Metric

GAUGE, COUNTER = "gauge", "counter"

_PATIENCE = 5.0
"""Seconds that a request may take."""

_LOOK = 0.1
"""Seconds between looks at whether to end."""

_QUEUE = 8
"""Requests that may wait."""

Values = Mapping[str, float | None] | float | None
"""One value; or several, by the value of the label. None: there is none, and nothing is exported."""


class Figure(NamedTuple):
    """One metric."""

    name: str
    kind: str  # GAUGE or COUNTER
    meaning: str
    of: Callable[[StatusReport], Values]
    label: str = ""


def _states(report: StatusReport) -> dict[str, float | None]:
    found = Counter("alive" if each.state == SELF else each.state for each in report.members)
    return {state: float(found[state]) for state in ("alive", SILENT, "suspect", "dead", "left")}


FIGURES = (
    Figure("p2pfl_info", GAUGE, "1; the version of p2pfl", lambda at: {at.version: 1.0}, "version"),
    Figure("p2pfl_uptime_seconds", GAUGE, "Since the node has been listening", lambda at: at.uptime),
    Figure("p2pfl_round", GAUGE, "The round it is in", lambda at: at.round),
    Figure("p2pfl_rounds", GAUGE, "Rounds in all", lambda at: at.rounds),
    Figure("p2pfl_left_seconds", GAUGE, "Until the last round, by those of the last minute; missing while it does not "
           "get on", lambda at: at.seconds_left),
    Figure("p2pfl_waiting", GAUGE, "1: it trains no further round before others are there", lambda at: at.waiting),
    Figure("p2pfl_members", GAUGE, "Members, this node among them; those that are gone stay known", _states, "state"),
    Figure("p2pfl_members_missing", GAUGE, "Nodes that should be there and are not", lambda at: len(at.missing)),
    Figure("p2pfl_late_seconds", GAUGE, "For how long a node has been waited for, or has been silent",
           lambda at: {str(each.node): each.seconds for each in at.late}, "node"),
    Figure("p2pfl_exchanges_booked_total", COUNTER, "Exchanges, and pushes that came in", lambda at: at.booked),
    Figure("p2pfl_exchanges_voided_total", COUNTER, "Ends of exchanges that were given up", lambda at: at.voided),
    Figure("p2pfl_exchanges_open", GAUGE, "Exchanges that are neither", lambda at: at.open),
    Figure("p2pfl_bytes_sent_total", COUNTER, "Of messages between nodes", lambda at: at.bytes_sent),
    Figure("p2pfl_bytes_received_total", COUNTER, "Likewise", lambda at: at.bytes_received),
    Figure("p2pfl_bytes_forwarded_total", COUNTER, "Of messages sealed for others", lambda at: at.bytes_forwarded),
    Figure("p2pfl_dropped_total", COUNTER, "Messages that were dropped", lambda at: {**at.dropped}, "reason"),
    Figure("p2pfl_score", GAUGE, "Of the model, as last measured", lambda at: {at.score_name: at.score}, "score"),
    Figure("p2pfl_train_loss", GAUGE, "Mean over the local steps of the latest round", lambda at: at.loss),
    Figure("p2pfl_rounds_alone_total", COUNTER, "Rounds without half of those that should have been there",
           lambda at: at.rounds_alone),
    Figure("p2pfl_records_dropped_total", COUNTER, "Lines of records that could not be written",
           lambda at: at.records_dropped),
    Figure("p2pfl_links_encrypted", GAUGE, "1: links are encrypted", lambda at: at.encrypted),
)  # fmt: skip
"""All that is exported; docs/commands.md has them as a table."""


def samples(figure: Figure, report: StatusReport) -> Iterator[tuple[str, float]]:
    """Yield the values of a figure, each with that of its label, which is "" where it has none."""
    values = figure.of(report)
    for label, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        if value is not None:
            yield label, float(value)


class Exporter:
    """Serves the figures of the status that it has been shown last, to whoever asks. Ends with `close`."""

    def __init__(self, address: str) -> None:
        """Listen at HOST:PORT. ConfigError: prometheus-client is missing, or nobody can listen there."""
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError as error:
            raise ConfigError(
                f"metrics={address!r}: are made by prometheus-client, an extra: pip install 'p2pfl-jax[metrics]'; or "
                "leave them out"
            ) from error
        self._latest: StatusReport | None = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        where = addresses.parsed(address)
        try:
            family = addresses.lookup(*where)[0][0]
            self._server = _MetricsServer(family, (where.host, where.port))
        except (OSError, OverflowError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"metrics={address!r}: can't listen there: {why}; free the port or choose another"
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK,), name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on; from here on there is a thread more."""
        self._thread.start()

    def show(self, report: StatusReport) -> None:
        """Take in how the node stands."""
        self._latest = report

    def close(self) -> None:
        """Answer nobody any more."""
        if self._thread.is_alive():
            _hang_up(self._server.under_way)
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def describe(self) -> Iterable[Metric]:
        """For the registry: names are not looked up before there are any."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """For the registry: all figures, as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        report = self._latest
        if report is None:
            return
        for figure in FIGURES:
            kind = {GAUGE: GaugeMetricFamily, COUNTER: CounterMetricFamily}[figure.kind]
            family = kind(figure.name, figure.meaning, labels=[figure.label] if figure.label else [])
            for label, value in samples(figure, report):
                family.add_metric([label] if figure.label else [], value)
            yield family


class _Scrape(WSGIRequestHandler):
    """A request, of which nothing is said."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _MetricsServer(WSGIServer):
    """A server of one request at a time, each within a time."""

    request_queue_size = _QUEUE

    def __init__(self, family: int, where: tuple[str, int]) -> None:
        """Raises OSError."""
        self.address_family = family
        self.under_way: socket.socket | None = None
        super().__init__(where, _Scrape)

    def server_bind(self) -> None:
        """Bind, and ask no name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one."""
        self.under_way = request
        limit = threading.Timer(_PATIENCE, _hang_up, (request,))
        limit.daemon = True
        limit.start()
        try:
            super().process_request(request, client_address)
        finally:
            limit.cancel()
            self.under_way = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up in the middle is no concern of this node."""


def _hang_up(request: socket.socket | None) -> None:
    with contextlib.suppress(OSError):
        if request is not None:
            request.shutdown(socket.SHUT_RDWR)
