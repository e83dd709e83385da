"""The file of a model: safetensors, leaves by path, written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from p2pfl import tree
from p2pfl.types import Params

NAME = "model.safetensors"
"""The model of one node, in its directory."""


def write(path: Path, model: Params, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model; what was there before stays until the new one is whole.

    Raises OSError and safetensors.SafetensorError.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in tree.named_leaves(model).items()}  # keeps scalars so
    partial = path.with_suffix(".partial")
    try:
        safetensors.numpy.save_file(arrays, partial, dict(metadata) if metadata else None)
        partial.rename(path)
    except (OSError, safetensors.SafetensorError):
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
