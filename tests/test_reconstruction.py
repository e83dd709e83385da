"""From images to degraded ones and back: k-space, super-resolution, noise; and the methods of reconstruction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import MECHANISMS, federation_of

from p2pfl import data
from p2pfl.algorithms import ALGORITHMS
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples
from p2pfl.data.degrade import Downsample, Noise, Undersample, degraded, mask, zero_filled
from p2pfl.errors import ConfigError, DataError
from p2pfl.federation import federation
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import placed
from p2pfl.methods import bulletin, site_facts
from p2pfl.methods.compose import withhold
from p2pfl.methods.objectives import OBJECTIVES
from p2pfl.methods.objectives.adversary import flat
from p2pfl.methods.objectives.contrast import contrast
from p2pfl.types import Inbox, Learner, Neighborhood, Tree

KEY = jax.random.key(0)


def images(rows: int = 8, side: int = 16, channels: int = 1, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    x = np.kron(rng.random((rows, 4, 4, channels)), np.ones((1, side // 4, side // 4, 1))).astype(np.float32)
    part = Samples(x, np.arange(rows, dtype=np.int32) % 2, np.arange(rows, dtype=np.int32) % 2)
    return Dataset(part, part, ("a", "b"), ("s", "t"), validation=part)


def made(how: Any, dataset: Dataset | None = None, seed: int = 0, by_site: bool = True) -> Dataset:
    dataset = images() if dataset is None else dataset
    found = degraded(dataset, data.by_site(dataset, 2, 0), how, seed, by_site)
    data.validate(found, "it")
    return found


# --- what is done to images


def test_all_columns_give_the_image_and_noise_keeps_its_size() -> None:
    whole = made(Undersample("undersample", acceleration=1.0))
    np.testing.assert_allclose(whole.train.x, whole.train.y, atol=1e-6)
    assert whole.kind == "reconstruction" and whole.classes == ("grey",)
    noisy = made(Undersample("undersample", acceleration=1.0, noise=0.1), images(side=64)._replace(validation=None))
    bright = noisy.train.y > 0.5  # there the magnitude of a complex number is nearly its real part
    assert float((noisy.train.x - noisy.train.y)[bright].std()) == pytest.approx(0.1, rel=0.05)


def test_what_is_not_measured_is_zero_in_k_space() -> None:
    rng = np.random.default_rng(0)
    measured, image = mask(32, 4.0, 0.1, "random", rng), rng.random((32, 32, 1))
    assert measured.sum() == 8 and measured[15:18].all()  # round(32 * 0.1) = 3 in the middle
    space = np.fft.fftshift(np.fft.fft2(image[..., 0], norm="ortho"))
    by_hand = np.abs(np.fft.ifft2(np.fft.ifftshift(space * measured), norm="ortho"))
    np.testing.assert_allclose(zero_filled(image, measured)[..., 0], by_hand, atol=1e-12)
    gaps = np.diff(np.flatnonzero(mask(64, 4.0, 0.08, "equispaced", rng)))
    assert gaps.max() <= 6 and mask(64, 4.0, 0.08, "equispaced", rng).sum() == 16


def test_fewer_pixels_come_back_as_many_and_in_place() -> None:
    """A ramp stays a ramp: by interpolation nothing is moved."""
    ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32)[None, :, None, None], (4, 1, 16, 1))
    dataset = images(4)._replace(validation=None)
    parts = {name: getattr(dataset, name)._replace(x=ramp) for name in ("train", "test")}
    for interpolation in ("linear", "cubic"):
        found = made(Downsample("downsample", factor=2, interpolation=interpolation), dataset._replace(**parts))
        np.testing.assert_allclose(found.train.x[:, 3:-3], ramp[:, 3:-3], atol=0.01)
    nearest = made(Downsample("downsample", factor=2, interpolation="nearest"), dataset._replace(**parts)).train.x
    np.testing.assert_allclose(nearest[:, ::2], nearest[:, 1::2])
    np.testing.assert_allclose(nearest[:, ::2], (ramp[:, ::2] + ramp[:, 1::2]) / 2, atol=1e-6)


def test_each_node_has_its_own_settings_and_every_row_its_own_noise() -> None:
    found = made(Noise("noise", noise=(0.0, 0.1)))
    off = found.train.x - found.train.y
    assert found.train.site is not None
    own = [off[found.train.site == node] for node in (0, 1)]
    assert not own[0].any() and float(own[1].std()) == pytest.approx(0.1, rel=0.1)
    assert len({row.tobytes() for row in own[1]}) == len(own[1])
    assert not np.array_equal(off, found.test.x - found.test.y)
    assert found.validation is not None and not (found.validation.x - found.validation.y)[::2].any()
    dealt = (np.arange(4), np.arange(4, 8))  # otherwise than by site, as where nodes watch their models by them
    other = degraded(
        images(), data.by_site(images(), 2, 0), Noise("noise", noise=(0.0, 0.1)), 0, True, dealt
    ).validation
    assert other is not None
    assert not (other.x - other.y)[:4].any() and (other.x - other.y)[4:].any(axis=(1, 2, 3)).all()
    again = made(Noise("noise", noise=(0.0, 0.1)))
    np.testing.assert_array_equal(again.train.x, found.train.x)
    assert not np.array_equal(made(Noise("noise", noise=(0.0, 0.1)), seed=1).train.x, found.train.x)
    assert degraded(found, data.by_site(found, 2, 0), Noise("noise", noise=1.0), 0) is found


@pytest.mark.parametrize("drawn", ["site", "image"])
def test_a_mask_is_that_of_a_site_or_of_an_image(drawn: Any) -> None:
    one = images(8)
    same = one.train._replace(x=np.repeat(one.train.x[:1], 8, axis=0))
    dataset = one._replace(train=same, validation=None)
    x = made(Undersample("undersample", acceleration=2.0, drawn=drawn), dataset).train.x
    assert np.array_equal(x[0], x[2]) == (drawn == "site")  # rows of one site
    assert not np.array_equal(x[0], x[1])


@pytest.mark.parametrize(
    ("how", "change", "said"),
    [
        (Noise("noise", noise=(0.1,)), {}, r"degrade\.noise=\[0\.1\]: 1 values for 2 nodes"),
        (Undersample("undersample", acceleration=4.0, center_fraction=0.5), {}, "these would be more; make one of"),
        (Undersample("undersample", acceleration=40.0, center_fraction=0.01), {}, "measures none of 16 columns"),
        (Downsample("downsample", factor=(2, 3)), {}, "factor=3: must divide height and width of the images, 16 x 16"),
        (Noise("noise", noise=0.1), {"x": np.full((8, 4, 4, 1), 2, np.float32)}, "hold 2 to 2; they must be in 0..1"),
        (Noise("noise", noise=0.1), {"x": np.zeros((8, 5), np.float32)}, r"has shape \[5\]\. Leave it out"),
    ],
)
def test_what_can_not_be_degraded_is_refused(how: Any, change: dict[str, Any], said: str) -> None:
    dataset = images()._replace(validation=None)
    parts = {name: getattr(dataset, name)._replace(**change) for name in ("train", "test")}
    with pytest.raises((ConfigError, DataError), match=said):
        made(how, dataset._replace(**parts))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"by": "blur"}, "data.degrade.by='blur'"),
        ({"by": "noise"}, "data.degrade.noise"),
        ({"by": "noise", "noise": -1}, "data.degrade.noise"),
        ({"by": "noise", "noise": 0.1, "factor": 2}, "data.degrade.factor"),
        ({"by": "undersample", "acceleration": 0.5}, "data.degrade.acceleration"),
        ({"by": "undersample", "acceleration": 4, "columns": "radial"}, "data.degrade.columns"),
    ],
)
def test_mistakes_in_the_table(table: dict[str, Any], said: str) -> None:
    whole = {**MECHANISMS["reconstruction"]}
    whole["data"] = {**whole["data"], "degrade": table}
    with pytest.raises(ConfigError, match=said):
        experiment.parse(whole, "it.toml", Experiment)


@pytest.mark.more
def test_all_drivers_and_a_node_alone_degrade_a_row_alike() -> None:
    """Each process of a run reads the experiment by itself; the file that a run writes down says the same."""
    wanted: Experiment = experiment.parse(MECHANISMS["reconstruction"], "it.toml", Experiment)
    with jax.enable_x64(True):
        first, again = federation.build(wanted), federation.build(wanted)
    np.testing.assert_array_equal(first.dataset.train.x, again.dataset.train.x)
    assert first.dataset.kind == "reconstruction" and "noise = [0.05, 0.2, 0.1]" in " ".join(first.notes)
    off = first.dataset.train.x - first.dataset.train.y
    spread = [float(off[rows].std()) for rows in first.partition.train]
    np.testing.assert_allclose(spread, [0.05, 0.2, 0.1], rtol=0.1)


# --- fastMRI: measured k-space


def fastmri_file(file: Path, seed: int, acquisition: str, slices: int = 5, size: tuple[int, int] = (24, 18)) -> None:
    """A volume as fastMRI has it: k-space larger than its images, which are the middle of its transform."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.random((slices, size[0] // 2, size[1] // 2)), np.ones((1, 2, 2)))
    image = smooth * np.exp(2j * np.pi * rng.random((slices, 1, 1)))  # a phase, as coils have it
    axes = (1, 2)
    space = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes)
    top, left = (size[0] - 16) // 2, (size[1] - 12) // 2
    target = np.abs(image)[:, top : top + 16, left : left + 12].astype(np.float32) * 1e-4
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        out["kspace"] = (space * 1e-4).astype(np.complex64)
        out["reconstruction_esc"] = target
        out["ismrmrd_header"] = b"<ismrmrdHeader/>"
        out.attrs.update(acquisition=acquisition, max=float(target.max()), norm=1.0, patient_id=f"p{seed}")


@pytest.fixture
def knees(tmp_path: Path) -> Path:
    """The folder, with a layout of the size of these volumes."""
    for part, seeds in (("train", range(4)), ("val", range(4, 6))):
        for seed in seeds:
            name = ("CORPD_FBK", "CORPDFS_FBK")[seed % 2]
            fastmri_file(tmp_path / f"singlecoil_{part}" / f"file100000{seed}.h5", seed, name)
    fastmri_file(tmp_path / "singlecoil_train" / "file1000009.h5", 9, "CORPD_FBK", size=(24, 20))
    text = (Path(__file__).parents[1] / "experiments" / "data" / "fastmri_knee.toml").read_text("utf-8")
    (tmp_path / "layout.toml").write_text(text.replace("640x368", "24x18").replace("[10, 26]", "[1, 4]"), "utf-8")
    return tmp_path


def test_fastmri_is_read_and_all_of_its_k_space_gives_its_images(knees: Path) -> None:
    found = data.folder.load(knees, str(knees / "layout.toml"))
    assert found.train.x.shape == (12, 24, 18, 2) and found.test.y.shape == (6, 16, 12, 1)
    assert found.sites == ("CORPDFS_FBK", "CORPD_FBK") and "left out 1 rows" in " ".join(found.notes)
    whole = made(Undersample("undersample", acceleration=1.0), found)
    assert float(found.train.y.max()) > 0.9
    np.testing.assert_allclose(whole.train.x, whole.train.y, atol=1e-5)
    part = made(Undersample("undersample", acceleration=(2.0, 3.0)), found)
    off = ((part.train.x - part.train.y) ** 2).mean(axis=(1, 2, 3))
    assert part.train.site is not None and (off > 1e-4).all()
    assert part.image is not None and part.image.unit == "stored"
    assert degraded(part, data.by_site(part, 2, 0), Noise("noise", noise=1.0), 0) is part
    with pytest.raises(ConfigError, match='k-space as it was measured; use "undersample"'):
        made(Noise("noise", noise=0.1), found)


def test_k_space_needs_to_be_told_what_is_seen_of_it(knees: Path) -> None:
    table = {**MECHANISMS["reconstruction"], "topology": {"graph": "ring", "nodes": 2}}
    table["data"] = {"source": "folder", "path": str(knees), "layout": str(knees / "layout.toml")}
    with jax.enable_x64(True), pytest.raises(ConfigError, match=r"data\.degrade: missing; the data are whole k-space"):
        federation_of(table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("several", "of several coils; only those of a single coil are read"),
        ("challenge", "holds no reconstruction_esc: of the part that is for the challenge"),
        ("empty", "holds no kspace"),
        ("text", "can't be read as HDF5"),
        ("small", r"must be complex and real, \[slices, height, width\] each, images not larger"),
    ],
)
def test_files_that_are_none_of_fastmri_are_refused_by_name(knees: Path, change: str, said: str) -> None:
    h5py = pytest.importorskip("h5py")
    file = knees / "singlecoil_train" / "file1000000.h5"
    if change == "text":
        file.write_text("no HDF5")
    else:
        with h5py.File(file, "r+") as out:
            space = out["kspace"][()]
            del out["reconstruction_esc" if change in ("challenge", "small") else "kspace"]
            if change == "several":
                out["kspace"] = space[:, None]
            if change == "small":
                out["reconstruction_esc"] = np.zeros((5, 30, 30), np.float32)
    with pytest.raises(DataError, match=f"file1000000.h5: .*{said}"):
        data.folder.load(knees, str(knees / "layout.toml"))


# --- FedMRI

SGD = optax.sgd(0.1)


def unet(channels: tuple[int, ...] = (2, 3)) -> Learner:
    return from_flax(models.unet((8, 8, 1), 1, channels, residual=True), jnp.zeros((1, 8, 8, 1)), 1, "reconstruction")


def wrapped(name: str, inner: Learner, **arguments: Any) -> Learner:
    wrap = OBJECTIVES[name](SGD, **arguments).learner
    assert wrap is not None
    return wrap(inner)


def batch(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.random((3, 8, 8, 1)), jnp.float32) for name in ("x", "y")}


@pytest.mark.more
def test_the_contrast_is_the_ratio_of_its_distances() -> None:
    """By hand, as the authors' program adds them up; what is not known has no part."""
    w, g = {"a": jnp.asarray([1.0, 2.0])}, {"a": jnp.asarray([0.0, 4.0])}
    before = {"a": jnp.asarray([[2.0, 2.0], [1.0, -1.0], [9.0, 9.0]])}
    assert float(contrast(w, g, before, jnp.asarray([1, 1, 0]))) == pytest.approx(3 / (1 + 3))
    assert float(contrast(w, g, before, jnp.zeros(3, jnp.int32))) == 0
    towards = jax.grad(lambda w: contrast(w, g, before, jnp.asarray([1, 0, 0])))(w)["a"]
    np.testing.assert_allclose(towards, [1 / 1 + 3 / 1, -1.0])  # near / far is 3 / 1; |1 - 2| grows as w falls
    still = jax.grad(lambda w: contrast(w, g, before, jnp.ones(3)))(g)["a"]
    np.testing.assert_array_equal(still, [0, 0])  # where it has not moved, nothing pulls


@pytest.mark.more
def test_fedmri_remembers_what_it_had_and_what_came() -> None:
    """A round of two nodes: g is what was mixed, the others are both encoders before; decoders have no part."""
    inner = unet()
    method = OBJECTIVES["fedmri"](SGD, strength=0.5, neighbors=2)
    assert method.learner is not None and method.wrap is not None
    learner = method.learner(inner)
    algorithm = method.wrap(withhold(ALGORITHMS["dsgd"](learner, SGD)))
    half = Neighborhood(np.full(1, 0.5, np.float32), np.full(1, 0.5, np.float32))
    states = [algorithm.init(learner.init(jax.random.key(i)), 1) for i in range(2)]
    old = [algorithm.params(state)["trained"]["encoder"] for state in states]
    sent = [jax.tree.map(lambda leaf: leaf[None], algorithm.send(state, half)[1]) for state in states]
    both = jax.jit(inner.grad), jax.jit(learner.grad)
    for node, state in enumerate(states):
        inbox = Inbox(sent[node], sent[1 - node], np.ones(1, bool), np.zeros(1, np.int32))
        params = algorithm.params(algorithm.mix(state, inbox, half))
        memory, now = params["private"]["fedmri"], params["trained"]["encoder"]
        assert memory["known"].tolist() == [1, 1, 0]
        for k, of in ((0, node), (1, 1 - node)):
            jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), memory["before"], old[of])
        params = {**params, "private": {"fedmri": {**memory, "start": now}}}
        away = {**params, "trained": {**params["trained"], "encoder": jax.tree.map(lambda w: w + 0.01, now)}}
        plain, pulled = (found(away, batch(), KEY) for found in both)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), plain[0]["decoder"], pulled[0]["decoder"]
        )
        wanted = jax.grad(lambda w, m={**memory, "start": now}: 0.5 * contrast(w, **m))(away["trained"]["encoder"])
        found = jax.tree.map(lambda a, b: a - b, pulled[0]["encoder"], plain[0]["encoder"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), found, wanted)
        assert pulled[2]["loss"] > plain[2]["loss"]


@pytest.mark.more
def test_fedmri_needs_a_shared_encoder() -> None:
    with pytest.raises(ConfigError, match="part='enc': did you mean 'encoder'"):
        wrapped("fedmri", unet(), part="enc")
    table = {**MECHANISMS["reconstruction"], "algorithm": {"name": "dsgd", "share": ["encoder/0/**"]}}
    with jax.enable_x64(True), pytest.raises(ConfigError, match="all of 'encoder' must be shared"):
        federation_of(table)


# --- FL-MRCM


def placed_learner(**arguments: Any) -> tuple[Learner, list[Tree]]:
    """A learner, and the models of two nodes of which node 0 is the reference."""
    method = OBJECTIVES["fl_mrcm"](SGD, rows=2, **arguments)
    assert method.bulletin is not None and method.learner is not None
    learner = method.learner(bulletin.placed(site_facts.counting(unet()), method.bulletin, 2, (8, 8, 1)))
    first, keys = learner.init(KEY), site_facts.entropy(2, 0)
    sites = [{"node": np.eye(2, dtype=np.int32)[node], "entropy": keys[node]} for node in range(2)]
    return learner, [placed(first, site) for site in sites]


@pytest.mark.more
def test_only_the_reference_tells_and_only_the_others_align() -> None:
    learner, (reference, other) = placed_learner()
    plain = unet().grad(other, batch(), KEY)[0]
    silent = learner.grad(other, batch(), KEY)
    jax.tree.map(np.testing.assert_array_equal, silent[0], plain)  # nothing has been heard
    assert silent[1]["private"]["fl_mrcm"]["version"].tolist() == [0, 0]
    gradient, told, _ = learner.grad(reference, batch(), KEY)
    jax.tree.map(np.testing.assert_array_equal, gradient, plain)
    table = told["private"]["fl_mrcm"]
    assert table["version"].tolist() == [1, 0] and table["rows"]["features"][0].any()
    heard = {**other, "private": {**other["private"], "fl_mrcm": table}}
    moved, after, metrics = learner.grad(heard, batch(1), KEY)
    unmoved = unet().grad(other, batch(1), KEY)
    jax.tree.map(np.testing.assert_array_equal, moved["decoder"], unmoved[0]["decoder"])  # features know nothing of it
    assert jax.tree.leaves(moved["encoder"])[1].any() and metrics["loss"] > unmoved[2]["loss"]
    kept = "fl_mrcm_classifier"
    before, now = (jax.tree.leaves(each["private"][kept]["network"]) for each in (heard, after))
    assert any((a != b).any() for a, b in zip(before, now, strict=True))
    noisy, (first, _) = placed_learner(noise=1.0)
    said = noisy.grad(first, batch(), KEY)[1]["private"]["fl_mrcm"]["rows"]["features"][0]
    assert 0.3 < float((said - table["rows"]["features"][0]).std()) < 3


@pytest.mark.more
def test_features_become_like_those_of_the_reference_while_the_image_is_learned() -> None:
    """A site whose images are brighter: what lies between its features and the reference's becomes a part of it."""
    bright, dark = ({"x": scale * batch(2)["x"], "y": scale * batch(2)["x"]} for scale in (1.0, 0.4))

    def after(strength: float) -> tuple[float, float]:
        learner, (reference, other) = placed_learner(strength=strength)
        assert learner.features is not None
        told = jax.jit(learner.grad)(reference, dark, KEY)[1]["private"]["fl_mrcm"]
        params = {**other, "private": {**other["private"], "fl_mrcm": told}}

        @jax.jit
        def step(params: Tree, key: Any) -> Tree:
            gradient, others, _ = learner.grad(params, bright, key)
            trained = jax.tree.map(lambda w, g: w - 0.1 * g, params["trained"], gradient)
            return {**others, "trained": trained}

        for number in range(150):
            params = step(params, jax.random.key(number))
        z = flat(learner.features(params, bright["x"], None)[0]).mean(axis=0)
        off = float(jnp.abs(z - told["rows"]["features"][0].mean(axis=0)).mean())
        return off, float(learner.evaluate(params, bright, jnp.ones(3))["score"].mean())

    (apart, plain), (near, aligned) = after(0.0), after(0.1)
    assert near < 0.6 * apart and aligned > 15 and plain > 15


@pytest.mark.more
def test_features_that_leave_are_said_and_a_reference_must_be_there() -> None:
    with jax.enable_x64(True):
        made = federation_of(MECHANISMS["reconstruction"])
    assert "features of 2 rows of node 1, which tell of its images" in made.algorithm.travels
    assert any("features of 2 rows of node 1" in note for note in made.notes)
    table = MECHANISMS["reconstruction"]
    training = {**table["training"], "objective": [{"name": "fl_mrcm", "reference": 7}]}
    with jax.enable_x64(True), pytest.raises(ConfigError, match="reference=7: there are nodes 0 to 2"):
        federation_of({**table, "training": training})


@pytest.mark.parametrize(
    "name, arguments",
    [("fedmri", {"strength": -1}), ("fedmri", {"neighbors": -1}), ("fl_mrcm", {"rows": 0}), ("fl_mrcm", {"noise": -1})],
)
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be >="):
        OBJECTIVES[name](SGD, **arguments)
