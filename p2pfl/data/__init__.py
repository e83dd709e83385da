"""Data: arrays in, arrays out. Built-in sets, .npz, .csv, MedMNIST, folders as they are, and functions of the user."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from p2pfl.data import builtin, csv, folder, medmnist, npz
from p2pfl.data.dataset import Dataset, Samples, as_float32, encode_labels, validate
from p2pfl.errors import USER_FAULTS, DataError

__all__ = ["SOURCES", "Dataset", "Samples", "builtin", "csv", "folder", "medmnist", "npz", "python", "validate"]

SOURCES: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "digits": builtin.digits,
        "breast_cancer": builtin.breast_cancer,
        "npz": npz.load,
        "csv": csv.load,
        "medmnist": medmnist.load,
        "folder": folder.load,
    }
)
"""Source name -> function that returns a Dataset."""


def python(spec: str, seed: int | None = None, **arguments: object) -> Dataset:
    """The data that the user's own function returns; `spec` is "module:function", `arguments` go to the function.

    So does `seed`, where the function has an argument of that name that is not given.

    It returns a Dataset, or (x_train, y_train, x_test, y_test): x [N, ...] numbers (cast to float32, never scaled),
    y [N] or [N, 1] whole numbers or text. The module is imported by the usual rules of Python.
    Raises DataError with the spec in it: module or function not found, not callable, a wrong return value, data that
    `validate` refuses, and the usual exceptions of the function itself (as its cause).
    """
    where = f"data function {spec!r}"
    function = _find(spec, where)
    try:
        if seed is not None and "seed" in inspect.signature(function).parameters:
            arguments = {"seed": seed, **arguments}
        found = function(**arguments)
    except USER_FAULTS as exc:
        raise DataError(f"{where}: failed with {type(exc).__name__}: {exc}") from exc
    if not isinstance(found, Dataset):
        found = _from_arrays(found, where)
    validate(found, where)
    return found


def _find(spec: str, where: str) -> Callable[..., object]:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        raise DataError(f'{where}: must be written "module:function", as in "my_data:load"')
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name and (module_name == exc.name or module_name.startswith(exc.name + ".")):
            file = exc.name.replace(".", "/") + ".py"
            raise DataError(f"{where}: no module {exc.name!r}; start p2pfl where {file} lies, or install it") from exc
        raise DataError(f"{where}: importing {module_name!r} failed: {exc}") from exc
    except (*USER_FAULTS, SyntaxError) as exc:
        raise DataError(f"{where}: importing {module_name!r} failed with {type(exc).__name__}: {exc}") from exc
    function = getattr(module, name, None)
    if function is None:
        raise DataError(f"{where}: module {module_name!r} ({module.__file__}) has no function {name!r}")
    if not callable(function):
        raise DataError(f"{where}: {name!r} is a {type(function).__name__}, not a function")
    return function


def _from_arrays(found: object, where: str) -> Dataset:
    """(x_train, y_train, x_test, y_test) as a Dataset."""
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        what = f"{len(found)} values" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"
        raise DataError(f"{where}: returned {what}; a Dataset or (x_train, y_train, x_test, y_test) is needed")
    try:
        x_train, y_train, x_test, y_test = (np.asarray(part) for part in found)
    except ValueError as exc:  # nested lists of unequal length
        raise DataError(f"{where}: returned what can't be made an array: {exc}") from exc
    for name, x in (("x_train", x_train), ("x_test", x_test)):
        if x.dtype.kind not in "buif":
            raise DataError(f"{where}: {name} has dtype {x.dtype}; it must hold numbers")
    (train, test), classes = encode_labels({"y_train": y_train, "y_test": y_test}, None, where)
    return Dataset(Samples(as_float32(x_train), train), Samples(as_float32(x_test), test), classes)
