"""What comes with p2pfl beside its code: folders of the repository, copied into the package where a wheel is made."""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("experiments", "topologies")
"""What setup.py puts into a wheel."""


def folder(name: str) -> Path:
    """Return where one of FOLDERS lies: inside of the package, or in a checkout beside it.

    Example:
        >>> from p2pfl.shipped import folder
        >>> (folder("experiments") / "data" / "chexpert.toml").is_file()
        True
    """
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def experiments() -> list[str]:
    """Return the names of the folders of experiments/, sorted; data holds the layouts of data sets.

    Example:
        >>> from p2pfl.shipped import experiments
        >>> {"brain-3d", "data", "ring-digits"} <= {*experiments()}
        True
    """
    return sorted(readme.parent.name for readme in folder("experiments").glob("*/README.md"))
