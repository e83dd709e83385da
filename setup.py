"""What setup.cfg can't say: a wheel has a copy of experiments/ and topologies/, of which the repository has one."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("experiments", "topologies")  # those of p2pfl.shipped
SUFFIXES = (".toml", ".md", ".py", ".json", ".graphml", ".png")


class BuildPy(build_py):
    """Builds the package; what is installed by `pip install -e` finds the folders in the checkout."""

    def run(self):
        """Build, then copy the folders; what lies deeper in them, such as the data of a run, stays behind."""
        super().run()
        for file in () if self.editable_mode else shipped():
            target = Path(self.build_lib, "p2pfl", file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def shipped():
    """Return the files that a wheel has beside the package."""
    found = [file for name in FOLDERS for pattern in ("*", "*/*") for file in sorted(Path(name).glob(pattern))]
    return [file for file in found if file.is_file() and file.suffix in SUFFIXES]


setup(cmdclass={"build_py": BuildPy})
