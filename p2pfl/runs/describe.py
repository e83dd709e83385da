"""`p2pfl data describe FILE...`: the data dictionary of one file, or one that holds for several."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from p2pfl.config import experiment as config
from p2pfl.config.data import Data, QuadraticData
from p2pfl.data import Dataset, dictionary
from p2pfl.data.dictionary import Dictionary
from p2pfl.data.far_off import answers, far_off, turned_round
from p2pfl.errors import ConfigError
from p2pfl.federation import datasets


def describe(files: Sequence[Path], given: Sequence[str], say: Callable[[str], None]) -> Dictionary:
    """The dictionary of all these files. Each is a table, an .npz, or an experiment or node file with its [data].

    `given`: "NAME=VALUE", fields of [data] that are not in the files. `say` is told what was left out or filled in.
    Raises ConfigError, also where the files differ in more than classes and categories.
    """
    found, moments = dict[str, Dictionary](), dict[str, dict[str, tuple[float, float]]]()
    counted: list[dict[str, dict[str, dict[str, int]]]] = []
    for file in files:
        data = _data(file, given)
        if isinstance(data, QuadraticData):
            raise ConfigError(f"{file}: source='quadratic' has no rows to describe")
        dataset = datasets.read(data, 0, by_name=True)
        for note in dataset.notes:
            say(f"{file}: {note}")
        found[str(file)] = dictionary.describe(dataset)
        counted.append(_counted(dataset, str(file)))
        if dataset.moments is not None and dataset.columns:
            numbers = {column.name for column in dataset.columns if column.kind == "number"}
            for site, mean, sd in zip(dataset.sites or ("",), *dataset.moments[:2], strict=True):
                moments[f"{file}{site and f', {site}'}"] = {
                    name: (m, s) for name, m, s in zip(dataset.features, mean, sd, strict=True) if name in numbers
                }
    made = dictionary.united(found)
    for line in dictionary.only_in(found):
        say(f"{line}. The same under other names? Put them together with data.derive")
    columns = [column.name for column in made.columns if column.kind == "number"]
    if len(files) > 1 and len(moments) > 1 and columns:  # within a file it is among its notes
        mean, sd = np.array([[each[name] for name in columns] for each in moments.values()]).transpose(2, 0, 1)
        for line in far_off(mean, sd, columns, [*moments]):
            say(line)
    for what in counted[0]:
        # a file in which it has more values than two does not count them; what is within a file is among its notes
        if (len(files) == 1 and what.startswith("column ")) or not all(what in each for each in counted):
            continue
        for line in turned_round(what, {place: rows for each in counted for place, rows in each[what].items()}):
            say(line)
    return made


def _counted(dataset: Dataset, file: str) -> dict[str, dict[str, dict[str, int]]]:
    """Of columns and answers of two values: what -> file and site -> value -> training rows."""
    places = [f"{file}{site and f', {site}'}" for site in dataset.sites or ("",)]
    columns = {} if dataset.moments is None else dataset.moments.two
    result = {f"column {name!r}": dict(zip(places, map(dict, rows), strict=True)) for name, rows in columns.items()}
    of_answers = {what: dict(zip(places, each.values(), strict=True)) for what, each in answers(dataset).items()}
    return {**result, **of_answers}


def _data(file: Path, given: Sequence[str]) -> Data:
    """The [data] that a file has, or is."""
    if file.suffix != ".toml":
        return config.load_data(file, given)
    sys.path[:0] = [str(file.resolve().parent)]  # for a function of the user's own
    overrides = [f"data.{each}" for each in given]
    if config.is_node(file):
        node = config.load_node(file)
        return node.data or config.load(node.experiment, overrides).data
    return config.load(file, overrides).data
