"""One table of methods: each beside every hospital alone, plain mixing, and all data pooled.

    python experiments/imaging/table.py                      # all that expected.json lacks, then the files below
    python experiments/imaging/table.py --only FedBN --only ground=hearts --workers 1
    python experiments/imaging/table.py --again --only FedBN # anew, though it is there
    python experiments/imaging/table.py --draw               # the files below alone

methods.toml says what there is to be made. Of each of its grounds a sweep is made (`p2pfl sweep`, in OUT/GROUND), which
goes on where it was interrupted; figures of rows that are whole go to expected.json, and table.md and picture.png are
made of that. Ctrl-C keeps what is there.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PLAIN, ALONE, POOLED = "plain mixing", "every node alone", "all data pooled"
COST = ("bytes_sent_per_node_round", "seconds_processor_per_round")
HEAD = (
    "method", "claims", "data", "alone", "plain mixing", "the method", "all data pooled", "gain", "comes to", "bytes",
    "ms",
)  # fmt: skip
T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t with n - 1 degrees of freedom, of 95 % in the middle; by n seeds."""
MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


class Ground(NamedTuple):
    """Data with a model, and the score by which methods are compared on it."""

    name: str
    data: str  # in words
    experiment: Path
    set: tuple[str, ...]
    before: tuple[
        str, ...
    ]  # overrides of an experiment that is run first: all others begin with its first node's model
    score: str  # a figure of a summary without its end: "accuracy" on the test rows of all, "accuracy_own" on own ones

    @property
    def unit(self) -> str:
        return "dB" if self.score.startswith("psnr") else "%"

    @property
    def scale(self) -> float:
        return 1.0 if self.unit == "dB" else 100.0


class Method(NamedTuple):
    """A row of the table."""

    name: str
    source: str
    claims: str
    ground: str
    set: tuple[str, ...]
    answer: str  # of evaluation.answers: the model that is the method's; "": the node's own
    note: str  # what is to be said of the result
    row: str  # its row in docs/medical.md, "The methods, one by one", where that has another name

    @property
    def line(self) -> str:
        """What the experiment file says."""
        asked = [f'evaluation.answers=["{self.answer}"]'] if self.answer else []
        return ", ".join(f"`{each}`" for each in (*self.set, *asked))


class Table(NamedTuple):
    """methods.toml."""

    seeds: tuple[int, ...]
    grounds: dict[str, Ground]
    methods: tuple[Method, ...]
    elsewhere: dict[str, str]  # a row of docs/medical.md that is none here -> the test that holds it; "": none does


Row = dict[str, Any]
"""As in the table.json of a sweep."""
Stored = dict[str, list[Row]]
"""expected.json: ground -> rows."""


# --- what there is to be made


def read(file: Path = HERE / "methods.toml") -> Table:
    """Read methods.toml. Ends the program with a line for each fault."""
    try:
        whole, faults = tomllib.loads(file.read_text("utf-8")), []
    except tomllib.TOMLDecodeError as error:
        sys.exit(f"{file}: not TOML: {error}")
    grounds, methods = {}, []
    for name, given in whole.get("grounds", {}).items():
        faults += _fields(f"grounds.{name}", given, ("data", "experiment", "score"), ("set", "before"))
        experiment = file.parent / str(given.get("experiment"))
        more = [(*given.get(field, ()),) for field in ("set", "before")]
        grounds[name] = Ground(name, given.get("data", ""), experiment, *more, given.get("score", ""))
        if not experiment.is_file():
            faults.append(f"grounds.{name}.experiment: no such file: {experiment}")
    for number, given in enumerate(whole.get("method", [])):
        where = f"method[{number}] ({given.get('name', 'without a name')})"
        faults += _fields(where, given, ("name", "source", "claims", "ground"), ("set", "answer", "note", "row"))
        fields = {name: given.get(name, "") for name in Method._fields}
        methods.append(Method(**{**fields, "set": (*given.get("set", ()),)}))
        if given.get("ground") not in grounds:
            faults.append(f"{where}: ground={given.get('ground')!r}: must be one of {', '.join(grounds)}")
    names = [each.name for each in methods]
    faults += [f"method {name!r} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if len(whole.get("seeds", ())) not in T95:
        faults.append(f"seeds={whole.get('seeds')}: must be {min(T95)} to {max(T95)} whole numbers")
    if faults:
        sys.exit("\n".join(f"{file}: {fault}" for fault in faults))
    return Table(tuple(whole["seeds"]), grounds, tuple(methods), whole.get("elsewhere", {}))


def _fields(where: str, given: dict[str, Any], needed: Sequence[str], others: Sequence[str]) -> list[str]:
    missing = [f"{where}: {name} must be given" for name in needed if name not in given]
    known = ", ".join((*needed, *others))
    return missing + [
        f"{where}: no field {name!r}; there are {known}" for name in given if name not in (*needed, *others)
    ]


def metrics(table: Table, ground: Ground) -> list[str]:
    """The columns of a ground's sweep."""
    answers = dict.fromkeys(["", *(each.answer for each in table.methods if each.ground == ground.name)])
    scores = [f"{answer}{'_' if answer else ''}{ground.score}_{end}" for answer in answers for end in ("mean", "worst")]
    return [*scores, *COST]


def made_from(ground: Ground, method: Method | None) -> str:
    """A digest of all that a row follows from, but for the package: a row of another one is made anew."""
    own = (method.set, method.answer) if method else ()
    said = tomllib.loads(ground.experiment.read_text("utf-8"))  # comments change nothing
    text = json.dumps([said, ground.set, ground.before, ground.score, own], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sweep_text(table: Table, ground: Ground, baselines: bool = True, more: Sequence[str] = ()) -> str:
    """The sweep file of a ground: plain mixing and its methods.

    `baselines`: with every node alone and all pooled. `more`: what is added to the overrides of the ground.
    """
    labels = {PLAIN: [], **{each.name: overrides(each) for each in table.methods if each.ground == ground.name}}
    lines = [
        f"name = {json.dumps(ground.name)}",
        f"experiment = {json.dumps(str(ground.experiment.resolve()))}",
        f"metrics = {json.dumps(metrics(table, ground))}",
        f"seeds = {list(table.seeds)}",
        *(['baselines = ["ground"]'] if baselines else []),
        "[axes.ground]",
        f"{json.dumps(ground.name)} = {json.dumps([*ground.set, *more])}",
        "[axes.method]",
        *(f"{json.dumps(name, ensure_ascii=False)} = {json.dumps(given)}" for name, given in labels.items()),
    ]
    return "\n".join(lines) + "\n"


def overrides(method: Method) -> list[str]:
    return [*method.set, *([f'evaluation.answers=["{method.answer}"]'] if method.answer else [])]


# --- making it


def missing(table: Table, stored: Stored, ground: Ground) -> tuple[list[str], bool]:
    """The labels of a ground that expected.json does not have, and whether its baselines are among them."""
    own = [each for each in table.methods if each.ground == ground.name]
    there = {(row.get("baseline", ""), row["labels"].get("method", "")) for row in kept(table, stored, ground)}
    names = [name for name in (PLAIN, *(each.name for each in own)) if ("", name) not in there]
    return names, (ALONE, "") not in there


def kept(table: Table, stored: Stored, ground: Ground) -> list[Row]:
    """The rows of expected.json that are of these files, and of all seeds."""
    by_name = {each.name: each for each in table.methods if each.ground == ground.name}
    found = []
    for row in stored.get(ground.name, []):
        name = row["labels"].get("method", PLAIN)
        known = name == PLAIN or name in by_name
        if known and row["made_from"] == made_from(ground, by_name.get(name)) and row["seeds"] == list(table.seeds):
            found.append(row)
    return found


def make(table: Table, ground: Ground, names: Sequence[str], baselines: bool, out: Path, workers: int | None) -> bool:
    """Run the sweep of a ground, as far as it is to be made. Returns False where it was interrupted."""
    file = out / f"{ground.name}.toml"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(sweep_text(table, ground, baselines, weights(ground, out)), "utf-8")
    only = [part for name in names or [PLAIN] for part in ("--only", f"method={name}")]
    many = ["--workers", str(workers)] if workers else []
    command = [sys.executable, "-m", "p2pfl", "sweep", str(file), "--out", str(out / ground.name), *many, *only]
    before = signal.signal(signal.SIGINT, lambda *_: None)  # the sweep gets it, too, and writes down what there is
    try:
        code = subprocess.run(command).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code not in (0, 3, 130, 143):
        sys.exit(code)
    return code in (0, 3)


def weights(ground: Ground, out: Path) -> list[str]:
    """The override that names the model that all begin with, which is trained first where it is not there."""
    if not ground.before:
        return []
    run, exported = (out / f"{ground.name}-{name}" for name in ("before", "weights"))
    if not exported.is_dir():
        sets = [part for each in (*ground.before, "baselines=false") for part in ("--set", each)]
        program = [sys.executable, "-m", "p2pfl"]
        subprocess.run([*program, "run", str(ground.experiment), *sets, "--out", str(run)], check=True)
        named = ["--to", "safetensors", "--node", "0", "--out", str(exported)]
        subprocess.run([*program, "export", str(run), *named], check=True)
    return [f"model.weights={exported.resolve() / 'model.safetensors'}"]


def take(table: Table, stored: Stored, ground: Ground, out: Path) -> list[str]:
    """Put the rows of a sweep that are whole into `stored`; returns the names of those that are not."""
    by_name = {each.name: each for each in table.methods if each.ground == ground.name}
    left = kept(table, stored, ground)
    torn = []
    for row in json.loads((out / ground.name / "table.json").read_text("utf-8"))["rows"]:
        name = row["labels"].get("method", PLAIN)
        values = row["metrics"][metric(ground, by_name.get(name), "mean")]["by_seed"]
        if row.get("baseline") == "majority class":
            continue
        if row.get("failed") or None in values or row["seeds"] != list(table.seeds):
            torn.append(name)
            continue
        figures = {
            key: {"by_seed": each["by_seed"]}
            for key, each in row["metrics"].items()
            if any(value is not None for value in each["by_seed"])
        }
        whole = {"labels": row["labels"], "seeds": row["seeds"], "metrics": figures}
        whole |= {"baseline": row["baseline"]} if row.get("baseline") else {}
        whole["made_from"] = made_from(ground, by_name.get(name))
        left = [each for each in left if (each["labels"], each.get("baseline")) != (row["labels"], row.get("baseline"))]
        left.append(whole)
    order = [PLAIN, *by_name]
    stored[ground.name] = sorted(
        left, key=lambda row: (bool(row.get("baseline")), order.index(row["labels"].get("method", PLAIN)))
    )
    return torn


# --- reading it


def metric(ground: Ground, method: Method | None, end: str) -> str:
    answer = f"{method.answer}_" if method and method.answer else ""
    return f"{answer}{ground.score}_{end}"


def values(rows: Iterable[Row], name: str, key: str, baseline: str = "") -> list[float] | None:
    """The figures of a row by seed; None where there are none."""
    for row in rows:
        if (row.get("baseline", ""), row["labels"].get("method", "")) == (baseline, name) and key in row["metrics"]:
            return [math.nan if value is None else float(value) for value in row["metrics"][key]["by_seed"]]
    return None


class Gain(NamedTuple):
    """What a method adds to plain mixing: paired, by seed, in the unit of its ground."""

    mean: float
    half: float  # of the 95 % interval of the mean
    up: int  # seeds in which it is better
    of: int

    @property
    def word(self) -> str:
        if not self.half < abs(self.mean):  # also where one of them is no number
            return "not seen"
        return "gains" if self.mean > 0 else "costs"


def gain(method: list[float] | None, plain: list[float] | None, scale: float) -> Gain | None:
    if method is None or plain is None:
        return None
    by_seed = [scale * (a - b) for a, b in zip(method, plain, strict=True)]
    known = all(map(math.isfinite, by_seed))
    half = T95[len(by_seed)] * stdev(by_seed) / len(by_seed) ** 0.5 if known else math.nan
    return Gain(fmean(by_seed), half, sum(each > 0 for each in by_seed), len(by_seed))


class Result(NamedTuple):
    """A method and all that stands beside it; by end, "mean" and "worst"."""

    method: Method
    ground: Ground
    scores: dict[str, dict[str, list[float] | None]]  # "alone", "plain", "method", "pooled" -> end -> by seed
    gains: dict[str, Gain | None]
    above_alone: Gain | None  # in the mean
    cost: dict[str, tuple[float, float]]  # figure of COST -> of the method, of plain mixing


def results(table: Table, stored: Stored) -> list[Result]:
    """Of the methods whose row is whole, in the order of methods.toml."""
    found = []
    for method in table.methods:
        ground = table.grounds[method.ground]
        rows = kept(table, stored, ground)
        if values(rows, method.name, metric(ground, method, "mean")) is None:
            continue
        scores = {}
        for name, label, baseline, of in (
            ("alone", "", ALONE, None), ("plain", PLAIN, "", None), ("method", method.name, "", method),
            ("pooled", "", POOLED, None),
        ):  # fmt: skip
            scores[name] = {end: values(rows, label, metric(ground, of, end), baseline) for end in ("mean", "worst")}
        gains = {end: gain(scores["method"][end], scores["plain"][end], ground.scale) for end in ("mean", "worst")}
        above = gain(scores["method"]["mean"], scores["alone"]["mean"], ground.scale)
        both = {key: [values(rows, name, key) for name in (method.name, PLAIN)] for key in COST}
        cost = {key: (min(own), min(plain)) for key, (own, plain) in both.items() if own and plain}
        found.append(Result(method, ground, scores, gains, above, cost))
    return found


# --- writing it


def spread(by_seed: list[float] | None, scale: float, digits: int = 1) -> str:
    if by_seed is None:
        return DASH
    if not all(map(math.isfinite, by_seed)):
        return "diverges"
    sd = f" ± {scale * stdev(by_seed):.{digits}f}" if len(by_seed) > 1 else ""
    return f"{scale * fmean(by_seed):.{digits}f}{sd}"


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)


def told(found: Gain | None, digits: int) -> str:
    if found is None:
        return DASH
    return f"{signed(found.mean, digits)} ± {found.half:.{digits}f} ({found.up} of {found.of})"


def markdown(table: Table, stored: Stored) -> str:
    """table.md."""
    found = results(table, stored)
    lines = [
        "# Methods beside plain mixing",
        "",
        "Made by `python experiments/imaging/table.py` of expected.json; README.md says how to read it.",
        "",
        f"Scores: mean ± standard deviation over {len(table.seeds)} seeds, of the mean of the hospitals / of the worst "
        "hospital; in percent, of reconstructions dB. *Gain*: the method less plain mixing, paired by seed, with half "
        "of its 95 % interval, and in how many seeds it is above zero; mean / worst hospital. It *gains* or *costs* "
        "where the interval leaves out zero. *Bytes*: what a hospital sends in a round. *ms*: milliseconds of a "
        "processor for a round of all hospitals, of the quickest seed. Both also as a multiple of plain mixing.",
        "",
        f"| {' | '.join(HEAD)} |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(each) for each in found),
        "",
        "## The lines",
        "",
        "What is added to the experiment file of the data.",
        "",
        "| method | source | line |",
        "|---|---|---|",
        *(
            f"| {each.method.name} | {each.method.source} | {each.method.line.replace('|', chr(92) + '|')} |"
            for each in found
        ),
        "",
        "## The data",
        "",
        "| data | what | score | file |",
        "|---|---|---|---|",
        *(f"| {each.name} | {each.data} | `{each.score}` | {_link(each)} |" for each in table.grounds.values()),
        "",
        "## Where a method does not help",
        "",
        *_not(found),
    ]
    absent = [each.name for each in table.methods if each.name not in {one.method.name for one in found}]
    if absent:
        lines += ["", "## Not computed yet", "", f"{'; '.join(absent)}: `python experiments/imaging/table.py` goes on."]
    why = "What asks for data, stages or a score that no row has, or is no training: with its file in tests/."
    held = ((name, f"`{test}`" if test else "no test shows an effect") for name, test in table.elsewhere.items())
    lines += ["", "## Not in this table", "", why, "", *(f"- {name}: {test}" for name, test in held)]
    return "\n".join(lines) + "\n"


def _link(ground: Ground) -> str:
    path = ground.experiment.resolve()
    name = path.name if path.parent == HERE else path.parent.name
    return f"[{name}]({Path(os.path.relpath(path, HERE)).as_posix()})"


def _line(each: Result) -> str:
    ground, digits = each.ground, 2 if each.ground.unit == "dB" else 1
    scores = [
        " / ".join(spread(each.scores[name][end], ground.scale, digits) for end in ("mean", "worst"))
        for name in ("alone", "plain", "method", "pooled")
    ]
    gains = " / ".join(told(each.gains[end], digits) for end in ("mean", "worst"))
    cells = [each.method.name, each.method.claims, ground.name, *scores, gains, verdict(each), *costs(each)]
    return f"| {' | '.join(cells)} |"


def verdict(each: Result) -> str:
    """What came of it, in words, by the intervals alone."""
    mean, worst = (found.word if found else DASH for found in (each.gains["mean"], each.gains["worst"]))
    word = mean if mean == worst else f"{mean} / {worst}"
    below = each.above_alone is not None and each.above_alone.word == "costs"
    return f"{word}, below alone" if below else word


def costs(each: Result) -> list[str]:
    """Bytes and milliseconds."""
    cells = []
    for key, factor in zip(COST, (1.0, 1e3), strict=True):
        if key not in each.cost:
            cells.append(DASH)
            continue
        own, plain = (factor * value for value in each.cost[key])
        figure = f"{own:,.0f}" if own >= 100 else f"{own:.2g}"
        cells.append(f"{figure} ({own / plain:.2g} {TIMES})" if plain else figure)
    return cells


def _not(found: list[Result]) -> list[str]:
    """Say of which methods no gain was seen, and what is to be said of each."""
    lines = []
    for each in found:
        words = [each.gains[end].word for end in ("mean", "worst") if each.gains[end]]  # type: ignore[union-attr]
        if "gains" in words and not each.method.note:
            continue
        words = [{"costs": "it costs", "gains": "it gains"}.get(word, "no difference is seen") for word in words]
        said = words[0] if len({*words}) == 1 else f"{words[0]} in the mean, {words[1]} at the worst hospital"
        lines.append(f"- **{each.method.name}** ({each.ground.name}): {said}. {each.method.note}".rstrip())
    return lines


def draw(table: Table, stored: Stored, path: Path) -> None:
    """picture.png: gains, mean and worst hospital, with their 95 % intervals."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from p2pfl.reporting import style

    found = results(table, stored)
    if not found:
        return
    units = [unit for unit in ("%", "dB") if any(each.ground.unit == unit for each in found)]
    groups = {unit: [each for each in found if each.ground.unit == unit] for unit in units}
    ink, muted, rule, paper = style.FILE
    with matplotlib.rc_context(style.FILE_STYLE):
        heights = [len(groups[unit]) + 1.2 for unit in units]
        figure = Figure(figsize=(7.2, 0.2 * sum(heights) + 1.2), layout="constrained", facecolor=paper)
        grid = figure.add_gridspec(len(units), 1, height_ratios=heights)
        for place, unit in enumerate(units):
            axes, members = figure.add_subplot(grid[place]), groups[unit]
            axes.axvline(0, color=muted, linewidth=0.8)
            axes.hlines(
                range(len(members)), 0, 1, transform=axes.get_yaxis_transform(), color=rule, linewidth=0.6, zorder=0
            )
            for series, (end, name) in enumerate((("mean", "mean of hospitals"), ("worst", "worst hospital"))):
                points = [(row, each.gains[end]) for row, each in enumerate(members) if each.gains[end]]
                at = [row + 0.3 * (series - 0.5) for row, _ in points]
                axes.errorbar(
                    [one.mean for _, one in points if one], at, xerr=[one.half for _, one in points if one],
                    linestyle="none", marker="os"[series], markersize=4, elinewidth=0.9, markeredgewidth=0,
                    color=style.FILE_PALETTE[series], label=name,
                )  # fmt: skip
            names = [f"{each.method.name}  ({each.ground.name})" for each in members]
            axes.set_yticks(range(len(members)), names)
            axes.tick_params(axis="y", length=0, labelcolor=ink)
            axes.set_ylim(len(members) - 0.4, -0.6)
            axes.spines["left"].set_visible(False)
            axes.set_xlabel("points" if unit == "%" else "dB", fontsize=8)
            if place == 0:
                axes.set_title("The method less plain mixing, 95 % interval over seeds", fontsize=9, loc="left")
                figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=2)
        FigureCanvasAgg(figure).print_figure(path, dpi=110)


# --- the command


def load(path: Path = HERE / "expected.json") -> Stored:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def save(table: Table, stored: Stored) -> None:
    """Write expected.json, table.md and picture.png."""
    order = {name: stored[name] for name in table.grounds if stored.get(name)}
    (HERE / "expected.json").write_text(json.dumps(order, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (HERE / "table.md").write_text(markdown(table, stored), "utf-8")
    draw(table, stored, HERE / "picture.png")


def chosen(table: Table, only: Sequence[str]) -> set[str]:
    """The names of the methods that --only leaves. Ends the program where there is none such."""
    left = set()
    for text in only:
        key, sign, name = text.partition("=")
        hit = {
            each.name
            for each in table.methods
            if (sign and key == "ground" and each.ground == name) or each.name == text
        }
        if not hit:
            near = difflib.get_close_matches(text, [each.name for each in table.methods], 1)
            way = (
                f"did you mean {near[0]!r}?" if near else f"there are {'; '.join(each.name for each in table.methods)}"
            )
            sys.exit(f"--only {text!r}: no such method; {way}")
        left |= hit
    return left or {each.name for each in table.methods}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the table of methods.")
    parser.add_argument("--only", action="append", default=[], metavar="METHOD|ground=NAME", help="only these rows")
    parser.add_argument("--again", action="store_true", help="make rows anew that expected.json has")
    parser.add_argument("--draw", action="store_true", help="write table.md and picture.png of expected.json alone")
    parser.add_argument("--out", type=Path, default=Path("runs/imaging"), help="where the runs go")
    parser.add_argument("--workers", type=int, help="runs at once; as many as there are cores")
    given = parser.parse_args()
    table, stored = read(), load()
    wanted = chosen(table, given.only)
    for ground in () if given.draw else table.grounds.values():
        own = [each.name for each in table.methods if each.ground == ground.name and each.name in wanted]
        if not own:
            continue
        if given.again:  # with what they stand beside
            anew = {*own, PLAIN, None}
            stored[ground.name] = [
                row for row in stored.get(ground.name, []) if row["labels"].get("method") not in anew
            ]
            if (given.out / ground.name / "sweep.toml").is_file():  # whose runs would be taken for new ones
                shutil.rmtree(given.out / ground.name)
        names, baselines = missing(table, stored, ground)
        names = [name for name in names if name == PLAIN or name in wanted]
        if not names and not baselines:
            continue
        whole = make(table, ground, names, baselines, given.out, given.workers)
        torn = take(table, stored, ground, given.out)
        save(table, stored)
        if torn:
            print(f"{ground.name}: not whole, and not taken: {', '.join(torn)}", file=sys.stderr)
        if not whole:
            sys.exit("interrupted; run the same command again to continue")
    save(table, stored)
    print(f"table: {HERE / 'table.md'}")


if __name__ == "__main__":
    main()
