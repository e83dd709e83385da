"""Sharing: leaves of a model that travel, and leaves that stay at home with their node.

    share = ["encoder/**"]                     what matches travels and is mixed, all else is private
    share = ["**", "!batch_stats/**"]          everything but the batch statistics
    share = "fedbn"                            a preset by name

A private leaf is trained along with the others, by an optimizer of its own, and lives in params["private"]: it is in
every checkpoint, and no message holds it. Algorithms see a smaller model and need not know.

A leaf is named by its path in the model: `layers/0/kernel`; a batch statistic by `batch_stats/` and its path, in Linen
and in NNX alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import optax

from p2pfl import tree
from p2pfl.errors import ConfigError, nearest
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import by_gradient
from p2pfl.types import Key, Learner, Metrics, Params, Tree

STATISTICS = "batch_stats"
Predicate = Callable[[str], bool]
"""Of a leaf's path, whether it is shared."""


def keep(learner: Learner, optimizer: optax.GradientTransformation, shared: Predicate) -> Learner:
    """Make leaves private that are not shared: they never leave the node.

    Private leaves are trained by the same gradients, with an optimizer state of their own (the round's corrections,
    momenta and penalties of an algorithm are for shared leaves alone).

    Args:
        learner: of the whole model.
        optimizer: of the private leaves, with a state of their own.
        shared: (path of a leaf) -> whether it is shared; `predicate` makes one.

    Returns:
        The learner whose models keep the other leaves in params["private"].

    Raises:
        ConfigError: nothing with a gradient is shared.

    Example:
        >>> import jax, optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> kept = p2pfl.methods.keep(learner(2), optax.sgd(0.1), lambda path: path == "x")
        >>> sorted(jax.eval_shape(kept.init, jax.random.key(0)))
        ['carried', 'private', 'trained']
    """
    like = jax.eval_shape(learner.init, jax.random.key(0))
    paths = leaves(like)
    if not any(shared(path) for path in tree.named_leaves(like["trained"])):
        raise ConfigError(
            f"share: leaves nothing with a gradient to share; the leaves are {', '.join(paths)}. To train alone, use "
            'algorithm.name = "local"'
        )

    by_gradient(optimizer, "share: a leaf that stays at its node")

    def init(key: Key) -> Params:
        params = learner.init(key)
        theirs, mine = parted(params, shared)
        private = {"leaves": mine, "optimizer": optimizer.init(mine["trained"])}
        return {**params, **theirs, "private": {**params.get("private", {}), "share": private}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        before = params["private"]["share"]
        gradient, others, metrics = learner.grad(whole(params), batch, key)
        theirs, own = parted({"trained": gradient, "carried": others["carried"]}, shared)
        updates, state = optimizer.update(own["trained"], before["optimizer"], before["leaves"]["trained"])
        mine = {**own, "trained": optax.apply_updates(before["leaves"]["trained"], updates)}
        private = {**others.get("private", {}), "share": {"leaves": mine, "optimizer": state}}
        return theirs["trained"], {**rest(others), "carried": theirs["carried"], "private": private}, metrics

    def personal(params: Params) -> Params:
        assert learner.personal is not None
        own = learner.personal(whole(params))
        theirs, mine = parted(own, shared)
        kept = {**params["private"]["share"], "leaves": mine}
        return {**own, **theirs, "private": {**own["private"], "share": kept}}

    viewed = learner.viewed(lambda params, x: (whole(params), x))
    plain = learner.plain
    return viewed._replace(
        init=init, grad=grad, personal=personal if learner.personal else None,
        plain=None if plain is None else lambda params: plain(whole(params)),
    )  # fmt: skip


def whole(params: Params) -> Params:
    """The model as what is inside `keep` sees it: with the leaves that stay at home in their places."""
    private = dict(params.get("private", {}))
    home = private.pop("share", None)
    return params if home is None else {**params, **together(params, home["leaves"]), "private": private}


def leaves(params: Params) -> list[str]:
    """The paths of a model's leaves, as patterns see them."""
    return [*tree.named_leaves(params["trained"]), *map(statistic, tree.named_leaves(params["carried"]))]


def statistic(path: str) -> str:
    """The name of a leaf of params["carried"]."""
    return path if path.startswith(f"{STATISTICS}/") else f"{STATISTICS}/{path}"


def predicate(given: str | Sequence[str] | Predicate, learner: Learner) -> Predicate:
    """Make of a preset or of patterns the function that `keep` takes.

    The last pattern that matches a leaf decides; where none does it is private, but where all patterns begin with "!".
    `*` stands for anything but `/`, `**` for anything.

    Args:
        given: a name of PRESETS, patterns of paths, or any function of a path.
        learner: whose model the patterns are for.

    Returns:
        (path of a leaf) -> whether it is shared.

    Raises:
        ConfigError: no such preset, or a pattern that matches nothing.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.methods.predicate(["**"], learner(2))("x")
        True
    """
    if callable(given):
        return given
    like = jax.eval_shape(learner.init, jax.random.key(0))
    paths = leaves(like)
    if isinstance(given, str):
        if given not in PRESETS:
            raise ConfigError(
                f'share={given!r}: {nearest(given, PRESETS)}; or a list of patterns, or "module:function"'
            )
        given = PRESETS[given].patterns(like)
    return matching(given, paths, "share")


def matching(patterns: Sequence[str], paths: Sequence[str] | None, what: str) -> Predicate:
    """Make a predicate of patterns of paths, of which the last one that matches decides.

    Where none does a path is not meant, but where all patterns begin with "!". `paths`: those that there are, for the
    check; None: without one. `what`: the field, for the text of a refusal. Raises ConfigError for a pattern that
    matches none of them.
    """
    compiled = [(not text.startswith("!"), pattern(text.removeprefix("!"))) for text in patterns]
    for text, (_, found) in zip(patterns, compiled, strict=True):
        if paths is not None and not any(found.fullmatch(path) for path in paths):
            raise ConfigError(f"{what}: {text!r} matches no leaf of the model; its leaves are {', '.join(paths)}")
    otherwise = not any(wanted for wanted, _ in compiled)

    def meant(path: str) -> bool:
        deciding = [wanted for wanted, found in compiled if found.fullmatch(path)]
        return deciding[-1] if deciding else otherwise

    return meant


def pattern(text: str) -> re.Pattern[str]:
    """A glob over paths as a regular expression: `*` within a name, `**` over any number of them, `?` one letter."""
    parts = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?)", text)
    meaning = {"**/": "(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


# --- presets


class Preset(NamedTuple):
    """A way to share with a name: of the shapes of a model, the patterns."""

    patterns: Callable[[Params], list[str]]
    source: str  # the paper


def _silobn(params: Params) -> list[str]:
    _has_statistics(params, "silobn")
    return [f"!{STATISTICS}/**"]


def _fedbn(params: Params) -> list[str]:
    _has_statistics(params, "fedbn")
    homes = {path.rpartition("/")[0].removeprefix(f"{STATISTICS}/") for path in tree.named_leaves(params["carried"])}
    return [f"!{STATISTICS}/**", *(f"!{home}/**" for home in sorted(homes))]


def _split_model(params: Params) -> list[str]:
    if "encoder" not in params["trained"]:
        raise ConfigError(
            "share='split': shares the part called encoder, and the model has "
            f"{', '.join(map(str, params['trained']))}; "
            'name the part by a pattern, as in share = ["trunk/**"]'
        )
    statistics = [f"{STATISTICS}/encoder/**"] if _under(params["carried"], "encoder") else []
    return ["encoder/**", *statistics]


def _private_head(params: Params) -> list[str]:
    if "head" in params["trained"]:
        return ["!head/**"]
    layers = params["trained"].get("layers")
    if not isinstance(layers, dict) or len(layers) < 2:
        raise ConfigError(
            f"share='private_head': finds no part called head; the model has {', '.join(map(str, params['trained']))}; "
            'name it by a pattern, as in share = ["!classifier/**"]'
        )
    return [f"!layers/{max(layers, key=int)}/**"]


def _has_statistics(params: Params, name: str) -> None:
    if not jax.tree.leaves(params["carried"]):
        raise ConfigError(f"share={name!r}: the model has no batch statistics; give it norm = 'batch', or share all")


def _under(carried: Tree, name: str) -> bool:
    return any(statistic(path).startswith(f"{STATISTICS}/{name}/") for path in tree.named_leaves(carried))


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "silobn": Preset(_silobn, "Andreux et al., Siloed federated learning for multi-centric histopathology (2020)"),
        "fedbn": Preset(_fedbn, "Li et al., FedBN: federated learning on non-IID features (2021)"),
        "split": Preset(_split_model, "Feng et al., Specificity-preserving federated learning for MR image (2021)"),
        "private_head": Preset(
            _private_head, "Arivazhagan et al., Federated learning with personalization layers (2019)"
        ),
    }
)
"""Named ways to share: `silobn` all but the batch statistics, `fedbn` all but the normalisation layers, `split` the
encoder alone, `private_head` all but the last layer."""


# --- parts of models, and of nested dicts


def parted(params: Params, stays: Predicate) -> tuple[Params, Params]:
    """The parts of a model that are mixed, twice: with the leaves that stay in them, and with all others."""
    trained = split(params["trained"], stays)
    carried = split(params["carried"], lambda path: stays(statistic(path)))
    here, there = ({"trained": trained[i], "carried": carried[i]} for i in (0, 1))
    return here, there


def together(params: Params, others: Params) -> Params:
    """The parts of which `parted` has made two."""
    return {part: joined(params[part], others[part]) for part in ("trained", "carried")}


def split(whole: Tree, shared: Predicate, at: str = "") -> tuple[Any, Any]:
    """Two nested dicts: what is shared, and what is not; a dict with nothing in it is left out."""
    if not isinstance(whole, dict):
        return (whole, None) if shared(at) else (None, whole)
    theirs, mine = {}, {}
    for name, part in whole.items():
        a, b = split(part, shared, f"{at}/{name}" if at else str(name))
        if a is not None and (not isinstance(a, dict) or a):
            theirs[name] = a
        if b is not None and (not isinstance(b, dict) or b):
            mine[name] = b
    return theirs, mine


def joined(a: Tree, b: Tree) -> Tree:
    """The nested dict of which `split` has made two."""
    if not isinstance(a, dict):
        return a
    names = sorted({*a, *b}, key=lambda name: (str(type(name)), name))
    return {name: joined(a[name], b.get(name, {})) if name in a else b[name] for name in names}
