"""Views of a run in the terminal: a live one, a plain one for files and pipes, or nothing.

    with view.make(console, quiet=False) as seen:
        seen.update(status)                      # as often as one likes
        seen.say("node 3 died at round 20")      # one permanent line above the live part
    console.print(view.results_table(summary))

The words for figures (`size`, `duration`, `figure`) and the rows of the result (`results`) are here too, so that the
terminal and the report say the same thing in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2pfl.reporting import published
from p2pfl.reporting.run_data import DASH, Score, Summary, measured

NODES_SHOWN = 48
"""Beyond so many nodes the live view counts states instead of drawing each node."""
STATES = {  # state: (symbol, symbol on a terminal without Unicode, colour); readable by the symbol alone
    "starting": ("○", ".", "yellow"),
    "alive": ("●", "o", "green"),
    "lost": ("✕", "x", "red"),
    "left": ("◌", "-", "bright_black"),
    "away": ("·", ",", "bright_black"),
    "finished": ("✓", "+", "cyan"),
}


class NodeStatus(NamedTuple):
    """One node as the observer last heard of it."""

    node: int
    state: str  # a key of STATES
    round: int
    score: float | None


class Status(NamedTuple):
    """The whole run at one moment. `bytes_sent` is the sum so far over all nodes."""

    round: int
    rounds: int
    nodes: tuple[NodeStatus, ...]
    score_mean: float | None
    score_worst: float | None
    bytes_sent: int
    seconds_left: float | None
    score: Score = Score()  # what the models are measured by


class View(Protocol):
    """A view that shows a run to a person."""

    def say(self, text: str) -> None:
        """Show one line that stays."""

    def update(self, status: Status) -> None:
        """Show where the run is now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def quiet() -> View:
    """Return the view that shows nothing."""
    return _Quiet()


def make(console: Console, quiet: bool, takes: Callable[[str], bool] = lambda text: True) -> View:
    """Return the view that suits the console: nothing if `quiet`, live on a terminal, plain lines anywhere else.

    `takes`: whether a line is worth showing.
    """

    def write(text: str) -> None:
        if takes(text):
            console.print(
                _one_line(text), markup=False, highlight=False, emoji=False, soft_wrap=True, no_wrap=True, style=None
            )

    if quiet:
        return _Quiet()
    if console.is_terminal and not console.is_dumb_terminal:
        return _Live(console, takes)
    return lines(write)


def lines(write: Callable[[str], None], progress: Callable[[str, Status], None] | None = None) -> View:
    """Return the view of plain lines, for whoever writes them: what is said comes as it is.

    `progress`: writes where the run is; as what is said, unless given.
    """
    return _Plain(write, progress or (lambda text, status: write(text)))


class _Quiet:
    """Shows nothing."""

    def say(self, text: str) -> None: ...

    def update(self, status: Status) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Plain(_Quiet):
    """Lines for a file or a pipe: one at the start, one per tenth of the rounds at most, and what is said."""

    def __init__(self, write: Callable[[str], None], progress: Callable[[str, Status], None]) -> None:
        self._write, self._progress = write, progress
        self._tenth: int | None = None  # the last tenth of the rounds that was written; None before the start

    def say(self, text: str) -> None:
        self._write(text)

    def update(self, status: Status) -> None:
        if self._tenth is None:
            self._tenth = 0
            self._progress(f"start: {_count(len(status.nodes), 'node')}, {_count(status.rounds, 'round')}", status)
        tenth = 10 * status.round // status.rounds if status.rounds > 0 else 0
        if tenth > self._tenth:
            self._tenth = tenth
            parts = (_scores(status), _counts(status), _traffic(status))
            self._progress(f"round {status.round}/{status.rounds}: {'; '.join(parts)}", status)


class _Live:
    """A few lines at the foot of the terminal that are drawn anew several times a second.

    `update` only keeps the status: rounds may be far faster than a person reads, so drawing is left to the refresh.
    """

    def __init__(self, console: Console, takes: Callable[[str], bool]) -> None:
        self._console, self._takes = console, takes
        self._status: Status | None = None
        self._live = Live(self, console=console, refresh_per_second=8)

    def say(self, text: str) -> None:
        if self._takes(text):
            self._console.print(_one_line(text), markup=False, highlight=False, emoji=False)

    def update(self, status: Status) -> None:
        self._status = status

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __rich__(self) -> RenderableType:
        status = self._status
        if status is None:
            return Text("starting", style="dim")
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"round {status.round}/{status.rounds}", style="bold"),
            ProgressBar(total=max(status.rounds, 1), completed=status.round, width=32),
            Text(_traffic(status), style="dim"),
        )
        ascii_only = not self._console.encoding.lower().startswith("utf")
        return Group(head, Text(_scores(status)), _node_row(status, ascii_only))


def _node_row(status: Status, ascii_only: bool) -> RenderableType:
    """Every node as a symbol and its number, then what the symbols mean; only counts for many nodes."""
    states = Counter(node.state for node in status.nodes)
    legend = Text()
    for state, count in _in_order(states):
        symbol, plain, color = STATES.get(state, ("?", "?", "magenta"))
        legend.append(plain if ascii_only else symbol, style=color)
        legend.append(f" {count} {state}   ", style="dim")
    if len(status.nodes) > NODES_SHOWN:
        return legend
    cells = []
    for node in status.nodes:
        symbol, plain, color = STATES.get(node.state, ("?", "?", "magenta"))
        cell = Text(plain if ascii_only else symbol, style=color)
        cell.append(f" {node.node}", style="default")
        if measured(node.score) is not None and len(status.nodes) <= 16:
            cell.append(f" {status.score.text(node.score)}", style="dim")
        cells.append(cell)
    return Group(Columns(cells, padding=(0, 2)), legend)


def _scores(status: Status) -> str:
    text = status.score.text
    return f"{status.score.name} mean {text(status.score_mean)}, worst node {text(status.score_worst)}"


def _counts(status: Status) -> str:
    states = Counter(node.state for node in status.nodes)
    return ", ".join(f"{count} {state}" for state, count in _in_order(states)) or "no nodes"


def _in_order(states: Counter[str]) -> list[tuple[str, int]]:
    known = list(STATES)
    return sorted(states.items(), key=lambda item: (known.index(item[0]) if item[0] in STATES else len(known), item[0]))


def _traffic(status: Status) -> str:
    left = "" if measured(status.seconds_left) is None else f", {duration(status.seconds_left)} left"
    return f"{size(status.bytes_sent)} sent{left}"


def _one_line(text: str) -> str:
    """`text` with whatever could move a cursor made visible: part of it may come from another node."""
    return "".join(
        char if char.isprintable() else " " if char in "\n\r\t" else f"\\x{ord(char):02x}" for char in text.strip()
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


# ---------------------------------------------------------------- the words for figures


def size(value: object) -> str:
    """Bytes in units of 1000.

    >>> size(77_000)
    '77.0 kB'
    """
    number = measured(value)
    if number is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.95:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def duration(value: object) -> str:
    """Seconds in the unit that reads best.

    >>> duration(0.0061), duration(12.3), duration(250)
    ('6.1 ms', '12.3 s', '4 min 10 s')
    """
    number = measured(value)
    if number is None:
        return DASH
    if number < 0.9995:
        return f"{1000 * number:.1f} ms"
    if number < 59.95:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def figure(value: object) -> str:
    """Any other number: whole ones in full, the rest with three digits.

    >>> figure(12_345), figure(0.00012345)
    ('12,345', '1.23e-04')
    """
    number = measured(value)
    if number is None:
        return DASH
    if isinstance(value, int) or number == 0:
        return f"{number:,.0f}"
    return f"{number:.3g}" if 1e-3 <= abs(number) < 1e5 else f"{number:.2e}"


# ---------------------------------------------------------------- the result


class ResultRow(NamedTuple):
    """A row of the result as it is shown: the score on the common test set, then of each node on its own test data."""

    label: str
    mean: str
    worst: str
    own_mean: str
    own_worst: str


class Scores(NamedTuple):
    """A row of the result as numbers: see `ResultRow`."""

    label: str
    mean: float | None
    worst: float | None
    own_mean: float | None
    own_worst: float | None


def scores(summary: Summary) -> list[Scores]:
    """Return this run beside what it is to be compared with. The majority class is a row only if it was computed.

    Of survival by Harrell's C, where it was assessed: see `Summary.headed`.
    """
    s = summary.headed
    alone = (s.score_local_only_worst, s.score_local_only_own_mean, s.score_local_only_own_worst)
    rows = [
        Scores("this run", s.score_mean, s.score_worst, s.score_own_mean, s.score_own_worst),
        Scores("every node alone", s.score_local_only, *alone),
        Scores("all data pooled", s.score_pooled, None, s.score_pooled_own_mean, s.score_pooled_own_worst),
    ]
    if measured(s.score_majority) is not None:
        own = (s.score_majority_own_mean, s.score_majority_own_worst)
        rows.append(Scores("majority class", s.score_majority, None, *own))
    return rows


def results(summary: Summary) -> list[ResultRow]:
    """Return the same as it is shown."""
    text, one = summary.headed.shown.text, {"all data pooled": "one model", "majority class": "no model"}
    rows = [ResultRow(label, *map(text, values)) for label, *values in scores(summary)]
    return [row._replace(worst=one[row.label]) if row.label in one and row.mean != DASH else row for row in rows]


def has_own(summary: Summary) -> bool:
    """Was any node evaluated on test data of its own?"""
    return any(measured(value) is not None for value in (summary.score_own_mean, summary.score_own_worst))


def results_table(summary: Summary) -> Table:
    """The result as a table for the terminal, with what it cost and how true it is below."""
    own, score = has_own(summary.headed), summary.headed.score_name
    table = Table(title=Text(_one_line(summary.name or "result")), title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for head in (f"{score}, mean", "worst node", "own test, mean", "own test, worst")[: 4 if own else 2]:
        table.add_column(head, justify="right")
    rows = results(summary)
    for row in rows:
        table.add_row(*row[: 5 if own else 3], style="bold" if row is rows[0] else None)
    caption = [
        f"consensus distance {figure(summary.consensus_distance)}",
        f"mean residual {figure(summary.mean_residual)}, residue {figure(summary.residue)}",
        f"{duration(summary.seconds_per_round_median)} per round, "
        f"{size(summary.bytes_sent_per_node_round)} per node and round",
    ]
    caption = [*published.told(summary), *caption, *rounds_lost(summary)]
    if any(DASH in text for text in (*caption, *(cell for row in rows for cell in row[: 5 if own else 3]))):
        caption.append(f"{DASH} not measured")
    table.caption = Text("\n".join(caption))
    return table


def rounds_lost(summary: Summary) -> list[str]:
    """What the nodes' rounds have come to, where they were not all trained with the others: a line each."""
    told = (
        ("skipped, to follow the others", summary.rounds_skipped),
        ("trained again, from where a majority was", summary.rounds_repeated),
        ("trained without half of the others", summary.rounds_alone),
    )
    return [
        f"rounds {what}: {', '.join(f'node {node} {rounds:,}' for node, rounds in [*by.items()][:NODES_SHOWN])}"
        for what, by in told
        if by
    ]
