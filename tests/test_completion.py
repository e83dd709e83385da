"""`p2pfl completion`: the shell completes what the command line knows, without waiting for jax."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from p2pfl.cli import main

ASKED = """
import sys
from p2pfl.cli import main
try:
    main(prog_name="p2pfl")
except SystemExit:
    pass
heavy = {"jax", "numpy", "networkx", "pandas", "sklearn", "zmq", "pydantic"} & {*sys.modules}
assert not heavy, heavy
"""


def completed(*words: str) -> list[tuple[str, str]]:
    """What follows these words, of which the last is not finished: (value, what kind)."""
    shell = BashComplete(main, {}, "p2pfl", "_P2PFL_COMPLETE")
    return [(each.value, each.type) for each in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ini",), [("init", "plain")]),
        (("doc",), [("doctor", "plain")]),
        (("init", "--template", "b"), [("brain-3d", "plain"), ("byzantine", "plain")]),
        (("run", "x.toml", "--driver", ""), [("live", "plain"), ("virtual", "plain"), ("simulate", "plain")]),
        (("completion", ""), [("bash", "plain"), ("zsh", "plain"), ("fish", "plain")]),
        (("run", "exp"), [("exp", "file")]),
        (("doctor", "a"), [("a", "file")]),
        (("doctor", "a.toml", "--wa"), [("--wait", "plain")]),
    ],
)
def test_what_is_completed(words: tuple[str, ...], expected: list[tuple[str, str]]) -> None:
    assert completed(*words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_with_where_it_goes(shell: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    head, *lines = result.stdout.splitlines()
    assert result.exit_code == 0 and f"p2pfl completion {shell}" in "\n".join([head, *lines[:1]])
    assert f"_P2PFL_COMPLETE={shell}_complete" in result.stdout
    if shell == "zsh":
        assert head == "#compdef p2pfl"  # where it lies in a folder of fpath, zsh reads this
    script = tmp_path / "script"
    script.write_text(result.stdout)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


def test_nothing_heavy_is_imported_to_complete() -> None:
    asked = {"_P2PFL_COMPLETE": "bash_complete", "COMP_WORDS": "p2pfl init --template ", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", ASKED], env=os.environ | asked, capture_output=True, text=True)
    assert done.returncode == 0 and "plain,hospital" in done.stdout, done.stderr
