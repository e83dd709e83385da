"""Limits of the machine and of the account: each case either works, or is refused with a sentence. Real processes.

docs/commands.md, "Limits of the machine", says the same in words.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.more

EXPERIMENT = """
name = "tiny"
rounds = 2
baselines = false
data = { source = "quadratic" }
training = { optimizer = { name = "sgd", learning_rate = 0.1 } }
topology = { graph = "ring", nodes = 3 }
algorithm = { name = "dsgd" }
driver = { kind = "simulate" }
"""
SWEEP = """
name = "s"
experiment = "tiny.toml"
metrics = ["consensus_distance"]
seeds = [0]
axes = { rounds = [1] }
"""
ROWS = """
name = "rows"
rounds = 1
baselines = false
data = { source = "csv", path = "dätä x.csv", label = "ill" }
model = { name = "logistic" }
training = { optimizer = { name = "sgd", learning_rate = 0.1 } }
topology = { graph = "ring", nodes = 2 }
algorithm = { name = "dsgd" }
driver = { kind = "simulate" }
"""
NOBODY = """
import os, pwd, sys
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
from p2pfl.cli import main
main(prog_name="p2pfl")
"""
"""The command as a user without a home and without an entry in the list of users, as in many a container."""

P2PFL = f"'{sys.executable}' -m p2pfl"
NOT_UTF_8 = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Case(NamedTuple):
    """A command and what comes of it."""

    words: str  # of a shell; "p2pfl" and "nobody" stand for the command
    code: int = 0
    said: str = ""  # a pattern of what it says
    environment: Mapping[str, str] = {}
    mounts: bool = False  # it needs the right to mount


def on(kind: str, words: str) -> str:
    """In a place of its own, mounted over /mnt."""
    return f'unshare -m sh -c "mount -t tmpfs -o {kind} none /mnt && {words}"'


CASES = {
    "64 nodes, 64 files": Case(
        "ulimit -n 64; p2pfl run tiny.toml --driver live --set topology.nodes=64",
        1,
        r"nodes=64: p2pfl run needs 448 open files and sockets, and 64 are allowed here\. Raise the hard limit",
    ),
    "a full disk, run": Case(
        on("size=60k", "p2pfl run tiny.toml --out /mnt/run"),
        4,
        "/mnt/run.*: No space left on device; make room there",
        mounts=True,
    ),
    "a full disk, init": Case(
        on("size=16k", "p2pfl init /mnt/h"), 4, "/mnt/h.*: No space left on device; make room there", mounts=True
    ),
    "a disk that is read-only": Case(
        on("ro", "cd /mnt && p2pfl init"), 1, "hospital: Read-only file system", mounts=True
    ),
    "a home that is read-only": Case(on("ro", "HOME=/mnt p2pfl run tiny.toml"), said="report: ", mounts=True),
    "no home, no user, no terminal, no folder for temporary files, LANG=C": Case(
        "setsid -w nobody run tiny.toml < /dev/null | cat && nobody report runs/*",
        said="report.html",
        environment={"LC_ALL": "C", "LANG": "C", "TMPDIR": "/none"},
    ),
    "no home, doctor": Case(
        "nobody doctor", said="there is no place for compiled programs: each process compiles anew"
    ),
    "no home, completion": Case("nobody completion bash", said="complete -o nosort"),
    "standard output is closed, and the home is no directory": Case(
        "p2pfl run tiny.toml --out out >&-; test -f out/report.html", environment={"HOME": "/dev/null/x"}
    ),
    "a locale that is not UTF-8": Case("p2pfl run tiny.toml", said="report: ", environment=NOT_UTF_8),
    "letters that the locale has not": Case(
        "p2pfl run rows.toml", 1, "has letters that file names can't have here.*PYTHONUTF8=1", NOT_UTF_8
    ),
    "spaces and umlauts, and another current folder": Case(
        'mkdir "aus gäbe" && cd "aus gäbe" && p2pfl run "../mit Umläut/rows ö.toml" && test -d runs', said="report: "
    ),
    "a current folder that is gone": Case(
        "mkdir gone && cd gone && rmdir ../gone && p2pfl run ../tiny.toml",
        1,
        "the current directory is gone: cd to one that is there",
    ),
    "two runs in one second": Case(
        "p2pfl run tiny.toml > 1 & p2pfl run tiny.toml > 2 & wait; ls -d runs/*", said=r"(?s)runs/tiny-.*runs/tiny-"
    ),
    "two runs in one directory": Case(
        "p2pfl run tiny.toml --out out > 1 2>&1 & p2pfl run tiny.toml --out out > 2 2>&1; wait; cat 1 2",
        said="(is still going on, in another process|is not empty)",
    ),
    "no shared memory": Case(
        "unshare -m sh -c 'mount -t tmpfs -o ro none /dev/shm && p2pfl sweep sweep.toml'",
        1,
        "/dev/shm: can't be used: Read-only file system; the workers of a sweep need it",
        mounts=True,
    ),
    "64 files, simulated by a sweep": Case("ulimit -n 64; p2pfl sweep sweep.toml", said="table: "),
}


def may_mount() -> bool:
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.parametrize("name", CASES)
def test_it_works_or_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.mounts and not may_mount():
        pytest.skip("this account may not mount a disk of its own (unshare -m)")
    (tmp_path / "mit Umläut").mkdir()
    for folder, file in ((tmp_path, "rows.toml"), (tmp_path / "mit Umläut", "rows ö.toml")):
        (folder / file).write_text(ROWS, "utf-8")
        lines = [f"{20 + i % 37},{'yes' if i % 3 else 'no'}" for i in range(60)]
        (folder / "dätä x.csv").write_text("\n".join(["age,ill", *lines]) + "\n", "utf-8")
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "nobody.py").write_text(NOBODY)
    words = re.sub(r"\bp2pfl (?=[a-z])", f"{P2PFL} ", case.words).replace("nobody ", f"'{sys.executable}' nobody.py ")
    environment = {**os.environ}
    if "HOME" in words + str(case.environment) or "nobody" in words:  # then what is compiled has its usual place
        del environment["JAX_COMPILATION_CACHE_DIR"]
    ended = subprocess.run(
        ["bash", "-c", words], cwd=tmp_path, capture_output=True, env={**environment, **case.environment}, timeout=300
    )
    said = (ended.stdout + ended.stderr).decode("utf-8", "replace")
    # tests beside it write the cache that it reads
    said = "\n".join(line for line in said.splitlines() if "persistent compilation cache" not in line)
    assert "Traceback" not in said and "Warning" not in said, said
    assert ended.returncode == case.code, said
    assert re.search(case.said, said), said
