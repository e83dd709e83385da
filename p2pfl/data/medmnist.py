"""MedMNIST by name (Yang et al. 2023, "MedMNIST v2", Scientific Data): its files, with the names of their classes.

The `medmnist` package downloads a file where it is installed and the network allows; it needs torch, which nothing here
does. So the file is looked for first, and read as any other .npz: no package is needed where it lies.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from p2pfl.check import one_of
from p2pfl.data import npz
from p2pfl.data.dataset import Dataset
from p2pfl.errors import USER_FAULTS, ConfigError, DataError

FOLDER = "~/.medmnist"
RECORD = "https://zenodo.org/records/10519652/files"
"""Where the authors publish the files: one for each subset and size."""
SIZES_2D, SIZES_3D = (28, 64, 128, 224), (28, 64)
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip
SUBSETS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "pathmnist": (
            "PathMNIST",
            ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
             "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        ),
        "chestmnist": (
            "ChestMNIST",
            ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
             "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
        ),
        "dermamnist": (
            "DermaMNIST",
            ("actinic keratoses", "basal cell carcinoma", "benign keratosis-like lesions", "dermatofibroma", "melanoma",
             "melanocytic nevi", "vascular lesions"),
        ),
        "octmnist": ("OCTMNIST", ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")),
        "pneumoniamnist": ("PneumoniaMNIST", ("normal", "pneumonia")),
        "retinamnist": ("RetinaMNIST", ("0", "1", "2", "3", "4")),
        "breastmnist": ("BreastMNIST", ("malignant", "normal or benign")),
        "bloodmnist": (
            "BloodMNIST",
            ("basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil",
             "platelet"),
        ),
        "tissuemnist": (
            "TissueMNIST",
            ("collecting duct", "distal convoluted tubule", "glomerular endothelial cells",
             "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule", "thick ascending limb"),
        ),
        "organamnist": ("OrganAMNIST", _ORGANS),
        "organcmnist": ("OrganCMNIST", _ORGANS),
        "organsmnist": ("OrganSMNIST", _ORGANS),
        "organmnist3d": (
            "OrganMNIST3D",
            ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right",
             "lung-left", "spleen", "pancreas"),
        ),
        "nodulemnist3d": ("NoduleMNIST3D", ("benign", "malignant")),
        "adrenalmnist3d": ("AdrenalMNIST3D", ("normal", "hyperplasia")),
        "fracturemnist3d": ("FractureMNIST3D", ("buckle", "nondisplaced", "displaced")),
        "vesselmnist3d": ("VesselMNIST3D", ("vessel", "aneurysm")),
        "synapsemnist3d": ("SynapseMNIST3D", ("inhibitory", "excitatory")),
    }
)  # fmt: skip
"""Subset -> the class of the `medmnist` package that downloads it, and the names of its classes in their order."""


def load(subset: str, size: int = 28, root: str | None = None, seed: int = 0) -> Dataset:
    """Load a subset of MedMNIST.

    Looks for `subset`.npz, of other sizes than 28 `subset`_`size`.npz, and else lets the `medmnist` package download
    it. Source: Yang et al. (2023).

    Args:
        subset: its name, such as "pathmnist".
        size: side in pixels, 28, 64, ...
        root: the folder of its file; None: ~/.medmnist.
        seed: draws nothing: the split is the authors'.

    Returns:
        x [N, size, size, C] (3-D: [N, size, size, size, 1]) float32 in 0..1. ChestMNIST is of the kind "labels"; all
        others are "classes".

    Raises:
        ConfigError: no such subset or size.
        DataError: the file is not there and can't be got, with the ways to get it; and what `npz.load` refuses.

    Example:
        >>> import p2pfl
        >>> p2pfl.data.medmnist.load("pathmnist", size=29)
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: size=29: pathmnist comes in 28, 64, 128, 224
    """
    one_of(SUBSETS, subset=subset)
    maker, classes = SUBSETS[subset]
    sizes = SIZES_3D if subset.endswith("3d") else SIZES_2D
    if size not in sizes:
        raise ConfigError(f"size={size!r}: {subset} comes in {', '.join(map(str, sizes))}")
    folder = Path(root or FOLDER).expanduser()
    file = folder / (f"{subset}.npz" if size == 28 else f"{subset}_{size}.npz")
    if not file.is_file():
        _download(maker, size, file)
    dataset = _named(npz.load(file, seed=seed), classes, file)
    if dataset.image is None:
        return dataset
    photometric = "RGB" if dataset.image.channels == 3 else "MONOCHROME2"
    return dataset._replace(image=dataset.image._replace(unit="stored", photometric=photometric))


def _named(found: Dataset, classes: tuple[str, ...], file: Path) -> Dataset:
    """The data with the names of its classes instead of their numbers."""
    if not all(name.isdecimal() for name in found.classes):
        return found  # the file names its classes itself
    numbers = [int(name) for name in found.classes]
    if found.kind == "classes" and numbers != list(range(len(classes))):
        raise DataError(
            f"{file}: has the labels {', '.join(found.classes)}; {len(classes)} classes, 0 to {len(classes) - 1}, are "
            'expected. Of a file that was cut down, use source = "npz"'
        )
    if found.kind == "labels" and len(numbers) != len(classes):
        raise DataError(f"{file}: has {len(numbers)} labels; {len(classes)} are expected")
    return found._replace(classes=classes)


def _download(maker: str, size: int, file: Path) -> None:
    """Let the medmnist package put the file there."""
    ways = (
        f"Download {RECORD}/{file.name} and put it into {file.parent}, "
        'or name its path with source = "npz"; or install p2pfl-jax[medmnist], which downloads it (and brings torch)'
    )
    if not all(importlib.util.find_spec(name) for name in ("torchvision", "medmnist")):
        raise DataError(f"{file}: no such file, and the medmnist package, which would get it, is not installed. {ways}")
    said = io.StringIO()  # the package prints its progress, and standard output belongs to whoever reads our --json
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(said):
            package = importlib.import_module("medmnist")
            getattr(package, maker)(split="train", download=True, size=size, root=str(file.parent))
    except USER_FAULTS as exc:
        raise DataError(f"{file}: no such file, and the download failed: {type(exc).__name__}. {ways}") from exc
    if not file.is_file():
        raise DataError(f"{file}: no such file, also after the medmnist package was asked for it. {ways}")
