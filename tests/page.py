"""What docs/federation.md has a person type: its experiment, its commands in their order, and each for other sites."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs" / "federation.md"
TEXT = FILE.read_text("utf-8")
(EXPERIMENT,) = re.findall(r"^```toml\n(# experiment\.toml.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
BLOCKS: list[str] = re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
"""Its blocks of commands, for a shell."""


def command(*named: str, **others: str) -> list[str]:
    """The first command of the page that begins so: what follows `p2pfl`. `others`: names of sites, and for whom."""
    lines = re.findall(rf"^\(cd \w+ && p2pfl ({' '.join(named)} [^()>]*)\)", "".join(BLOCKS), re.MULTILINE)
    return [re.sub(r"\w+", lambda word: others.get(word[0], word[0]), each) for each in shlex.split(lines[0])]
