"""Predictions instead of weights: liars do not spoil them, architectures may differ, and no model travels."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import MECHANISMS, federation_of, right_of

from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples, builtin
from p2pfl.errors import ConfigError
from p2pfl.federation import learning
from p2pfl.federation.federation import ScriptedSteps, build_own, build_script, identity, model_shape
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.methods.objectives import medisecfed
from p2pfl.methods.objectives.medisecfed import LARGEST
from p2pfl.runs import coefficients, origin, predictions, resume, splits
from p2pfl.types import Neighborhood

NODES, LIARS = 8, [1, 4, 6]
TELLING = {"name": "medisecfed", "rows": 200, "strength": 2.0}
SGD = optax.sgd(0.1)
LIES: dict[str, dict[str, Any]] = {
    "nobody": {},
    "turned": {"by": "sign_flip", "scale": 10.0},
    "random": {"by": "random", "scale": 10.0},
}


def few() -> Dataset:
    """Digits, 400 of them to train with: 200 are set apart, and a node has 25."""
    whole = builtin.digits()
    return whole._replace(train=Samples(whole.train.x[:400], whole.train.y[:400]))


def table(lie: str, *objective: dict[str, Any], algorithm: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Digits at eight nodes that hear each other, three of which lie."""
    attack = [{"nodes": LIARS, **LIES[lie]}] if LIES[lie] else []
    return {
        "name": "t", "rounds": 40, "data": {"source": f"{__name__}:few"},
        "model": {"name": "mlp", "hidden": [16]}, "attack": attack, "algorithm": algorithm, "baselines": False,
        "training": {
            "optimizer": {"name": "sgd", "learning_rate": 0.2}, "batch_size": 16, "local_steps": 20,
            "objective": [*objective],
        },
        "topology": {"graph": "complete", "nodes": NODES}, "evaluation": {"every": 40}, "driver": {"kind": "simulate"},
        **more,
    }  # fmt: skip


OTHERS = [{"nodes": [0, 1, 2, 3], "name": "logistic"}]
"""Two architectures, liars of both among them."""
PLAIN = {"name": "dsgd"}
LOCAL: dict[str, Any] = {"algorithm": {"name": "local"}}
NEAREST = {"name": "dsgd", "wrap": [{"name": "monna", "f": 3}]}


def honest(lie: str, *objective: dict[str, Any], **more: Any) -> np.ndarray:
    """[5] accuracy of the honest on all test rows."""
    made = federation_of(table(lie, *objective, **more))
    return np.asarray(right_of(made)[1].mean(axis=1)[[node for node in range(NODES) if node not in LIARS]])


@pytest.mark.parametrize(
    "lie", [pytest.param("turned", marks=pytest.mark.more), pytest.param("random", marks=pytest.mark.soak)]
)
def test_three_liars_of_eight_spoil_what_is_mixed_plainly_and_not_what_a_rule_mixes(lie: str) -> None:
    """Weights of one architecture, predictions of two; a rule mixes the nearest five of eight."""
    weights, ruled = (honest(lie, algorithm=each) for each in (PLAIN, NEAREST))
    plainly = honest(lie, TELLING, algorithm=PLAIN, other_model=OTHERS)
    clean, told = (honest(each, TELLING, algorithm=NEAREST, other_model=OTHERS) for each in ("nobody", lie))
    alone = honest("nobody", algorithm={"name": "local"}, other_model=OTHERS)
    assert weights.max() < 0.3 and plainly.max() < alone.mean() - 0.1  # .10 and .11; of random lies .10 and .68
    assert ruled.mean() > told.mean() + 0.02  # .903: the rule it is that withstands, not that predictions travel
    assert told.mean() > clean.mean() - 0.03
    assert told.mean() > alone.mean() + 0.01 and told.min() > alone.min() + 0.02  # .854 and .841; alone .828 and .802


# ---------------------------------------------------------------------------------------------------------- mechanics


def of_linear(rows: int = 6, **given: Any) -> Any:
    """(learner, public rows, the same told): softmax regression on four numbers."""
    learner = from_flax(models.logistic((4,), 3), np.zeros((1, 4), np.float32), classes=3)
    public = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    method = medisecfed(SGD, rows=rows, **given).shown(public)
    return learner, public, method.shaped(learner, (4,)), method


WHOLE = MECHANISMS["predictions"]
STEPS = {**WHOLE["training"], "dtype": "float32", "objective": WHOLE["training"]["objective"][1:]}
TOLD = {**WHOLE, "training": STEPS}
"""Three nodes of two architectures."""
BATCH = {"x": jnp.ones((2, 4)), "y": jnp.array([0, 2])}
KEY = jax.random.key(3)


@pytest.mark.more
def test_what_is_learned_from_others_is_the_gradient_of_its_loss() -> None:
    learner, public, told, _ = of_linear(strength=0.5, temperature=2.0, batch=4, bound=3.0)
    params = told.init(KEY)
    mixed = 4 * jax.random.normal(jax.random.key(1), (6, 3))
    before = params["private"]["medisecfed"]["model"]["trained"]

    def after(table: Any) -> Any:
        home = {**params["private"]["medisecfed"], "heard": table}
        given = {**params, "private": {**params["private"], "medisecfed": home}}
        gradient, others, _ = told.grad(given, BATCH, KEY)
        assert not gradient["predictions"].any()
        return others["private"]["medisecfed"]["model"]["trained"]

    plain = jax.tree.map(lambda x, g: x - 0.1 * g, before, learner.grad({**params, "trained": before}, BATCH, KEY)[0])
    for a, b in zip(jax.tree.leaves(after(jnp.zeros((6, 3)))), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # nobody has told anything

    def loss(trained: Any, rows: np.ndarray) -> Any:
        aim = jax.nn.softmax(jnp.clip(mixed[rows], -3, 3) / 2.0)
        own = jax.nn.softmax(learner.predict({"trained": trained, "carried": {}}, public[rows]) / 2.0)
        return 0.5 * 4.0 * (aim * (jnp.log(aim) - jnp.log(own))).sum(axis=1).mean()

    drawn = jax.random.randint(jax.random.fold_in(KEY, sum(b"medisecfed")), (4,), 0, 6, jnp.int32)
    wanted = jax.tree.map(lambda x, g: x - 0.1 * g, plain, jax.grad(loss)(before, np.asarray(drawn)))
    for a, b in zip(jax.tree.leaves(after(mixed)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_message_is_the_table_of_predictions_and_nothing_else() -> None:
    made = federation_of(TOLD)
    algorithm = made.algorithm
    params = model_shape(made)
    sent = jax.eval_shape(
        lambda params: algorithm.send(algorithm.init(params, 2), Neighborhood(np.ones(2), np.ones(2)))[1], params
    )
    assert {name: leaf.shape for name, leaf in tree.named_leaves(sent).items()} == {"trained/predictions": (6, 10)}
    assert algorithm.travels == "predictions on 6 public rows"
    assert tree.public(params).keys() == {"trained", "carried"} and not params["carried"]  # what a joiner gets


@pytest.mark.more
def test_who_takes_no_step_passes_on_what_it_has() -> None:
    made = federation_of({**TOLD, "other_model": []})
    state = made.algorithm.init(made.learner.init(KEY), 2)
    batches = {"x": jnp.zeros((2, 4, 4, 4, 1)), "y": jnp.zeros((2, 4), jnp.int32)}
    still, moved = (made.algorithm.local(state, batches, KEY, jnp.int32(steps))[0] for steps in (0, 1))
    told = [made.algorithm.params(each)["trained"]["predictions"] for each in (still, moved)]
    assert not told[0].any() and told[1].any()
    np.testing.assert_allclose(told[1].sum(axis=1), 0, atol=1e-5)  # centred


@pytest.mark.more
def test_weight_decay_of_the_table_is_not_learned_from() -> None:
    """In local steps the table is what was mixed, whatever the optimizer does to what is trained."""
    decays = {**STEPS, "optimizer": {"name": "adamw", "learning_rate": 0.1, "weight_decay": 1.0}}
    with jax.numpy_dtype_promotion("standard"):  # as optax adds the decay
        made = federation_of({**TOLD, "training": decays, "other_model": []})
    params = made.learner.init(KEY)
    table = jax.random.normal(KEY, params["trained"]["predictions"].shape)
    state = made.algorithm.init({**params, "trained": {"predictions": table}}, 2)
    batches = {"x": jnp.zeros((2, 4, 4, 4, 1)), "y": jnp.zeros((2, 4), jnp.int32)}
    with jax.numpy_dtype_promotion("standard"):
        after = made.algorithm.params(made.algorithm.local(state, batches, KEY, jnp.int32(2))[0])
    np.testing.assert_array_equal(after["private"]["medisecfed"]["heard"], table)


@pytest.mark.more
def test_a_node_computes_with_its_own_architecture() -> None:
    made = federation_of(TOLD)
    assert made.sites["architecture"].tolist() == [0, 1, 0]
    params = made.learner.init(KEY)
    x, answers = jnp.asarray(made.dataset.test.x), []
    for node in (0, 1):
        site = {"architecture": jnp.int32(node)}
        given = {**params, "private": {**params["private"], "site": site}}
        answers.append(made.learner.predict(given, x))
        home = given["private"]["medisecfed"]["model"]
        own = {part: home[part][str(node)] for part in home}
        hidden, norm = ((4,), None), ((3,), "batch")
        alone = from_flax(models.mlp(x.shape[1:], 10, *(hidden, norm)[node]), x[:1], 10)
        np.testing.assert_allclose(answers[-1], alone.predict(own, x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(answers[0], answers[1])


def public_rows(folder: Path, many: int = 20) -> Path:
    x = np.random.default_rng(0).integers(0, 16, (many, 64)).astype(np.float32)
    np.savez(folder / "public.npz", x=x)
    return folder / "public.npz"


def test_public_rows_of_a_file_are_read_as_the_data_were_and_are_the_same_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = []
    for folder in ("a", "b"):
        file = public_rows(tmp_path / folder)
        given = {"name": "medisecfed", "rows": 12, "public": str(file)}
        made = federation_of(table("nobody", given, algorithm={"name": "dsgd"}))
        names.append(identity(made))
        assert made.data.public is not None
        np.testing.assert_allclose(made.data.public, np.load(file)["x"][:12] / 16, rtol=1e-6)
        assert len(made.dataset.train.y) == 400  # none is set apart
    assert names[0] == names[1]


def told_of(file: Path, **more: Any) -> dict[str, Any]:
    return table("nobody", {"name": "medisecfed", "rows": 12, "public": str(file)}, algorithm={"name": "dsgd"}, **more)


@pytest.mark.more
def test_nodes_compare_what_models_see_of_public_rows_and_nothing_else(tmp_path: Path) -> None:
    first = np.load(public_rows(tmp_path))["x"]
    np.savez_compressed(tmp_path / "more.npz", x=np.concatenate([first, first[:5]]))
    other = first.copy()
    other[3, 3] += 1
    np.savez(tmp_path / "other.npz", x=other)
    said = [identity(federation_of(told_of(tmp_path / f"{name}.npz"))) for name in ("public", "more", "other")]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(("own", "public"), [("float", "bytes"), ("bytes", "float")])
def test_public_images_of_another_scale_are_refused(tmp_path: Path, own: str, public: str) -> None:
    drawn = np.random.default_rng(0).uniform(size=(40, 8, 8))
    images = {"float": drawn.astype(np.float32), "bytes": (255 * drawn).astype(np.uint8)}
    np.savez(tmp_path / "own.npz", images=images[own], labels=np.arange(40) % 10)
    np.savez(tmp_path / "public.npz", images=images[public])
    given = told_of(tmp_path / "public.npz", data={"source": "npz", "path": str(tmp_path / "own.npz")})
    with pytest.raises(ConfigError, match="in the type and the scale of the data"):
        federation_of({**given, "topology": {"graph": "ring", "nodes": 3}})


def of_a_table(folder: Path, cell: str = "0.5", **data: Any) -> dict[str, Any]:
    """A csv of 40 rows, and a table of 12 public ones, one cell of which is this one."""
    rows = [f"{i % 7},{i % 3},{'ab'[i % 2]}" for i in range(40)]
    (folder / "own.csv").write_text("\n".join(["u,v,ill", *rows]) + "\n")
    (folder / "public.csv").write_text("\n".join(["u,v", f"{cell},1", *[f"{i},2" for i in range(11)]]) + "\n")
    source = {"source": "csv", "path": str(folder / "own.csv"), "label": "ill", "standardize": "none", **data}
    given = told_of(folder / "public.csv", data=source, model={"name": "logistic"})
    return {**given, "topology": {"graph": "ring", "nodes": 3}}


def test_a_public_row_whose_cells_a_site_would_fill_in_is_refused(tmp_path: Path) -> None:
    assert federation_of(of_a_table(tmp_path, missing="mean")).data.public is not None
    with pytest.raises(ConfigError, match="which every site would fill in by its own rows"):
        federation_of(of_a_table(tmp_path, "", missing="mean"))


def test_columns_that_a_site_scales_by_its_own_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every site scales its columns by its own rows"):
        federation_of(of_a_table(tmp_path, standardize="node"))
    pooled = of_a_table(tmp_path, standardize="pooled")
    assert federation_of(pooled).data.public is not None
    wanted: Experiment = experiment.parse(pooled, "test.toml", Experiment)
    with pytest.raises(ConfigError, match="every site scales its columns by its own rows"):
        build_own(wanted, 0, wanted.data)


def test_public_rows_are_a_part_of_their_own_in_what_a_run_leaves(tmp_path: Path) -> None:
    given = of_a_table(tmp_path)
    given["training"]["objective"] = [{"name": "medisecfed", "rows": 12}]
    predictions.write(federation_of(given), {}, tmp_path)
    with (tmp_path / "split.csv").open() as file:
        found = [*csv.DictReader(file)]
    public = [row for row in found if row["part"] == "public"]
    assert [row["row"] for row in public] == [*map(str, range(12))] and not any(row["node"] for row in public)
    assert sorted(int(row["line"]) for row in found) == [*range(2, 42)]


def test_what_has_no_end_is_refused() -> None:
    x = np.broadcast_to(np.float32(0), (2, LARGEST // 4))
    with pytest.raises(ConfigError, match=r"public rows have 128 MiB, .* at most 1 of them"):
        medisecfed(SGD, rows=2).shown(x)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="bound=inf: must be finite"):
        medisecfed(SGD, bound=float("inf"))


def test_training_rows_that_are_public_are_nobody_s() -> None:
    made = federation_of(table("nobody", TELLING, algorithm={"name": "dsgd"}))
    assert len(made.dataset.train.y) == sum(map(len, made.partition.train)) == 200
    assert made.data.public is not None and len(made.data.public) == 200
    known = {row.tobytes() for row in made.dataset.train.x}
    assert sum(row.tobytes() in known for row in made.data.public) < 3  # images that are there twice
    assert any("200 of 400 training rows are set apart" in note for note in made.notes)


@pytest.mark.parametrize("field", ["splits", "leave_site_out"])
def test_training_rows_that_are_public_are_not_dealt_out_anew(field: str) -> None:
    given = table("nobody", TELLING, algorithm={"name": "dsgd"}, evaluation={field: 2 if field == "splits" else True})
    wanted: Experiment = experiment.parse(given, "test.toml", Experiment)
    with pytest.raises(ConfigError, match=rf"evaluation.{field}: deals all rows out anew"):
        splits.check(wanted)


@pytest.mark.more
def test_a_split_that_never_changes_is_seen_whatever_training_rows_the_seed_draws() -> None:
    """Else all splits would be the same test rows, and have an interval."""
    given = table("nobody", TELLING, algorithm={"name": "dsgd"})
    one, two = (federation_of({**given, "seed": seed}) for seed in (0, 1))
    assert not np.array_equal(one.dataset.train.x, two.dataset.train.x)
    assert np.array_equal(splits._rows_of(one), splits._rows_of(two))


@pytest.mark.more
def test_a_run_that_goes_on_for_longer_sets_the_same_rows_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "read", lambda run: origin.Origin("", "rows", 40))
    longer = federation_of({**table("nobody", TELLING, algorithm={"name": "dsgd"}), "rounds": 60})
    assert resume.check(longer, tmp_path, "rows").rounds == 40


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"training": [TELLING, {"name": "augment"}]}, "must stand last"),
        ({"training": [{"name": "ditto", "strength": 0.1}, TELLING]}, "ditto does something with them"),
        ({"training": [{"name": "medisecfed", "rows": 1}]}, "rows=1"),
        ({"training": [{"name": "medisecfed", "rows": 200.0}]}, "rows=200.0: must be a whole number"),
        ({"training": [{"name": "medisecfed", "batch": 8.0}]}, "batch=8.0: must be a whole number"),
        ({"training": [{"name": "medisecfed", "rows": 2000}]}, "there are 400 training rows"),
        ({"training": [{"name": "medisecfed", "public": str(Path(__file__).parent)}]}, "give an .npz"),
        ({"training": {"patience": 3}}, "training.patience"),
        ({"training": {"lora": {"rank": 2}}}, "training.lora"),
        ({"training": [{"name": "medisecfed", "public": "/no/such.npz"}]}, "no such file"),
        ({"training": [{"name": "medisecfed", "temperature": 0}]}, "temperature=0"),
        ({"algorithm": {"name": "gradient_tracking"}}, "use dsgd"),
        ({"algorithm": {"name": "dsgd", "arguments": {"order": "cta"}}}, "use dsgd"),
        ({"algorithm": {"name": "dsgd", "share": ["**"]}}, "algorithm.share"),
        ({"evaluation": {"answers": ["interpolated"]}}, "evaluation.answers='interpolated'"),
        ({"privacy": {"clip": 1.0, "noise": 1.0, "delta": 0.01}}, "with [privacy] use"),
        ({"other_model": [{"nodes": [8], "name": "logistic"}]}, "there is no node 8"),
        ({"other_model": [{"nodes": [1, 1], "name": "logistic"}]}, "named twice"),
        ({"other_model": [{"nodes": [], "name": "logistic"}]}, "names nobody"),
        ({"other_model": [{"nodes": [1], "name": "mlp", "weights": "a.safetensors"}]}, "other_model[0].weights"),
        ({"other_model": [{"nodes": [1], "name": "unet"}]}, "model"),
        ({"other_model": [{"nodes": [1], "name": "logistic"}], "training": []}, "can't be mixed"),
        ({"other_model": OTHERS, "training": [], "data": {"source": "quadratic"}, **LOCAL}, "other_model: source="),
        (
            {
                "other_model": [{"nodes": [1], "name": "mmoe", "groups": [[0, 1], [2, 3]]}],
                **LOCAL,
                "training": [{"name": "tasks", "of": [0] * 8, "groups": [[0], [1]]}],
            },
            "other_model[0].groups=[[0, 1], [2, 3]]",
        ),
    ],
)
def test_what_is_refused(more: dict[str, Any], text: str) -> None:
    given = table("nobody", TELLING, algorithm={"name": "dsgd"})
    if "training" in more:
        steps = more["training"] if isinstance(more["training"], dict) else {"objective": more["training"]}
        more = {**more, "training": {**given["training"], **steps}}
    with pytest.raises(ConfigError) as error:
        federation_of({**given, **more})
    assert text in str(error.value)


def test_a_node_with_rows_of_its_own_needs_a_file_of_public_ones(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(size=(40, 64)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 10)
    given = table(
        "nobody", TELLING, algorithm={"name": "dsgd"}, data={"source": "npz", "path": str(tmp_path / "own.npz")}
    )
    wanted: Experiment = experiment.parse(given, "test.toml", Experiment)
    with pytest.raises(ConfigError, match="public ones must be the same at all sites"):
        build_own(wanted, 0, wanted.data)


@pytest.mark.more
def test_models_of_other_nodes_are_known_wherever_the_model_is() -> None:
    others = [{"nodes": [1], "name": "mlp"}]
    given = table("nobody", data={"source": "breast_cancer"}, model={"name": "logistic"}, **LOCAL)
    assert coefficients.asked(federation_of(given))
    unlike = federation_of({**given, "other_model": others})
    assert not coefficients.asked(unlike)
    assert {("p2pfl.models", "mlp"), ("p2pfl.models", "logistic")} <= learning.own_names(unlike.experiment)
    script = experiment.parse({**given, "data": {"source": "script"}, "other_model": others}, "test.toml", Experiment)
    with pytest.raises(ConfigError, match=r"other_model: data\.source='script'"):
        build_script(replace(script, model=None), ScriptedSteps(unlike.learner, SGD))
