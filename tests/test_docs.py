"""What is documented is what is there: every field, default, preset and option, or red."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
from test_floors import ABOVE, WORDS

from p2pfl import churn
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.experiment import TABLES, Experiment, NodeFile
from p2pfl.config.unions import tagged, tags_of
from p2pfl.data import BUILTIN, csv, folder, medmnist, npz
from p2pfl.data.partition import PARTITIONS
from p2pfl.learning import models, quadratic
from p2pfl.methods import answers, compose, sharing, statistics
from p2pfl.methods.objectives import OBJECTIVES
from p2pfl.protocol.timing import PRESETS, Timing
from p2pfl.reporting.terminal import DASH
from p2pfl.topology import GRAPHS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "experiment.md").read_text("utf-8")


def inlined(kind: type[Any], field: str) -> bool:
    """Whether a field holds a table whose fields stand in the table around it."""
    union = tagged(get_type_hints(kind, include_extras=True)[field])
    return union is not None and union.inline


def fields(heading: str) -> dict[str, list[dataclasses.Field[Any]]]:
    """Of each field of a table, what it is in each kind that has it."""
    found: dict[str, list[dataclasses.Field[Any]]] = {}
    for kind in TABLES[heading]:
        for field in dataclasses.fields(kind):
            if not inlined(kind, field.name):
                found.setdefault(field.name, []).append(field)
    return found


def everywhere(heading: str, name: str) -> bool:
    """Whether all kinds have a field; of [data], all sources."""
    known = [{field.name for field in dataclasses.fields(kind)} for kind in TABLES[heading]]
    return all(name in names for names in known if heading != "[data]" or "source" in names)


def section(heading: str) -> str:
    """The text below a heading, up to the next one of its kind or higher."""
    parts = re.split(rf"^## {re.escape(heading)}$", PAGE, flags=re.MULTILINE)
    assert len(parts) == 2, f"docs/experiment.md has {len(parts) - 1} headings '## {heading}'"
    return re.split(r"^##? ", parts[1], flags=re.MULTILINE)[0]


def rows(text: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is headed `first`: name -> the other cells."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[0] == first)
        if inside and cells[0].startswith("`"):
            name = cells[0].strip("`")
            assert name not in found, f"{name} stands twice"
            found[name] = cells[1:]
    return found


def of_the_source(heading: str, name: str) -> Any:
    """The default of a field that is None in the dataclass because the source or the model has its own."""
    sources = (*BUILTIN.values(), npz.load, csv.CsvTable, medmnist.load, folder.load, quadratic.quadratic)
    makers = {"[data]": sources, "[model]": tuple(models.MODELS.values())}.get(heading, ())
    parameters = [inspect.signature(maker).parameters.get(name) for maker in makers]
    given = {p.default for p in parameters if p is not None and p.default is not p.empty}
    given = given - {None} or given  # what a model takes for None, its text says
    assert len(given) <= 1, f"{name} has several defaults: {given}"
    return given.pop() if given else None


@pytest.mark.parametrize("heading", TABLES)
def test_every_field_and_its_default_are_documented(heading: str) -> None:
    documented, known = rows(section(heading), "Field"), fields(heading)
    assert list(documented) and set(documented) == set(known)
    for name, kinds in known.items():
        type_, default, meaning = documented[name]
        assert type_ and meaning
        factories = [field.default_factory for field in kinds if field.default_factory is not dataclasses.MISSING]
        defaults = {field.default for field in kinds if field.default is not dataclasses.MISSING}
        if not defaults and not factories and everywhere(heading, name):
            assert default == "required", name
            continue
        value = factories[0]() if factories else max(defaults, key=lambda each: each is not None, default=None)
        value = of_the_source(heading, name) if value is None else value
        if value is None:
            assert default == DASH, name
            continue
        if dataclasses.is_dataclass(value):  # a table whose fields have defaults of their own
            value = {} if value == type(value)() else value  # type: ignore[misc]
        said = tomllib.loads(f"value = {default.strip('`')}")["value"]
        assert said == (list(value) if isinstance(value, tuple) else value), name
        assert type(said) is (list if isinstance(value, tuple) else type(value)), name


@pytest.mark.parametrize("field", Timing._fields)
def test_every_preset_is_documented(field: str) -> None:
    documented = rows(section("[network]"), "Timing")
    assert set(documented) == set(Timing._fields)
    *values, meaning = documented[field]
    assert meaning and list(PRESETS) == ["local", "lan", "wan"]
    assert [float(value) for value in values] == [getattr(preset, field) for preset in PRESETS.values()]


def tags(heading: str, field: str) -> list[str]:
    """The names of the kinds of a table."""
    return [name for kind in TABLES[heading] for tag in tags_of(kind, (field,)).values() for name in tag.names]


def test_every_name_that_a_field_can_hold_is_documented() -> None:
    for heading, names in (
        ("[data]", [*tags("[data]", "source"), *PARTITIONS, *tags("[data]", "partition")]),
        ("[model]", [*models.MODELS, *tags("[model]", "name")]),
        ("[topology]", list(GRAPHS)),
    ):
        for name in names:
            assert f"`{name}`" in section(heading), name
    from p2pfl.algorithms import ALGORITHMS

    assert all(f"`{name}`" in section("[algorithm]") for name in ALGORITHMS)
    assert set(rows(section("[data]"), "Partition")) == set(PARTITIONS)
    assert set(rows(section("[[churn]]"), "Event")) == set(churn.EVENTS)
    assert set(rows(section("[[churn]]"), "Model")) == set(churn.MODELS)
    for kind in TABLES["[[churn]]"]:
        known = {field.name: field for field in dataclasses.fields(kind)}
        tag = "event" if "event" in known else "model"
        must = {name for name, field in known.items() if field.default is dataclasses.MISSING} - {tag}
        for name in tags_of(kind, (tag,))[tag].names:
            said = set(re.findall(r"\w+", rows(section("[[churn]]"), tag.capitalize())[name][0])) - {"or"}
            assert must <= said <= set(known) - {tag}, name


def test_the_examples_load(tmp_path: Path) -> None:
    examples = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
    whole = next(table for table in examples if "rounds" in table)
    assert len(examples) > 8
    for table in examples:
        if "experiment" in table:
            experiment.parse(table, "docs", NodeFile)
        elif not {"edges", "generator"} & set(table):
            experiment.parse({**whole, **table}, "docs", Experiment)
    sources = (ROOT / "docs" / "data.md").read_text("utf-8")
    tables = [
        tomllib.loads(text) for text in re.findall(r"^```toml\n(\[data\].*?)^```", sources, re.DOTALL | re.MULTILINE)
    ]
    assert len(tables) > 3
    for table in tables:
        experiment.parse({**whole, **table}, "docs", Experiment)


def options() -> list[tuple[str, str]]:
    """(command, option) of the whole command line."""
    found, commands = [], [("p2pfl", main)]
    for name, command in commands:
        context = click.Context(command, info_name=name, **main.context_settings)
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Option) and (name == "p2pfl" or parameter.name != "help"):
                found += [(name, option) for option in parameter.opts]
        if isinstance(command, click.Group):
            commands += [(f"{name} {each}", one) for each, one in command.commands.items()]
    return found


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_is_documented(command: str, option: str) -> None:
    pages = [page.read_text("utf-8") for page in (*ROOT.glob("README.md"), *(ROOT / "docs").glob("*.md"))]
    assert any(command in page and re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page) for page in pages)


def test_the_list_of_options_is_whole() -> None:
    assert {("p2pfl run", "--set"), ("p2pfl run", "--json"), ("p2pfl node", "--hold"), ("p2pfl", "--version")} <= set(
        options()
    )


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_that_show_a_method_are_there() -> None:
    page = (ROOT / "docs" / "medical.md").read_text("utf-8")
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)(?:::(test_\w+))?`", page)
    assert len(named) > 20
    for file, name in named:
        text = (ROOT / "tests" / file).read_text("utf-8")
        assert not name or f"def {name}(" in text, f"{file}::{name}"
    known = [*OBJECTIVES, *answers.ANSWERS, *sharing.PRESETS, *compose.WRAPS, *statistics.GATHERED]
    assert all(f"`{name}`" in page or f'"{name}"' in page for name in known if name != "cast")


# --- docs/architecture.md

HOUSE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_the_page_on_the_house_has_the_floors_as_they_are() -> None:
    """Each row of its table names what the room stands on, as tests/test_floors.py holds it."""
    table = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \|$", HOUSE, re.MULTILINE)
    said = {}
    for names, below in table:
        rooms = [name.rstrip("/") for name in re.findall(r"`([a-z_/.]+)`", names)]
        said.update(dict.fromkeys(rooms, below))
    for room in ABOVE:
        if room in WORDS:
            continue
        below = said[room]
        if below.startswith("all above but"):
            before = list(ABOVE)[: list(ABOVE).index(room)]
            named = {*before} - set(re.findall(r"`([a-z_]+)`", below))
        else:
            named = set(re.findall(r"`([a-z_]+)`", below)) | ({*WORDS} if "the words" in below else set())
        assert named == {*ABOVE[room]}, room
    assert {"runs", "sweeps"} <= set(said)


def test_the_page_on_the_house_names_files_that_are_there() -> None:
    files = set(re.findall(r"`([a-z_/]+\.py)(?::[a-z_]+)?`", HOUSE))
    assert len(files) > 40
    assert [name for name in files if not [*(ROOT / "p2pfl").rglob(name), *ROOT.glob(name)]] == []


LEAST = {"security.md": 30, "federation.md": 10}
"""How many claims these pages prove at least."""


@pytest.mark.parametrize("page", [path.name for path in sorted((ROOT / "docs").glob("*.md"))])
def test_every_claim_that_names_a_test_names_one_that_there_is(page: str) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    claims = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/\w+\.py)\)", text)
    assert len(claims) >= LEAST.get(page, 0) and len(claims) == len(re.findall(r"\[`test_", text))
    missing = [(name, file) for name, file in claims if f"def {name}(" not in (ROOT / file).read_text("utf-8")]
    assert not missing
