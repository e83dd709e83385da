"""Small golden transcripts, each with its story: what a few peers say and do upon a script (see peer_script)."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer_script import play

STORIES = sorted((Path(__file__).parent / "transcripts" / "peer").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_is_as_written(path: Path, request: pytest.FixtureRequest) -> None:
    """`pytest --rewrite-transcripts` writes it anew: read the difference before it is committed."""
    now = play(path.read_text("utf-8"))
    if request.config.getoption("--rewrite-transcripts"):
        path.write_text(now, "utf-8")
    assert path.read_text("utf-8").splitlines() == now.splitlines()


def test_each_is_short_and_has_a_title_and_a_story() -> None:
    assert len(STORIES) >= 20
    for path in STORIES:
        title, blank, story, *rest = path.read_text("utf-8").splitlines()
        assert title and story and not blank, path
        assert len(rest) <= 60, path
