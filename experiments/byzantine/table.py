"""Rules against liars, on graphs: the worst honest node, beside no attack and every node alone.

    python experiments/byzantine/table.py                    # all that expected.json lacks, then the files below
    python experiments/byzantine/table.py --only monna --only ring
    python experiments/byzantine/table.py --again --only dos # anew, though it is there
    python experiments/byzantine/table.py --draw             # the files below alone

Each cell is experiment.toml with a graph, a rule and liars. Cells of one rule, with all their attacks and seeds, are
simulated in one program: as many copies of the twelve nodes, which never hear of each other, each copy with the rows
and the liars of its cell. So it takes minutes instead of hours. A program's figures go to expected.json as soon as they
are there; table.md and picture.png are made of that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CHESTS = Path(os.environ.get("P2PFL_PNEUMONIA", DATA / "pneumoniamnist_rebuilt.npz"))
"""PneumoniaMNIST with the keys of MedMNIST, which is no part of the repository."""
NODES, SEEDS = 12, (0, 1, 2, 3, 4)
LIARS = {1: (2,), 2: (2, 8), 3: (2, 5, 8)}
"""Who lies. On graphs other than the complete one no neighbourhood has both nodes 2 and 8."""
RULES = {
    "plain mixing": "",
    "clip": '{{name="clip", f={f}}}',
    "trimmed mean": '{{name="trimmed_mean", f={f}}}',
    "trimmed mean, NNM": '{{name="trimmed_mean", f={f}, nnm=true}}',
    "median": '{{name="median", f={f}}}',
    "krum": '{{name="krum", f={f}}}',
    "multi-krum": '{{name="multi_krum", f={f}}}',
    "geometric median": '{{name="geometric_median", f={f}}}',
    "monna": '{{name="monna", f={f}}}',
    "dos": '{{name="dos"}}',
}
ATTACKS = {
    "label flip": 'by="label_flip"',
    "sign flip x10": 'by="sign_flip", scale=10.0',
    "ALIE": 'by="alie"',
    "IPM": 'by="ipm"',
    "dissensus": 'by="dissensus"',
    "equivocation": 'by="equivocation"',
}
FEWER = ("plain mixing", "trimmed mean", "median", "geometric median", "monna")
"""On X-rays."""
NONE, ALONE, EQUIVOCATION = "none", "every node alone", "equivocation"
COMMON = tuple(attack for attack in ATTACKS if attack != EQUIVOCATION)
"""Attacks on graphs other than the complete one, and on X-rays."""
MORE_OR_LESS = ("sign flip x10", "ALIE")
"""Attacks of one liar, or of more than rules expect."""
TOO_SMALL = {("ring", "krum"), ("ring", "multi-krum")}
"""With f = 1 these need five models, and on a ring a node has three: p2pfl refuses them."""
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


class Ground(NamedTuple):
    """A graph with data on it."""

    name: str
    data: str
    f: int  # lies that rules expect of a neighbourhood
    liars: tuple[int, ...]  # how many, by turns
    rules: tuple[str, ...] = tuple(RULES)
    attacks: tuple[str, ...] = tuple(ATTACKS)


GROUNDS = {
    each.name: each
    for each in (
        Ground("complete", "digits", 2, (2, 1, 3)),
        Ground("four-regular", "digits", 1, (2,), attacks=COMMON),
        Ground("two-cliques", "digits", 1, (2,), attacks=COMMON),
        Ground("ring", "digits", 1, (2,), attacks=COMMON),
        Ground("complete, X-rays", "pneumonia", 2, (2,), FEWER, COMMON),
        Ground("ring, X-rays", "pneumonia", 1, (2,), FEWER, COMMON),
    )
}


class Cell(NamedTuple):
    """What is measured, over all seeds."""

    ground: str
    rule: str
    attack: str
    liars: int  # 0: nobody


Figures = dict[str, list[float]]
"""worst and mean: accuracy of honest nodes on all test rows, by seed."""
Stored = dict[Cell, Figures]


def cells(rule: str) -> Iterator[Cell]:
    """All that there is to be measured of a rule, or of every node alone."""
    for ground in GROUNDS.values():
        graph = ground.name.partition(",")[0]
        if rule != ALONE and (rule not in ground.rules or (graph, rule) in TOO_SMALL):
            continue
        if rule == ALONE and graph != "complete":
            continue
        yield Cell(ground.name, rule, NONE, 0)
        if rule != ALONE:
            for liars in ground.liars:
                told = ground.attacks if liars == 2 else MORE_OR_LESS
                yield from (Cell(ground.name, rule, attack, liars) for attack in told)


def programs(missing: Sequence[Cell]) -> list[list[Cell]]:
    """The cells that go into one program: of one rule, one number of lies it expects, and data of one shape.

    Two attacks that tell each neighbour something else don't go together.
    """
    by: dict[Any, list[Cell]] = {}
    for cell in missing:
        ground = GROUNDS[cell.ground]
        by.setdefault((cell.attack == EQUIVOCATION, ground.data, ground.f, cell.rule), []).append(cell)
    return [by[key] for key in sorted(by, key=lambda key: key[:2])]


# --- making it


class Split(NamedTuple):
    """The rows of a seed, and whose they are."""

    dataset: Any
    parts: Any


@cache
def rows(data: str, seed: int) -> Split:
    import p2pfl

    dataset = p2pfl.data.digits(seed=seed) if data == "digits" else p2pfl.data.npz.load(CHESTS)
    x = dataset.train.x.reshape(len(dataset.train.y), -1), dataset.test.x.reshape(len(dataset.test.y), -1)
    train, test = (part._replace(x=each) for part, each in zip((dataset.train, dataset.test), x, strict=True))
    dataset = dataset._replace(train=train, test=test, validation=None)
    return Split(dataset, p2pfl.data.dirichlet(dataset, NODES, seed, alpha=1.0))


def pooled(splits: Sequence[Split]) -> Any:
    """The rows of many copies of the twelve nodes, each node a site. What it is tested on is not looked at."""
    first = splits[0].dataset
    x = np.concatenate([each.dataset.train.x[own] for each in splits for own in each.parts.train])
    y = np.concatenate([each.dataset.train.y[own] for each in splits for own in each.parts.train])
    many = [len(own) for each in splits for own in each.parts.train]
    sites = np.repeat(np.arange(len(many), dtype=np.int32), many)
    test = type(first.test)(first.test.x[:1], first.test.y[:1], np.zeros(1, np.int32))
    names = tuple(map(str, range(len(many))))
    return first._replace(train=type(first.train)(x, y, sites), test=test, sites=names)


def schedule(graphs: Sequence[str]) -> Any:
    """All copies in one schedule, in which none hears of another."""
    from p2pfl import topology
    from p2pfl.types import Schedule

    own = {name: topology.schedule(topology.load(HERE / f"{name}.toml")) for name in set(graphs)}
    many, slots = NODES * len(graphs), max(each.neighbor.shape[2] for each in own.values())
    neighbor = np.full((1, many, slots), -1, np.int32)
    weight = np.zeros((1, many, slots))
    for i, name in enumerate(graphs):
        part, here = own[name], slice(NODES * i, NODES * (i + 1))
        used = part.neighbor.shape[2]
        neighbor[:, here, :used] = np.where(part.neighbor >= 0, part.neighbor + NODES * i, -1)
        weight[:, here, :used] = part.weight
    return Schedule(neighbor, weight, weight, np.ones((1, many), bool))


def measure(program: Sequence[Cell]) -> Stored:
    """Simulate the cells of a program."""
    import jax

    import p2pfl
    from p2pfl.runs.simulated import simulate_federation

    copies = [(cell, seed) for cell in program for seed in SEEDS]
    ground, rule = GROUNDS[program[0].ground], program[0].rule
    lies = {
        attack: [NODES * i + node for i, (cell, _) in enumerate(copies) if cell.attack == attack
                 for node in LIARS[cell.liars]]
        for attack in dict.fromkeys(cell.attack for cell in program) if attack != NONE
    }  # fmt: skip
    told = ", ".join(f"{{nodes={nodes}, {ATTACKS[attack]}}}" for attack, nodes in lies.items())
    wrap = RULES.get(rule, "").format(f=ground.f)
    overrides = [
        'data={source="digits", partition="by_site"}',
        f'topology={{graph="random_regular", arguments={{d={NODES - 1}}}}}',  # stands for the pieces, see below
        f"attack=[{told}]",
        f"algorithm.wrap=[{wrap}]",
        *(['algorithm.name="local"'] if rule == ALONE else []),
    ]
    splits = [rows(GROUNDS[cell.ground].data, seed) for cell, seed in copies]
    federation = p2pfl.build(p2pfl.load_experiment(HERE / "experiment.toml", overrides), pooled(splits))
    pieces = schedule([cell.ground.partition(",")[0] for cell, _ in copies])  # p2pfl run takes no graph in pieces
    federation = federation._replace(learning=federation.learning._replace(schedule=pieces))
    models = simulate_federation(federation).models
    predict = jax.jit(jax.vmap(federation.learner.predict, in_axes=(0, None)))
    found: Stored = {cell: {"worst": [], "mean": []} for cell in program}
    for i, ((cell, _), split) in enumerate(zip(copies, splits, strict=True)):
        own = jax.tree.map(lambda leaf, i=i: leaf[NODES * i : NODES * (i + 1)], models)
        right = np.asarray(predict(own, split.dataset.test.x)).argmax(axis=-1) == split.dataset.test.y
        honest = [node for node in range(NODES) if node not in LIARS[cell.liars or 2]]
        score = right.mean(axis=1)[honest]
        found[cell]["worst"].append(round(float(score.min()), 4))
        found[cell]["mean"].append(round(float(score.mean()), 4))
    return found


# --- writing it


def load(path: Path = HERE / "expected.json") -> Stored:
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else []
    return {Cell(**row["cell"]): row["accuracy"] for row in kept}


def everything() -> list[Cell]:
    """All cells, in the order of the table."""
    return [cell for rule in (ALONE, *RULES) for cell in cells(rule)]


def keep(stored: Stored) -> None:
    """Write expected.json."""
    order = [cell for cell in everything() if cell in stored]
    lines = [json.dumps({"cell": cell._asdict(), "accuracy": stored[cell]}) for cell in order]
    (HERE / "expected.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


def save(stored: Stored) -> None:
    """Write expected.json, table.md and picture.png."""
    keep(stored)
    (HERE / "table.md").write_text(markdown(stored), "utf-8")
    draw(stored, HERE / "picture.png")


def said(stored: Stored, cell: Cell) -> str:
    """The figures of a cell: worst honest node, with its standard deviation over seeds, and the mean of all honest."""
    found = stored.get(cell)
    if found is None:
        return DASH
    worst = [100 * value for value in found["worst"]]
    return f"{fmean(worst):.1f} ± {stdev(worst):.1f} / {100 * fmean(found['mean']):.1f}"


def markdown(stored: Stored) -> str:
    """table.md."""
    lines = [
        "# Rules against liars",
        "",
        "Made by `python experiments/byzantine/table.py` of expected.json; README.md says how to read it. In each "
        f"cell: accuracy of the worst honest node, mean ± standard deviation over {len(SEEDS)} seeds / of the mean of "
        "the honest nodes, in percent of all test rows. Without attack, and alone: of the ten nodes that do not lie "
        "elsewhere.",
    ]
    for ground in GROUNDS.values():
        alone = Cell("complete, X-rays" if ground.data == "pneumonia" else "complete", ALONE, NONE, 0)
        for liars in ground.liars:
            who = f"{liars} liar{'s' if liars > 1 else ''} ({', '.join(map(str, LIARS[liars]))})"
            told = ground.attacks if liars == 2 else MORE_OR_LESS
            lines += [
                "", f"## {ground.name}: {who}, f = {ground.f}", "", f"Every node alone: {said(stored, alone)}.", "",
                f"| rule | {' | '.join((NONE, *told))} |", "|---|" + "---|" * (1 + len(told)),
            ]  # fmt: skip
            for rule in ground.rules:
                row = [Cell(ground.name, rule, NONE, 0)]
                row += [Cell(ground.name, rule, each, liars) for each in told]
                lines.append(f"| {rule} | {' | '.join(said(stored, cell) for cell in row)} |")
    absent = [cell for cell in everything() if cell not in stored]
    if absent:
        lines += ["", f"{DASH}: not computed yet, {len(absent)} of {len(everything())} cells."]
    return "\n".join(lines) + "\n"


def draw(stored: Stored, path: Path) -> None:
    """picture.png: the worst honest node, of each rule under each attack, on each graph."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from p2pfl.reporting import style

    panels = [(ground, liars) for ground in GROUNDS.values() for liars in sorted(ground.liars)]
    shades = LinearSegmentedColormap.from_list("shades", style.SHADES)
    ink, muted, _, paper = style.FILE
    with matplotlib.rc_context(style.FILE_STYLE):
        figure = Figure(figsize=(13.0, 7.2), layout="constrained", facecolor=paper)
        for place, (axes, (ground, liars)) in enumerate(zip(figure.subplots(2, 4).flat, panels, strict=True)):
            columns = (NONE, *(ground.attacks if liars == 2 else MORE_OR_LESS))
            table = np.full((len(RULES), len(columns)), np.nan)
            for row, rule in enumerate(RULES):
                for column, attack in enumerate(columns):
                    found = stored.get(Cell(ground.name, rule, attack, liars if attack != NONE else 0))
                    if found:
                        table[row, column] = 100 * fmean(found["worst"])
            axes.imshow(table, cmap=shades, vmin=0, vmax=100, aspect="auto")
            for (row, column), value in np.ndenumerate(table):
                part = [*RULES][row] in ground.rules
                text = f"{value:.0f}" if not np.isnan(value) else DASH if part else ""
                axes.text(column, row, text, ha="center", va="center", color=paper if value > 60 else ink, fontsize=7)
            alone = stored.get(Cell("complete, X-rays" if ground.data == "pneumonia" else "complete", ALONE, NONE, 0))
            beside = f"; alone {100 * fmean(alone['worst']):.0f}" if alone else ""
            axes.set_title(f"{ground.name}, {liars} of {NODES} lie{beside}", fontsize=8, loc="left")
            axes.set_yticks(range(len(RULES)), RULES if place % 4 == 0 else [""] * len(RULES))
            axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=7)
            axes.tick_params(length=0, labelcolor=ink)
            for side in axes.spines.values():
                side.set_visible(False)
        figure.suptitle(
            f"Accuracy of the worst honest node in percent, mean of {len(SEEDS)} seeds", fontsize=9, x=0.01, ha="left",
            color=muted,
        )  # fmt: skip
        FigureCanvasAgg(figure).print_figure(path, dpi=110)


# --- the command


def chosen(only: Sequence[str]) -> list[Cell]:
    """The cells that --only leaves. Ends the program where a word names nothing."""
    known = {*RULES, ALONE, *GROUNDS, *ATTACKS, NONE}
    if unknown := [word for word in only if word not in known]:
        sys.exit(f"--only {unknown[0]!r}: names nothing; there are {'; '.join(sorted(known))}")
    kinds = [{*RULES, ALONE}, {*GROUNDS}, {*ATTACKS, NONE}]
    wanted = [[word for word in only if word in kind] for kind in kinds]
    return [
        cell for cell in everything()
        if all(not words or value in words
               for words, value in zip(wanted, (cell.rule, cell.ground, cell.attack), strict=True))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the table of rules against liars.")
    parser.add_argument("--only", action="append", default=[], metavar="RULE|GRAPH|ATTACK", help="only these cells")
    parser.add_argument("--again", action="store_true", help="make cells anew that expected.json has")
    parser.add_argument("--draw", action="store_true", help="write table.md and picture.png of expected.json alone")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after that; call again to go on")
    given = parser.parse_args()
    stored, wanted = load(), chosen(given.only)
    if any(GROUNDS[cell.ground].data == "pneumonia" for cell in wanted) and not CHESTS.is_file() and not given.draw:
        print(f"X-rays are left out: no file {CHESTS}; P2PFL_PNEUMONIA names another place", file=sys.stderr)
        wanted = [cell for cell in wanted if GROUNDS[cell.ground].data == "digits"]
    left = [] if given.draw else programs([cell for cell in wanted if given.again or cell not in stored])
    start = time.perf_counter()
    for number, program in enumerate(left, start=1):
        began = time.perf_counter()
        if began - start > 60 * given.minutes:
            print(f"{len(left) - number + 1} of {len(left)} programs are left; call again to go on")
            return
        stored |= measure(program)
        keep(stored)
        first = program[0]
        took = time.perf_counter() - began
        print(f"{number} of {len(left)}: {first.rule}, {first.ground}, {len(program)} cells, {took:.0f} s", flush=True)
    save(stored)
    print(f"table: {HERE / 'table.md'}")


if __name__ == "__main__":
    main()
