"""The model of a script that takes part by `p2pfl.join`: which leaves travel, and how they lie in the federation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import plugins
from p2pfl.federation.federation import Federation, model_shape
from p2pfl.methods import sharing
from p2pfl.types import Key, Learner, Params, Tree


def leaves_of(params: Tree) -> dict[str, Any]:
    """The leaves of what a script gave, by path. Raises ConfigError."""
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    leaves = {tree.path_name(path) or "params": leaf for path, leaf in found}
    if not leaves:
        raise ConfigError("join: params: missing; give the first model, a tree of arrays")
    if len(leaves) < len(found):
        raise ConfigError("join: params: two leaves have one name; give keys that differ as text")
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ConfigError(
                f"join: params: {name} is a {type(leaf).__module__}.{type(leaf).__name__}; must be an array of jax or "
                "numpy (of a torch tensor: tensor.detach().numpy())"
            )
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ConfigError(f"join: params: {name} is {leaf.dtype}; give its real and imaginary part")
    if not any(map(_floating, leaves.values())):
        raise ConfigError("join: params: no leaf is a floating-point array, so that there is nothing to mix")
    return leaves


def _copied(leaf: Any) -> Any:
    """The same in memory of its own: the script may change or donate either."""
    return leaf if isinstance(leaf, np.generic) else leaf.copy()


def _floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def shared(experiment: Experiment, leaves: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the leaves that travel, by path. Raises ConfigError."""
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in leaves.items() if _floating(x)}
    share = experiment.algorithm.share
    if share is None:
        return shapes
    whole = stepless({"trained": shapes, "carried": {}})
    given = plugins.function(share, "algorithm.share") if isinstance(share, str) and ":" in share else share
    try:
        predicate = sharing.predicate(given, whole)
    except ConfigError as error:
        raise ConfigError(f"algorithm.{error}") from error
    return {name: shape for name, shape in shapes.items() if predicate(name)}


def stepless(model: Params) -> Learner:
    """A learner of a script that takes its own steps; `model`: shapes."""

    def init(key: Key) -> Params:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model)

    def grad(params: Params, batch: Tree, key: Key) -> Any:
        raise NotImplementedError

    return Learner(init, grad, lambda params, batch, mask: {"score": mask, "loss": mask})


@contextlib.contextmanager
def double(on: bool) -> Iterator[None]:
    """Compute in double precision, in this thread, whatever the rest of the process does."""
    with jax.enable_x64(True) if on else contextlib.nullcontext():
        yield


class ScriptModel:
    """How a script's model lies in the federation's: which leaves travel, and what they are at either end."""

    def __init__(
        self, federation: Federation, params: Tree, leaves: Mapping[str, Any], model: Params, *, steps: bool
    ) -> None:
        """`leaves`: of params, by path; `model`: the parts that are mixed; `steps`: `local` can be called."""
        self.federation, self._steps = federation, steps
        self._structure = jax.tree.structure(params)
        self._kinds = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        self._model = jax.tree.structure(model)
        self._names = self._matched(model, federation.experiment.algorithm.share is not None)
        self._wide = any(self._kinds[name].dtype == np.float64 for name in self._names)
        self._first = jax.tree_util.tree_map_with_path(self._kept, params)
        self.begin = self.travelling(params)
        self._fits: object = None  # the kind of the latest batches that the learner takes
        if not tree.finite(self.begin):
            raise ConfigError("join: params: holds NaN or infinity, which no other node would mix with")

    def _matched(self, model: Params, some: bool) -> list[str]:
        """Names of the script's leaves, in the order of the model's. `some`: not all of them need to travel."""
        wanted = tree.named_leaves(model)
        under = "" if all(name in self._kinds for name in wanted) else "trained/"
        names = [name.removeprefix(under) for name in wanted]
        for name, (path, leaf) in zip(names, wanted.items(), strict=True):
            given = self._kinds.get(name)
            if given is None:
                raise ConfigError(f"join: params: has no leaf {name}, and the model of the federation has {path}")
            if (given.shape, given.dtype) != (leaf.shape, leaf.dtype):
                raise ConfigError(
                    f"join: params: {name} is {given.dtype} {[*given.shape]}; must be {leaf.dtype} {[*leaf.shape]}, as "
                    "in the model of the federation"
                )
        left = [name for name, kind in self._kinds.items() if name not in names and _floating(kind)]
        if left and not some:
            raise ConfigError(f"join: params: {left[0]} is not in the model of the federation; leave it out")
        return names

    def _kept(self, path: tuple[Any, ...], leaf: Any) -> Any:
        """Of a leaf that is given first: a copy; of one that travels, what it is, without its numbers."""
        if (tree.path_name(path) or "params") not in self._names:
            return _copied(leaf)
        return leaf.sharding if isinstance(leaf, jax.Array) else np.empty(0)

    @property
    def any_steps(self) -> bool:
        """A model says all that a round has done."""
        return self.federation.algorithm.any_steps and not self.federation.experiment.training.objective

    @property
    def why(self) -> str:
        """Why it does not."""
        if self.federation.experiment.training.objective:
            return "training.objective changes the local steps"
        return f"{self.federation.algorithm.name} keeps more than the model"

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """Whatever computes on the model does so inside."""
        return double(self._wide or self.federation.experiment.training.dtype == "float64")

    def travelling(self, params: Tree) -> Params:
        """Copies, in host memory, of the leaves that travel. Raises ConfigError for another structure."""
        leaves = {tree.path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
        if bool(jax.tree.structure(params) != self._structure):  # type: ignore[operator]
            changed = sorted({name or "params" for name in leaves} ^ {*self._kinds})
            raise ConfigError(f"params: another tree than was given to join; it differs in {', '.join(changed[:5])}")
        copies = []
        for name in self._names:
            leaf, kind = leaves["" if name == "params" and name not in leaves else name], self._kinds[name]
            if (getattr(leaf, "shape", None), getattr(leaf, "dtype", None)) != (kind.shape, kind.dtype):
                raise ConfigError(
                    f"params: {name} is {getattr(leaf, 'dtype', type(leaf).__name__)} "
                    f"{[*getattr(leaf, 'shape', ())]}; must be {kind.dtype} {[*kind.shape]}, as it was given to join"
                )
            copies.append(np.array(leaf))
        return jax.tree.unflatten(self._model, copies)

    def back(self, model: Params, like: Tree | None = None) -> Tree:
        """The script's tree with what has travelled; all else as in `like`, or as it was given first."""
        came = dict(zip(self._names, jax.tree.leaves(model), strict=True))

        def leaf(path: tuple[Any, ...], old: Any) -> Any:
            name = tree.path_name(path) or "params"
            if name not in came:
                return _copied(old) if like is None else old
            if isinstance(old, jax.Array | jax.sharding.Sharding):
                return jax.device_put(came[name].copy(), old.sharding if isinstance(old, jax.Array) else old)
            return came[name].dtype.type(came[name]) if isinstance(old, np.generic) else came[name].copy()

        whole = self._first if like is None else like
        return jax.tree_util.tree_map_with_path(leaf, whole, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding))

    def batches(self, batches: Tree) -> Tree:
        """Batches for local steps, copied, in the precision of the model. Raises ConfigError where they don't fit."""
        if not self._steps:
            raise ConfigError("local: needs gradients; give learner= and optimizer= to join, or mix(params) yourself")
        algorithm, model = self.federation.algorithm, model_shape(self.federation)
        dtype = jax.tree.leaves(model["trained"])[0].dtype

        def copied(leaf: Any) -> Any:
            array = np.array(leaf)
            return array.astype(dtype) if array.dtype.kind == "f" else array

        whole = jax.tree.map(copied, batches)
        kind = jax.tree.structure(whole), tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(whole))
        if kind == self._fits:
            return whole
        try:
            with self.precision():
                state = jax.eval_shape(lambda params: algorithm.init(params, 1), model)
                jax.eval_shape(lambda s, b: algorithm.local(s, b, jax.random.key(0), None), state, whole)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ConfigError(
                f'local: the learner does not take such batches: {error}. Give {{"x": [S, B, ...], "y": [S, B, ...]}}'
            ) from error
        self._fits = kind
        return whole
