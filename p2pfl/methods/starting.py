"""Starting: the first model of all nodes taken from a file, leaf by leaf, instead of drawn.

A leaf is found by its path, as p2pfl.methods.sharing names it: in a file of p2pfl (a node's model, an export), in one
of leaves by path (`encoder/0/kernel`), and in a state_dict of PyTorch, whose names and axes are translated:

    encoder.0.weight [out, in]              encoder/0/kernel [in, out]
    encoder.0.weight [out, in, h, w]        encoder/0/kernel [h, w, in, out], or [h w in, out] of the built-in models
    norm.weight [c], norm.bias              norm/scale, norm/bias
    norm.running_mean, norm.running_var     batch_stats/norm/mean, batch_stats/norm/var

What can't be told from names and shapes is left to whoever gives the file: a dense layer behind flattened images has
its inputs in another order there (channel, row, column), and a transposed convolution other axes; draw these anew
(`fresh`). The names of a ResNet of torchvision are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.methods.sharing import leaves, matching, statistic
from p2pfl.types import Array, Key, Learner, Params

_OWN = re.compile(r"(?:private/(?:share/leaves|frozen)/)?(trained|carried)/(.+)")
"""How p2pfl names the leaves of a model in a file; what else it keeps there is no part of the model."""
_TORCHVISION = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"conv1\.(\w+)", r"encoder.stem.conv.\1"),
        (r"bn1\.(\w+)", r"encoder.stem.norm.\1"),
        (r"layer([1-4])\.(\d+)\.(conv|bn)([12])\.(\w+)", r"encoder.stages.<\1>.\2.\3s.<\4>.\5"),
        (r"layer([1-4])\.(\d+)\.downsample\.0\.(\w+)", r"encoder.stages.<\1>.\2.shortcut.conv.\3"),
        (r"layer([1-4])\.(\d+)\.downsample\.1\.(\w+)", r"encoder.stages.<\1>.\2.shortcut.norm.\3"),
        (r"fc\.(\w+)", r"head.\1"),
    )
)
"""Names of torchvision's ResNet-18 and 34 -> those of the built-in resnet; <I> counts from one."""
_TORCH = "weight"
"""What PyTorch calls a kernel."""
_SHOWN = 8
"""Names that a refusal lists of each kind."""


class Started(NamedTuple):
    """A learner whose first model is that of a file."""

    learner: Learner
    taken: tuple[str, ...]  # paths of the leaves that come from the file
    drawn: tuple[str, ...]  # of all others
    dense: tuple[str, ...]  # of kernels of dense layers that had the axes of PyTorch


def start(
    learner: Learner,
    arrays: Mapping[str, np.ndarray],
    where: str,
    rename: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
) -> Started:
    """Take the first model from the arrays of a file.

    Args:
        learner: whose first model it is to be.
        arrays: by name, see the head of this file; cast to the dtype of their leaves.
        where: the file, for the text of a refusal.
        rename: beginning of a name in the file, up to a "." or "/" -> of a path in the model, which takes its place;
            the longest that fits; "" leaves out what begins so.
        fresh: patterns of leaves that are drawn all the same.

    Returns:
        The learner, and which leaves come from the file.

    Raises:
        ConfigError: a leaf is missing, of another shape or not finite; a name belongs to no leaf; two belong to one.

    Example:
        >>> import jax, numpy as np, p2pfl
        >>> whole = p2pfl.from_flax(p2pfl.learning.models.logistic((2,), 3), np.zeros((1, 2), np.float32), 3)
        >>> torch = {"0.weight": np.ones((3, 2)), "0.bias": np.zeros(3)}
        >>> p2pfl.methods.start(whole, torch, "torch", rename={"0": "layers/0"}).taken
        ('layers/0/bias', 'layers/0/kernel')
    """
    like = jax.eval_shape(learner.init, jax.random.key(0))
    shapes = {
        **tree.named_leaves(like["trained"]),
        **{statistic(path): leaf for path, leaf in tree.named_leaves(like["carried"]).items()},
    }
    paths = leaves(like)
    anew = matching(fresh, paths, "model.fresh") if fresh else lambda path: False
    found, unknown = _found(arrays, shapes, rename or {}, where)
    wanted = [path for path in paths if not anew(path)]
    taken = {path: found[path] for path in wanted if path in found}
    lacking = [path for path in wanted if path not in found]
    _judge(taken, lacking, unknown, shapes, where)
    values = {path: _fitted(array, shapes[path].shape).astype(shapes[path].dtype) for path, (_, array) in taken.items()}

    def init(key: Key) -> Params:
        params = learner.init(key)
        return {
            **params,
            "trained": _replaced(params["trained"], values, lambda path: path),
            "carried": _replaced(params["carried"], values, statistic),
        }

    drawn = tuple(path for path in paths if path not in values)
    dense = tuple(path for path, (name, array) in taken.items() if name.endswith(_TORCH) and array.ndim == 2)
    return Started(learner._replace(init=init), tuple(path for path in paths if path in values), drawn, dense)


def _replaced(part: Params, values: Mapping[str, np.ndarray], called: Callable[[str], str]) -> Params:
    """A part of a model with the values that there are; `called`: of a path in it, that of the leaf in the model."""
    named = tree.named_leaves(part)
    new: list[Array] = [jnp.asarray(values.get(called(path), leaf)) for path, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(part), new)


Found = dict[str, tuple[str, np.ndarray]]
"""Path of a leaf -> (name in the file, array with axes as Flax has them)."""


def _found(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Array], rename: Mapping[str, str], where: str
) -> tuple[Found, list[str]]:
    """The leaves of a file, and the names that are none. Raises ConfigError where two names are one leaf."""
    found: Found = {}
    unknown, used = [], set[str]()
    vision = "conv1.weight" in arrays and "layer1.0.conv1.weight" in arrays
    ours = any(_OWN.fullmatch(name) for name in arrays)
    for name, array in arrays.items():
        own = _OWN.fullmatch(name)
        if ours and own is None:
            continue
        start, new = _begins(own[2] if own else name, rename)
        used |= {start} if start is not None else set()
        if new is None:
            continue
        path, turned = _translated(
            _known(new) if vision else new, array, shapes, own is not None and own[1] == "carried"
        )
        if path == "":
            continue
        if path not in shapes:
            unknown.append(name)
        elif path in found:
            raise ConfigError(f"{where}: {found[path][0]!r} and {name!r} are both {path} of the model; rename one")
        else:
            found[path] = name, turned
    for start in rename:
        if start not in used:
            raise ConfigError(f"model.rename: no name in {where} begins with {start!r}; there are {_some([*arrays])}")
    return found, unknown


def _begins(name: str, rename: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The beginning that is renamed, and the new name: None where it is left out."""
    fitting = [start for start in rename if name == start or name.startswith((f"{start}.", f"{start}/"))]
    if not fitting:
        return None, name
    start = max(fitting, key=len)
    return start, rename[start] + name[len(start) :] if rename[start] else None


def _known(name: str) -> str:
    """A name of torchvision's ResNet as the built-in model has it."""
    for old, new in _TORCHVISION:
        if old.fullmatch(name):
            counted = re.sub(r"<(\d)>", lambda each: str(int(each[1]) - 1), old.sub(new, name))
            return counted.replace(".bns.", ".norms.")
    return name


def _translated(name: str, array: np.ndarray, shapes: Mapping[str, Array], carried: bool) -> tuple[str, np.ndarray]:
    """(path of the leaf that a name means, array with axes as Flax has them); "" for what Flax does not keep."""
    path = name.replace(".", "/")
    if carried:
        return statistic(path), array
    if path in shapes or statistic(path) in shapes:
        return path if path in shapes else statistic(path), array
    home, _, last = path.rpartition("/")
    at = f"{home}/" if home else ""
    if last == "num_batches_tracked":
        return "", array
    if last in ("running_mean", "running_var"):
        return statistic(f"{at}{last.removeprefix('running_')}"), array
    if last == "weight" and array.ndim > 1 and f"{at}kernel" in shapes:
        return f"{at}kernel", np.moveaxis(array, (1, 0), (-2, -1))
    if last == "weight":
        return f"{at}{'scale' if array.ndim == 1 else 'embedding'}", array
    return path, array


def _fitted(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in that shape, where it is the same kernel of a convolution as a matrix, or the other way."""
    same = array.size == np.prod(shape) and array.ndim > 1 < len(shape) and array.shape[-1] == shape[-1]
    return array.reshape(shape) if same and 2 in (array.ndim, len(shape)) else array


def _judge(
    taken: Found, lacking: Sequence[str], unknown: Sequence[str], shapes: Mapping[str, Array], where: str
) -> None:
    """Raises ConfigError with all that does not fit."""
    other, infinite = [], []
    for path, (name, array) in taken.items():
        fitted, shape = _fitted(array, shapes[path].shape), shapes[path].shape
        if fitted.shape != shape:
            other.append(f"{name} {[*array.shape]} for {path} {[*shape]}")
        elif not np.isfinite(np.asarray(fitted, np.float64)).all():
            infinite.append(name)
    parts = []
    if lacking:
        parts.append(f"has no {_some(lacking)}")
    if other:
        parts.append(f"has another shape of {_some(other, '; ')}")
    if unknown:
        parts.append(f"has what the model has not: {_some(unknown)}")
    if infinite:
        parts.append(f"is not finite in {_some(infinite)}")
    if parts:
        of_run = any(
            name.startswith(("trained/", "private/")) for name in (*unknown, *(each[0] for each in taken.values()))
        )
        more = ". Of a run with adapters, or of all nodes in one file, p2pfl export makes one model" if of_run else ""
        raise ConfigError(
            f'model.weights: {where} {"; it ".join(parts)}. Say by model.rename what is called otherwise, and "" for '
            f"what is to be left out; by model.fresh what is to be drawn anew. The model has {_some([*shapes])}{more}"
        )


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
