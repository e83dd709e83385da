"""Lives of a node across its processes: each is greater than all before it, whatever its clock and its disk say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pfl.node.life import LIFE, PARTIAL, LifeFile


def test_a_life_is_greater_than_all_before_it_whatever_the_clock_says(tmp_path: Path) -> None:
    said: list[str] = []
    lives = [LifeFile(tmp_path, said.append).next(clock) for clock in (5_000, 5_000, 1_400, 0, 9_000)]
    assert lives == [5_000, 5_001, 5_002, 5_003, 9_000]
    LifeFile(tmp_path, said.append).keep(12_000_000)  # it was accused of a greater one
    assert LifeFile(tmp_path, said.append).next(9_001) == 12_000_001
    assert LifeFile(tmp_path, said.append).next(9_002, kept=13_000_000) == 13_000_001, "and than its checkpoint's"
    assert not said and [path.name for path in tmp_path.iterdir()] == [LIFE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"life": "7"}',
        '{"life": -1}',
        '{"life": 1e3}',
        '{"life": true}',
        f'{{"life": {1 << 62}}}',
        "\0\0",
    ],
)
def test_a_garbled_file_is_said_and_written_anew(tmp_path: Path, text: str) -> None:
    said: list[str] = []
    (tmp_path / LIFE).write_text(text, "utf-8")
    assert LifeFile(tmp_path, said.append).next(700) == 700
    (line,) = said
    assert line.startswith(f"{tmp_path / LIFE}: is garbled; ")
    assert LifeFile(tmp_path, said.append).next(0) == 701 and len(said) == 1


def test_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / LIFE).write_bytes(b"\xff\xfe\x00")
    assert LifeFile(tmp_path, said.append).next(700) == 700 and len(said) == 1


def test_a_torn_write_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file = LifeFile(tmp_path, said.append)
    assert file.next(100) == 100
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert file.next(200) == 200
    (line,) = said
    assert "life 200 could not be kept: No space left on device" in line
    assert not (tmp_path / PARTIAL).exists() and file.next(0) == 101


def test_a_directory_that_is_gone_stops_no_node(tmp_path: Path) -> None:
    said: list[str] = []
    assert LifeFile(tmp_path / "gone", said.append).next(100) == 100 and len(said) == 1
