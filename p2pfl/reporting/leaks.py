"""The leak report of `p2pfl audit`, in words: tables for the page and lines for the terminal, out of audit.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pfl.reporting.published import Learned
from p2pfl.reporting.run_data import DASH, measured

RECOGNISED = 12.0
"""dB below which nothing is recognised any more, as a rule of thumb; beside it stands what a guess attains."""


def tables(leaked: Mapping[str, Any]) -> list[Learned]:
    """Return the tables of a leak report: rows found, nodes over the graph, membership, rank."""
    found = [_inversion(leaked), _graph(leaked), _far(leaked), _membership(leaked), _model(leaked), _rank(leaked)]
    return [table for table in found if table is not None]


def lines(leaked: Mapping[str, Any]) -> list[str]:
    """Return the leak report as lines of plain text."""
    text = [headline(leaked), ""]
    for table in tables(leaked):
        width = [max(len(row[i]) for row in [table.heads, *table.rows]) for i in range(len(table.heads))]
        for row in [table.heads, *table.rows]:
            cells = [each.ljust(size) if i == 0 else each.rjust(size) for i, (each, size) in
                     enumerate(zip(row, width, strict=True))]  # fmt: skip
            text.append("  ".join(cells).rstrip())
        text += [table.caption, ""]
    return text + [f"note: {note}" for note in leaked.get("notes", [])]


def headline(leaked: Mapping[str, Any]) -> str:
    """Say what the strongest attack on the run as it is has found."""
    own = [row for row in _rows(leaked, "inversion") if row.get("own")]
    guess = next((row for row in own if row.get("attack") == "guess"), {})
    best = max((row for row in own if row.get("attack") != "guess"), key=lambda row: _db(row), default=None)
    who = f"Node {leaked.get('node')} attacks node {leaked.get('victim')}"
    who += " in the sum of its neighbours" if leaked.get("masks") else ""
    if best is None:
        return f"{who}."
    member = leaked.get("membership") or {}
    auc = [measured((member.get(key) or {}).get("auc")) for key in ("loss", "shadows")]
    known = [each for each in auc if each is not None]
    untrained = measured((member.get("guess") or {}).get("auc"))
    beside = "" if untrained is None else f"; {untrained:.2f} by the model before the first round"
    tells = f" Who was trained on is told with an AUC of {max(known):.2f} (0.5: not at all{beside})." if known else ""
    if _db(best) <= _db(guess):
        rows = f"no row comes back nearer than {_number(guess.get('psnr'))} dB, to which a guess by class comes as well"
    else:
        rows = (
            f"rows come back with {_number(best.get('psnr'))} dB in the mean, by {best.get('attack')}; a guess by "
            f"class comes to {_number(guess.get('psnr'))} dB"
        )
    return f"{who}. As the run is ({best.get('said')}), {rows}.{tells}"


def _db(row: Mapping[str, Any]) -> float:
    found = measured(row.get("psnr"))
    return -1e9 if found is None else found


def _rows(leaked: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = leaked.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _number(value: object, digits: int = 1) -> str:
    found = measured(value)
    return DASH if found is None else f"{found:.{digits}f}"


def _inversion(leaked: Mapping[str, Any]) -> Learned | None:
    """PSNR of every attack in every setting."""
    rows = _rows(leaked, "inversion")
    if not rows:
        return None
    names = list(dict.fromkeys(str(row.get("attack")) for row in rows))
    cases: dict[Any, dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row.get("case"), {})[str(row.get("attack"))] = row
    body = []
    for found in cases.values():
        first = next(iter(found.values()))
        label = f"{first.get('said')}{' (this run)' if first.get('own') else ''}"
        body.append([label, str(first.get("rows")), *(_cell(found.get(name)) for name in names)])
    caption = (
        "Rows of the first round's message, searched for by what it has changed: PSNR in dB, the mean over pairs (in "
        "brackets the nearest pair), and of images from 11 x 11 pixels on the mean SSIM. Below "
        f"{RECOGNISED:g} dB nothing is recognised, as a rule of thumb; a guess is "
        "the mean of the attacker's own rows of a class, who was sent nothing. With masks a neighbour is sent the "
        "weighted sum of its neighbours alone, and the rows are those of all of them."
    )
    return Learned(caption, ["setting", "rows", *names], body)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return DASH
    like = measured(row.get("ssim"))
    return f"{_number(row.get('psnr'))} ({_number(row.get('best'))})" + ("" if like is None else f", {like:.2f}")


def _graph(leaked: Mapping[str, Any]) -> Learned | None:
    """Who is solved for over the graph."""
    graph = leaked.get("graph") or {}
    rows = _rows(graph, "nodes")
    if not rows:
        return None
    masks = bool(graph.get("masks"))  # then all of it is with masks
    body = [
        [
            f"node {row.get('node')}", str(row.get("distance")), _listed(row.get("rounds") or []),
            _share(row.get("off")), "yes" if row.get("steady") else "no", _share(row.get("steady_off")),
            *([] if masks else
              ["exactly" if row.get("masked") else "if steady" if row.get("masked_steady") else "no"]),
        ]
        for row in rows
    ]  # fmt: skip
    caption = (
        f"Whose contributions node {leaked.get('node')} solves for by all that it is sent in {graph.get('rounds')} "
        f"rounds: {graph.get('rank')} independent equations of {graph.get('unknown')} unknown contributions. Error: "
        "of what it solves for, relative to the truth. Steady: if each contributes the same in every round."
        + (" Masks leave it the weighted sum of its neighbours." if masks else "")
    )
    heads = ["", "distance", "exactly, of rounds", "error", "if steady", "error if steady"]
    return Learned(caption, heads if masks else [*heads, "with masks"], body)


def _listed(rounds: Sequence[Any]) -> str:
    return ", ".join(map(str, rounds)) or "none"


def _share(value: object) -> str:
    found = measured(value)
    return DASH if found is None else f"{found:.2g}"


def _far(leaked: Mapping[str, Any]) -> Learned | None:
    rows = _rows(leaked.get("graph") or {}, "inversion")
    if not rows:
        return None
    body = [
        [f"node {row.get('node')}, round {row.get('round')}, {row.get('how')}", str(row.get("attack")), _cell(row)]
        for row in rows
    ]
    return Learned(
        "Rows searched for in contributions that were solved for over the graph: PSNR in dB.",
        ["", "attack", "dB"],
        body,
    )


def _membership(leaked: Mapping[str, Any]) -> Learned | None:
    member = leaked.get("membership") or {}
    names = {
        "guess": "a guess: the model before the first round", "loss": "loss alone",
        "shadows": "beside shadow models (LiRA, offline)",
    }  # fmt: skip
    body = [
        [words, _number(member[key].get("auc"), 3), f"{100 * (measured(member[key].get('caught')) or 0):.1f} %"]
        for key, words in names.items() if isinstance(member.get(key), dict)
    ]  # fmt: skip
    if not body:
        return None
    caption = (
        f"Membership: {member.get('rows')} rows, half of them trained on by node {leaked.get('victim')}, as many of "
        f"each class, by what node {leaked.get('node')} was sent in round {member.get('round')}. The others are test "
        f"rows of {'the same node' if member.get('same_site') else 'all nodes'}. A guess is by the model "
        "before the first round: what it tells are rows that differ for another reason. Caught: members found at 1 % "
        "of false alarms."
    )
    return Learned(caption, ["", "AUC", "caught"], body)


def _model(leaked: Mapping[str, Any]) -> Learned | None:
    model = leaked.get("model") or {}
    if not model:
        return None
    body = [["found", _number(model.get("psnr"))], ["a guess: the attacker's own mean", _number(model.get("guess"))]]
    caption = (
        "Model inversion: what the model takes most surely for each class, beside the mean of the victim's rows of "
        "that class: PSNR in dB, the mean over classes."
    )
    return Learned(caption, ["", "dB"], body)


def _rank(leaked: Mapping[str, Any]) -> Learned | None:
    rank = leaked.get("rank") or {}
    rows = _rows(rank, "layers")
    if not rows:
        return None
    body = [[str(row.get("layer")), str(row.get("unknown")), str(row.get("rank"))] for row in rows]
    caption = (
        f"Rank analysis (R-GAP): numbers of a layer's input against independent equations for them, for one row and "
        f"one step. Index {_number(rank.get('index'), 1)}: 0 where all follow; the farther below, the less does."
    )
    return Learned(caption, ["layer", "unknown", "equations"], body)
