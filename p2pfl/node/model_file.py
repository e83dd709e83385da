"""The file of a model: safetensors, leaves by path, written whole or not at all; written and read here alone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.node.secrets import for_file
from p2pfl.types import Params

NAME = "model.safetensors"
"""The model of one node, in its directory."""


def write(path: Path, model: Params, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model, without what is its node's secret; what was there before stays until the new one is whole.

    Raises OSError and safetensors.SafetensorError.
    """
    leaves = tree.named_leaves(for_file(model))
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}  # keeps scalars so
    partial = path.with_suffix(".partial")
    try:
        safetensors.numpy.save_file(arrays, partial, dict(metadata) if metadata else None)
        partial.rename(path)
    except (OSError, safetensors.SafetensorError):
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the leaves of a file by path. Raises ConfigError for one that is no such file, or is damaged."""
    try:
        return dict(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path}: can't be read as models: {error}") from error
