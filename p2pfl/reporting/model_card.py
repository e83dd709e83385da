"""The card that goes with a model: where it comes from, how good it is at each site, what was shared. Counts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from p2pfl.reporting.published import SHOWN, between, named

USES: Mapping[str, str] = MappingProxyType(
    {
        "safetensors": (
            'import p2pfl\nmodel = p2pfl.load_model("{place}")\nmodel(rows)  # a DataFrame, or an array of {shape} -> '
            "{answers}"
        ),
        "orbax": (
            "import pathlib\nfrom orbax.checkpoint import StandardCheckpointer\n"
            'leaves = StandardCheckpointer().restore(pathlib.Path("{place}/checkpoint").resolve())'
        ),
        "stablehlo": (
            'import pathlib\nfrom jax import export\ncontent = pathlib.Path("{place}/model.stablehlo").read_bytes()\n'
            "model = export.deserialize(bytearray(content))\n"
            "model.call(x)  # {shape} {dtype}, numbers as their source has them -> {answers}"
        ),
        "onnx": (
            'import onnxruntime\nsession = onnxruntime.InferenceSession("{place}/model.onnx")\n'
            "session.run(None, {{session.get_inputs()[0].name: x}})  # {shape} {dtype} -> {answers}"
        ),
    }
)
"""Format of an export -> how the model is called."""
_ANSWERS: Mapping[str, str] = MappingProxyType(
    {
        "classes": "probabilities",
        "labels": "probabilities",
        "segmentation": "probabilities of each pixel",
        "reconstruction": "the image",
        "regression": "the numbers",
        "survival": "the logarithm of the relative risk",
    }
)


class Carded(NamedTuple):
    """A model that a card is of."""

    said: str  # which it is, in words
    node: int | None  # whose; None: of no single one
    answer: str  # "": the node's model itself
    form: str  # a name of USES
    place: str  # the name of its directory
    dtype: str


def text(model: Carded, facts: Mapping[str, Any], assessment: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The card in Markdown.

    `facts`: of model.json. `assessment` and `summary`: the files of a run; {} where it has none. What it says of sites
    stands in those, and nothing else.
    """
    experiment = facts["experiment"]
    parts = [
        f"# Model card: {experiment['name']}",
        _what(model, facts),
        *_whole(summary),
        _training(facts, summary),
        *_sites(facts, assessment),
        *_scores(model, assessment),
        _shared(facts),
        _use(model, facts),
        _versions(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _what(model: Carded, facts: Mapping[str, Any]) -> str:
    outputs, inputs = ", ".join(facts["classes"]), facts["features"] or []
    rows = [
        f"It is {model.said}.",
        "",
        f"- Predicts: {facts['kind']} ({outputs}); it puts out {_ANSWERS[facts['kind']]}.",
        f"- A row: {' x '.join(map(str, facts['shape']))} numbers"
        + (f": {', '.join(inputs[:100])}{', ...' if len(inputs) > 100 else ''}." if inputs else "."),
        f"- How rows become such numbers stands in `model.json` ({_preparation(facts)}).",
    ]
    return "\n".join(rows)


def _preparation(facts: Mapping[str, Any]) -> str:
    recipe, normalized = facts["recipe"], facts["experiment"]["statistics"]["normalize"]
    found = ["columns, categories, missing cells"] if recipe and recipe["reader"] == "table" else []
    found += ["reading of pixels"] if recipe and recipe["reader"] == "files" else []
    found += ["scaling"] if recipe else ["they are as a function of the owner's returns them"]
    return ", ".join(found) + ("; means and deviations of all nodes are part of the model" if normalized else "")


def _whole(summary: Mapping[str, Any]) -> list[str]:
    reasons = summary.get("incomplete") or ()
    return ["**The run was not whole:** " + "; ".join(map(str, reasons)) + "."] if reasons else []


def _training(facts: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    experiment, training = facts["experiment"], facts["experiment"]["training"]
    topology, model = experiment["topology"], experiment.get("model") or {}
    graph = topology.get("graph") or "a graph of a file"
    rules = training["optimizer"]
    optimizer = ", then ".join(_called(rule) for rule in (rules if isinstance(rules, list | tuple) else [rules]))
    objective = ", ".join(_called(each) for each in training.get("objective", ()))
    lost = summary.get("lost") or ()
    rows = [
        "## Training",
        "",
        f"- Algorithm: {facts['algorithm']}, {experiment['rounds']} rounds on {graph}, {facts['members']} nodes"
        + (f", of which {len(lost)} were lost" if lost else "")
        + "; no server.",
        f"- Model: {_called(model)}.",
        f"- Local steps: {training['local_steps']} of {training['batch_size']} rows a round, "
        f"{optimizer}"
        + (f"; loss {training['loss']}" if training.get("loss") else "")
        + (f"; objective {objective}" if objective else "")
        + f"; seed {experiment['seed']}.",
    ]
    return "\n".join(rows)


def _called(table: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key} = {value}" for key, value in table.items() if key != "name")
    return f"{table.get('name', 'none')}" + (f" ({arguments})" if arguments else "")


def _sites(facts: Mapping[str, Any], assessment: Mapping[str, Any]) -> list[str]:
    rows = assessment.get("rows") or {}
    if not rows:
        return ["## Data\n\nThe run has not assessed its models: no counts are known."]
    lines = ["## Data", "", "| Node | Training rows | Test rows |", "|---|---|---|"]
    for node, each in rows.items():
        name = (assessment.get("names") or {}).get(node, f"node {node}")
        cells = [_count(each[part], facts["classes"]) for part in ("train", "test")]
        lines.append(f"| {_cell(name)} | {cells[0]} | {cells[1]} |")
    return ["\n".join(lines)]


def _count(part: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Rows, and of how many each outcome is, as far as the run says it."""
    outcomes = part.get("classes") or part.get("labels")
    if outcomes and len(outcomes) <= 10:
        named_ones = ", ".join(f"{_cell(name)} {count}" for name, count in zip(classes, outcomes, strict=True))
        return f"{part['rows']} ({named_ones})"
    return f"{part['rows']}" + (f" (events {part['events']})" if "events" in part else "")


def _scores(model: Carded, assessment: Mapping[str, Any]) -> list[str]:
    nodes = assessment.get("nodes") or {}
    first: dict[str, Any] = next(iter(nodes.values()), {})
    if model.answer not in first:
        return []
    shown = [name for name in SHOWN if name in next(iter(first[model.answer].values()), {})]
    lines = ["## Metrics", ""]
    whose = "each node's model" if not model.answer else f"`{model.answer}` of each node"
    lines.append(
        f"Of {whose}, on its own test rows and on those of all; in brackets 95 % intervals, where the run "
        "has made them."
        + (" The mean of the models itself was not tested." if model.node is None and len(nodes) > 1 else "")
    )
    lines += ["", f"| Node | Test rows | {' | '.join(map(named, shown))} |", "|---" * (2 + len(shown)) + "|"]
    scopes = {"own": "own", "pooled": "all"}
    for node, each in nodes.items():
        name = (assessment.get("names") or {}).get(node, f"node {node}")
        for scope, word in scopes.items():
            found = each.get(model.answer, {}).get(scope)
            if found is None:
                continue
            bounds, few = (
                (assessment.get(name) or {}).get(node, {}).get(scope, {}) if not model.answer else {}
                for name in ("intervals", "too_few")
            )
            cells = [between(found.get(metric), bounds.get(metric), few=few.get(metric)) for metric in shown]
            lines.append(f"| {_cell(name)} | {word} | {' | '.join(cells)} |")
    return ["\n".join(lines), "Nothing is known of other sites, or of other times."]


def _shared(facts: Mapping[str, Any]) -> str:
    experiment = facts["experiment"]
    algorithm, statistics = experiment["algorithm"], experiment["statistics"]
    gathered = [*statistics["gather"], *(["moments"] if statistics["normalize"] else [])]
    share, wraps = algorithm.get("share"), algorithm.get("wrap") or ()
    patterns = "all leaves" if share is None else share if isinstance(share, str) else ", ".join(map(str, share))
    if facts["link"] == "none":
        travels = "nothing: every node learned alone"
    else:
        travels = f"{facts['travels']}, between neighbours of the graph ({patterns}); no rows"
    rows = [
        "## What was shared, and privacy",
        "",
        f"- Left a site: {travels}.",
        f"- Sums over each site's rows: {', '.join(dict.fromkeys(gathered)) or 'none'}"
        + (
            f", of at least {statistics['minimum']} rows, with noise of standard deviation {statistics['noise']:g}."
            if gathered
            else "."
        ),
        f"- Around the algorithm: {', '.join(map(_called, wraps)) or 'nothing'}.",
    ]
    return "\n".join(rows)


def _use(model: Carded, facts: Mapping[str, Any]) -> str:
    shape = f"[rows, {', '.join(map(str, facts['shape']))}]"
    call = USES[model.form].format(place=model.place, shape=shape, dtype=model.dtype, answers=_ANSWERS[facts["kind"]])
    more = {"orbax": "The leaves alone, by their path in the model; `model.json` says what they are."}.get(
        model.form, ""
    )
    if model.form in ("stablehlo", "onnx"):
        more = (
            "Filling in and scaling are part of the function, coding of text is not: columns as above, NaN where a "
            "cell is missing and the run filled it in."
        )
    if model.form == "stablehlo":
        more += " It needs jax and flatbuffers, and not p2pfl."
        more += ' In float64: `jax.config.update("jax_enable_x64", True)`.' if model.dtype == "float64" else ""
    return f"## Use\n\n```python\n{call}\n```" + (f"\n\n{more}" if more else "")


def _versions(facts: Mapping[str, Any]) -> str:
    return "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())


def _cell(name: str) -> str:
    """A name that stands in a table of Markdown."""
    return str(name).replace("|", "\\|").replace("\n", " ")
