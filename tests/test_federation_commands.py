"""`p2pfl federation`: the whole way as docs/federation.md has it, and every mistake that a person makes on it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import page
import pytest
from click.testing import CliRunner, Result
from machines import Machine, missing

import p2pfl
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.drivers.live import sidecar
from p2pfl.drivers.live.ports import reserved
from p2pfl.errors import ConfigError, Exit
from p2pfl.node import records
from p2pfl.runs import keyed
from p2pfl.trust import store

EXPERIMENT = re.sub(r"(?ms)^\[data\]\n.*?(?=^\[)", '[data]\nsource = "digits"\n', page.EXPERIMENT)
"""That of the page, on built-in rows."""

ADDRESS = {name: f"tcp://{name}.example.org:5700" for name in ("north", "south", "west", "east")}


def call(*words: str, said: str = "") -> Result:
    return CliRunner().invoke(main, ["federation", *words], input=said)


def done(*words: str, said: str = "") -> str:
    result = call(*words, said=said)
    assert result.exit_code == 0, result.output
    return result.stdout


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but locks, which hold nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, address in ADDRESS.items():
            done("keygen", name, "--address", address)
        done("init", "hearts.toml", "north.card.toml", "south.card.toml", "west.card.toml")
        for name in ("north", "south", "west"):
            done("accept", "hearts.toml", "--key", f"{name}.key", "--yes")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four sites with keys, three of them in a federation that all have accepted; the experiment beside."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def members() -> list[str]:
    return [each["name"] for each in json.loads(done("list", "hearts.toml", "--json"))["members"]]


def test_a_key_is_private_and_its_card_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = done("keygen", "north", "--address", ADDRESS["north"])
    assert stat.S_IMODE(Path("north.key").stat().st_mode) == 0o600
    card = store.read_card(Path("north.card.toml"))
    assert card.key.fingerprint in told and (card.name, card.address, card.reachable) == (
        "north",
        ADDRESS["north"],
        True,
    )
    secret = Path("north.key").read_text().splitlines()[-1].split(":")[1]
    assert secret not in told and secret not in Path("north.card.toml").read_text()
    done("keygen", "south", "--address", ADDRESS["south"], "--no-reachable")
    assert not store.read_card(Path("south.card.toml")).reachable


def test_members_come_and_go_by_signatures(place: Path) -> None:
    told = done("invite", "hearts.toml", "east.card.toml", "--key", "north.key")
    assert "add east: signed by north" in told
    assert "not in force yet: 1 more of south, west must sign it, with their key: p2pfl federation invite" in told
    listed = json.loads(done("list", "hearts.toml", "--json"))
    assert [(each["name"], each["signed_by"], each["missing"]) for each in listed["pending"]] == [
        ("east", ["north"], 1)
    ]
    assert "pending: add east" in done("list", "hearts.toml")
    before = snapshot(place)
    assert "signed by north already" in done("invite", "hearts.toml", "east.card.toml", "--key", "north.key")
    assert snapshot(place) == before
    told = done("invite", "hearts.toml", "east.card.toml", "--key", "south.key")
    assert "in force: east is a member, node 3" in told and members() == ["north", "south", "west", "east"]
    assert "is a member by a change; there is no more to sign" in done("accept", "hearts.toml", "--key", "east.key")
    for name in ("east", "south", "west"):  # also of its own accord
        told = done("revoke", "hearts.toml", "west", "--key", f"{name}.key")
    assert "in force: west is revoked" in told and members() == ["north", "south", "east"]
    assert "revoked: west" in done("list", "hearts.toml")
    assert "All is in order." in done("check", "hearts.toml", "--key", "east.key")


def test_who_waits_for_signatures_can_still_revoke_and_complete_what_others_began(place: Path) -> None:
    """Else a member that has signed in vain as often as it may could do nothing any more."""
    signed_by("north", "a", "b", "c", "d")()
    assert "not in force yet" in done("revoke", "hearts.toml", "west", "--key", "north.key")
    told = done("revoke", "hearts.toml", "south", "--key", "west.key")
    assert "note: revoke west waits as well, and south can still sign that" in told
    done("invite", "hearts.toml", "east.card.toml", "--key", "south.key")
    assert "in force: east" in done("invite", "hearts.toml", "east.card.toml", "--key", "north.key")


def test_acceptance_is_asked_for_and_only_a_yes_is_one(place: Path) -> None:
    done("init", "again.toml", "north.card.toml", "south.card.toml")
    for said in ("no\n", "\n", "y\n", ""):
        result = call("accept", "again.toml", "--key", "north.key", said=said)
        assert result.exit_code == 1 and "not accepted, and nothing was written" in result.stderr
        assert store.read_card(Path("north.card.toml")).key.fingerprint in result.stdout  # it was shown
        assert not store.read(Path("again.toml")).accepted
    assert "again.toml: north accepted" in done("accept", "again.toml", "--key", "north.key", said="yes\n")
    assert [*store.read(Path("again.toml")).accepted] == [0]
    assert "was accepted before" in done("accept", "again.toml", "--key", "north.key")
    assert "south has not accepted it yet" in done("check", "again.toml")


def test_a_node_file_is_written_that_says_all(place: Path) -> None:
    (place / "rows.csv").write_text("a,b\n1,2\n")
    done(
        "accept", "hearts.toml", "--key", "south.key", "--experiment", "experiment.toml", "--node-file", "node.toml",
        "--data", "rows.csv",
    )  # fmt: skip
    given = experiment.load_node(Path("node.toml"))
    node, ring = keyed.completed("node.toml", given)
    assert ring is not None and (ring.node, node.node, node.listen) == (1, 1, "tcp://*:5700")
    assert node.address == ADDRESS["south"] and node.peers == (ADDRESS["north"], ADDRESS["west"])
    assert ring.names == {0: "north", 1: "south", 2: "west"} and node.federation == place / "hearts.toml"
    assert given.data is not None and "rows.csv" in str(given.data)
    assert str(place) not in (place / "node.toml").read_text()


@pytest.mark.parametrize(("rows", "source", "expected"), [
    ("own.csv", "digits", {"source": "csv", "path": "own.csv"}),
    ("own.npz", "digits", {"source": "npz", "path": "own.npz"}),
    ("scans", "digits", {"source": "folder", "path": "scans"}), ("own.csv", "csv", {"path": "own.csv"}),
])  # fmt: skip
def test_the_rows_in_a_node_file_add_to_what_the_experiment_says(
    place: Path, rows: str, source: str, expected: dict[str, str]
) -> None:
    Path("experiment.toml").write_text(
        EXPERIMENT.replace(
            'source = "digits"', f'source = "{source}"\nlabel = "ill"' if source == "csv" else 'source = "digits"'
        )
    )
    Path(rows).mkdir() if rows == "scans" else Path(rows).write_text("a,ill\n1,1\n")
    done("accept", "hearts.toml", "--key", "south.key", *NODE, "--data", rows)
    table = tomllib.loads(Path("node.toml").read_text())
    assert table == {
        "experiment": "experiment.toml", "federation": "hearts.toml", "key": "south.key", "data": expected,
    }  # fmt: skip


def test_a_node_file_in_another_folder_finds_the_same_files(place: Path) -> None:
    Path("sub").mkdir()
    done(
        "accept", "hearts.toml", "--key", "south.key", "--experiment", "experiment.toml", "--node-file", "sub/node.toml"
    )
    node, ring = keyed.completed("sub/node.toml", experiment.load_node(Path("sub/node.toml")))
    assert ring is not None and node.experiment == str(place / "experiment.toml")


def mode(name: str, bits: int) -> Callable[[], object]:
    return lambda: Path(name).chmod(bits)


def text(name: str, old: str, new: str) -> Callable[[], object]:
    return lambda: Path(name).write_text(Path(name).read_text().replace(old, new, 1))


def site(name: str, address: str, *options: str) -> Callable[[], object]:
    return lambda: done("keygen", name, "--address", address, *options)


def signed_by(name: str, *cards: str) -> Callable[[], object]:
    def signs() -> None:
        for card in cards:
            done("keygen", card, "--address", f"tcp://{card}:5700")
            done("invite", "hearts.toml", f"{card}.card.toml", "--key", f"{name}.key")

    return signs


def west_is_revoked() -> None:
    for name in ("north", "south"):
        done("revoke", "hearts.toml", "west", "--key", f"{name}.key")


def nothing() -> None:
    return


NODE = ("--experiment", "experiment.toml", "--node-file", "node.toml")
REFUSED: list[tuple[Callable[[], object], tuple[str, ...], str]] = [
    # keygen
    (nothing, ("keygen", "north", "--address", "tcp://n:1"), "north.key: is there already, and a key is never"),
    (nothing, ("keygen", "a/b", "--address", "tcp://n:1"), "name='a/b': must be letters, digits"),
    (nothing, ("keygen", "..", "--address", "tcp://n:1"), "name='..': must be letters, digits"),
    (nothing, ("keygen", "new", "--address", "n:1"), "address='n:1': must be written tcp://HOST:PORT"),
    (nothing, ("keygen", "new", "--address", "tcp://n:65535"), "the port must be from 1 to 65534"),
    (nothing, ("keygen", "new", "--address", "tcp://*:5700"), "address='tcp://*:5700': must be written tcp://HOST:PORT"),
    (nothing, ("keygen", "new", "--address", "tcp://0.0.0.0:5700"), "stands for all addresses of a machine"),
    (nothing, ("keygen", "new", "--address", "tcp://[::]:5700"), "stands for all addresses of a machine"),
    (nothing, ("keygen", "new", "--address", "tcp://[::1.2]:5700"), "no IPv6 address stands in the brackets"),
    # init
    (nothing, ("init", "hearts.toml", "north.card.toml"), "hearts.toml: is there already, and nothing is overwritten"),
    (nothing, ("init", "f.toml", "no.card.toml"), "no.card.toml: no such file"),
    (nothing, ("init", "f.toml", "north.key"), "north.key: holds a private key, and is a file for others"),
    (nothing, ("init", "f.toml", "hearts.toml"), "hearts.toml: is a federation file; give cards of sites"),
    (nothing, ("init", "f.toml", "experiment.toml"), "experiment.toml: rounds: no such field"),
    (nothing, ("init", "f.toml", "north.card.toml", "north.card.toml"), "member[1].key: is that of north, too"),
    (nothing, ("init", "a b.toml", "north.card.toml"), "it is the name of the federation"),
    (nothing, ("init", "no/f.toml", "north.card.toml"), "no/f.toml: can't be written"),
    (
        text("north.card.toml", "5700", "5800"), ("init", "f.toml", "north.card.toml"),
        "north.card.toml: signature: does not go with what stands there: the card was changed",
    ),
    (
        site("new", ADDRESS["north"]), ("init", "f.toml", "north.card.toml", "new.card.toml"),
        "member[1].address='tcp://north.example.org:5700': is that of north; each needs its own",
    ),
    (
        site("new", "tcp://127.0.0.1:5700"), ("init", "f.toml", "north.card.toml", "new.card.toml"),
        "address='tcp://127.0.0.1:5700' of new: means the machine where it is read, and north is on another",
    ),
    (
        site("new", "tcp://new:1", "--no-reachable"), ("init", "f.toml", "new.card.toml"), "",
    ),
    # accept
    (nothing, ("accept", "no.toml", "--key", "north.key", "--yes"), "no.toml: no such file; the full path is"),
    (nothing, ("accept", "hearts.toml", "--key", "no.key", "--yes"), "no.key: no such file"),
    (nothing, ("accept", "hearts.toml", "--key", "north.card.toml", "--yes"), "mode 644: others on this machine"),
    (nothing, ("accept", "hearts.toml", "--key", "east.key", "--yes"), "is no member's of hearts: north "),
    (mode("north.key", 0o644), ("accept", "hearts.toml", "--key", "north.key", "--yes"), "chmod 600 north.key"),
    (
        text("hearts.toml", "south.example", "evil.example"), ("accept", "hearts.toml", "--key", "north.key", "--yes"),
        "is not that of north under this founding part. The file is not as its members have signed it",
    ),
    (
        text("hearts.toml", "majority", "all"), ("accept", "hearts.toml", "--key", "north.key", "--yes"),
        "hearts.toml: member[0].signature: is not that of north",
    ),
    (nothing, ("accept", "north.card.toml", "--key", "north.key", "--yes"), "north.card.toml: is the card of a site"),
    (
        nothing, ("accept", "hearts.toml", "--key", "north.key", "--experiment", "no.toml", "--node-file", "n.toml"),
        "no.toml: no such file",
    ),
    (
        nothing, ("accept", "hearts.toml", "--key", "north.key", *NODE, "--data", "no.csv"), "--data no.csv: no such"
    ),
    (
        lambda: Path("node.toml").write_text(""), ("accept", "hearts.toml", "--key", "north.key", *NODE),
        "node.toml: is there already",
    ),
    (
        nothing,
        ("accept", "hearts.toml", "--key", "north.key", "--experiment", "experiment.toml", "--node-file", "no/n.toml"),
        "no/n.toml: there is no folder",
    ),
    (west_is_revoked, ("accept", "hearts.toml", "--key", "west.key"), "is that of west, which hearts has revoked"),
    # invite
    (nothing, ("invite", "hearts.toml", "south.card.toml", "--key", "north.key"), "that of south: that of a member"),
    (nothing, ("invite", "hearts.toml", "east.card.toml", "--key", "east.key"), "is no member's of hearts"),
    (nothing, ("invite", "hearts.toml", "east.key", "--key", "north.key"), "east.key: holds a private key"),
    (
        west_is_revoked, ("invite", "hearts.toml", "west.card.toml", "--key", "north.key"),
        "key: is that of west: of a member that was revoked; make another",
    ),
    (west_is_revoked, ("invite", "hearts.toml", "east.card.toml", "--key", "west.key"), "which hearts has revoked"),
    (
        site("new", "tcp://localhost:5700"), ("invite", "hearts.toml", "new.card.toml", "--key", "north.key"),
        "new.card.toml: address='tcp://localhost:5700' of new: means the machine where it is read",
    ),
    (
        signed_by("north", "a", "b", "c", "d"), ("invite", "hearts.toml", "east.card.toml", "--key", "north.key"),
        "north has signed 4 changes that still lack signatures: ",
    ),
    # revoke
    (nothing, ("revoke", "hearts.toml", "wets", "--key", "north.key"), "wets is no member; did you mean 'west'?"),
    (west_is_revoked, ("revoke", "hearts.toml", "west", "--key", "north.key"), "west was revoked already"),
    (nothing, ("revoke", "hearts.toml", "west", "--key", "east.key"), "is no member's of hearts"),
    # list, check
    (nothing, ("list", "north.card.toml"), "is the card of a site"),
    (text("hearts.toml", "p2pfl-key:", "p2pfl-key:a"), ("check", "hearts.toml"), "a character is wrong"),
    (mode("north.key", 0o660), ("check", "hearts.toml", "--key", "north.key"), "mode 660"),
    (nothing, ("check", "hearts.toml", "--key", "east.key"), "hearts.toml: --key east.key: the key with the finger"),
    (
        lambda: (done("keygen", "l", "--address", "tcp://127.0.0.1:1"), done("init", "l.toml", "l.card.toml")),
        ("check", "l.toml", "--key", "north.key"), "is no member's of l: l ",
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_mistake_is_refused_before_anything_is_written(number: int, place: Path) -> None:
    before_it, words, said = REFUSED[number]
    before_it()
    there = snapshot(place)
    result = call(*words)
    if not said:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 1 and said in result.stderr, result.output
    assert "Traceback" not in result.output and snapshot(place) == there


@pytest.mark.parametrize(
    "words",
    [
        ("accept", "hearts.toml", "--key", "north.key", "--node-file", "n.toml"),
        ("accept", "hearts.toml", "--key", "north.key", "--experiment", "experiment.toml"),
        ("accept", "hearts.toml", "--key", "north.key", "--data", "r.csv"),
        ("accept", "hearts.toml"),
        ("init", "f.toml"),
        ("keygen", "new"),
        ("init", "f.toml", "north.card.toml", "--quorum", "one"),
    ],
)
def test_what_is_no_usage(place: Path, words: tuple[str, ...]) -> None:
    assert call(*words).exit_code == 2


# --- what a node makes of it


BASE = 'experiment = "experiment.toml"\nfederation = "hearts.toml"\nkey = "south.key"\n'


@pytest.mark.parametrize(
    ("before_it", "node", "said"),
    [
        (nothing, 'experiment = "experiment.toml"\n', "node.toml: node: missing; it must be given, or federation"),
        (nothing, 'experiment = "experiment.toml"\nnode = 0\n', "node.toml: listen: missing"),
        (
            nothing, 'experiment = "experiment.toml"\nnode = 0\nlisten = "tcp://127.0.0.1:1"\nkey = "south.key"\n',
            "node.toml: key='south.key': goes with a federation",
        ),
        (
            nothing, 'experiment = "experiment.toml"\nnode = 0\nlisten = "tcp://10.0.0.1:5700"\n',
            "node.toml: listen='tcp://10.0.0.1:5700': is beyond this machine, and there are no keys",
        ),
        (
            nothing,
            'experiment = "experiment.toml"\nnode = 0\nlisten = "tcp://127.0.0.1:1"\npeers = ["tcp://there:1"]\n',
            "node.toml: peers='tcp://there:1': is beyond this machine",
        ),
        (
            nothing,
            'experiment = "experiment.toml"\nnode = 0\nlisten = "tcp://*:1"\naddress = "tcp://localhost:1"\n',
            "node.toml: listen='tcp://*:1': is beyond this machine",
        ),
        (nothing, BASE.replace('key = "south.key"\n', ""), "node.toml: key: missing; with a federation it must"),
        (nothing, BASE + "plaintext = true\n", "node.toml: plaintext=true: the members of hearts.toml have keys"),
        (nothing, BASE + "node = 0\n", "node.toml: node=0: hearts.toml has 1 for south, whose key"),
        (nothing, BASE + 'peers = ["tcp://other:5700"]\n', "is the address of no other member of hearts.toml"),
        (nothing, BASE.replace("hearts", "heart"), "heart.toml: no such file"),
        (nothing, BASE.replace("south.key", "so.key"), "so.key: no such file"),
        (nothing, BASE.replace("south.key", "east.key"), "node.toml: key='east.key': the key with the fingerprint"),
        (mode("south.key", 0o644), BASE, "south.key: mode 644"),
        (west_is_revoked, BASE.replace("south", "west"), "is that of west, which hearts has revoked"),
        (
            lambda: done("init", "new.toml", "north.card.toml", "south.card.toml"), BASE.replace("hearts", "new"),
            "south has not accepted it yet: p2pfl federation accept new.toml --key south.key",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "command", ["node", *(pytest.param(each, marks=pytest.mark.more) for each in ("join", "doctor"))]
)
def test_a_node_file_that_does_not_go_with_its_federation(
    place: Path, before_it: Callable[[], object], node: str, said: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts() -> None:
        raise ConfigError("it was not refused")

    for name in ("start", "spawn"):
        monkeypatch.setattr(sidecar, name, starts)
    before_it()
    Path("node.toml").write_text(node)
    there = snapshot(place)
    if command == "join":
        with pytest.raises(ConfigError) as caught:
            p2pfl.join("node.toml", {})
        assert said in str(caught.value)
    else:
        result = CliRunner().invoke(main, [command, "node.toml"])
        assert result.exit_code == 1 and said in " ".join(result.output.split()), result.output
    assert snapshot(place) == there


def test_what_follows_from_the_federation(place: Path) -> None:
    done("keygen", "hidden", "--address", "tcp://hidden:5700", "--no-reachable")
    for name in ("north", "south"):
        done("invite", "hearts.toml", "hidden.card.toml", "--key", f"{name}.key")
    for extra, listen in (
        ("", "tcp://*:5700"),
        ('listen = "tcp://10.0.0.7:5700"\n', "tcp://10.0.0.7:5700"),  # as in a container
        ('address = "tcp://10.0.0.7:5800"\n', "tcp://*:5800"),  # it has moved, and says so itself
        (f'node = 1\npeers = ["{ADDRESS["north"]}"]\n', "tcp://*:5700"),  # the same twice
    ):
        Path("node.toml").write_text(BASE + extra)
        node, ring = keyed.completed("node.toml", experiment.load_node(Path("node.toml")))
        assert ring is not None and node.node == 1 and node.listen == listen
        assert node.peers == (ADDRESS["north"], ADDRESS["west"])  # not who can't be reached
    Path("node.toml").write_text(BASE.replace("south", "hidden"))
    node, ring = keyed.completed("node.toml", experiment.load_node(Path("node.toml")))
    assert ring is not None and node.node == 3 and len(node.peers) == 3
    assert node.listen == "tcp://127.0.0.1:5700"  # nobody is to connect to it
    Path("node.toml").write_text(BASE.replace("south", "hidden") + 'address = "tcp://hidden:5800"\n')
    with pytest.raises(ConfigError, match="says of hidden that nobody can connect to it; leave it out"):
        keyed.completed("node.toml", experiment.load_node(Path("node.toml")))


def test_in_the_clear_where_it_is_asked_for_by_name(place: Path) -> None:
    Path("node.toml").write_text(
        'experiment = "experiment.toml"\nnode = 0\nlisten = "tcp://*:1"\naddress = "tcp://a:1"\nplaintext = true\n'
    )
    node, ring = keyed.completed("node.toml", experiment.load_node(Path("node.toml")))
    assert ring is None and node.address == "tcp://a:1"
    for at in ("tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "tcp://127.0.0.9:1"):
        Path("node.toml").write_text(f'experiment = "experiment.toml"\nnode = 0\nlisten = "{at}"\n')
        assert keyed.completed("node.toml", experiment.load_node(Path("node.toml")))[1] is None


def test_nobody_who_can_be_reached_is_nobody_who_can_connect(place: Path) -> None:
    for name in ("a", "b"):
        done("keygen", name, "--address", f"tcp://{name}:1", "--no-reachable")
    result = call("init", "none.toml", "a.card.toml", "b.card.toml")
    assert result.exit_code == 1 and "reachable=false: of all members" in result.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "join: node: missing; give it, or federation and key, or a node file"),
        ({"node": 0, "listen": "tcp://10.0.0.1:1"}, "join: listen='tcp://10.0.0.1:1': is beyond this machine"),
        ({"federation": "hearts.toml"}, "join: key: missing; with a federation it must be given"),
        (
            {"key": "north.key", "node": 0, "listen": "tcp://127.0.0.1:1"},
            "join: key='north.key': goes with a federation",
        ),
        ({"federation": Path("hearts.toml"), "key": Path("east.key")}, "join: key='east.key': the key with the finger"),
        ({"federation": "hearts.toml", "key": "west.key", "node": 1}, "join: node=1: hearts.toml has 2 for west"),
        ({"federation": "hearts.toml", "key": "west.key", "plaintext": True}, "join: plaintext=true: the members of"),
        # who it is follows, also beyond the two that were planned, and then what is wrong is something else
        ({"federation": "hearts.toml", "key": "west.key", "checkpoint": -1}, "driver.checkpoint=-1"),
    ],
)
def test_a_script_joins_with_a_key_or_is_told_why_not(place: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        p2pfl.join(params={"w": np.zeros(2)}, topology={"graph": "ring", "nodes": 2}, **given)
    assert said in str(caught.value)


# --- the page


class Shell:
    """A shell as a person has it, on a machine of its own where that can be: its ports are nobody else's then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._machine = None if missing() else Machine()
        self._inside: list[str] = []
        if self._machine is not None:
            self._machine.does("ip link set lo up")
            self._inside = self._machine.inside
        bin = Path(sys.executable).parent
        self._environment = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "LANG": "C.UTF-8"}

    def types(self, block: str, code: int | None = 0) -> str:
        """Type a block of commands; those in the background go on. Return what they say. `code`: None: any."""
        with tempfile.TemporaryFile("w+") as said:  # a pipe would be held by what goes on
            ran = subprocess.run(
                [*self._inside, "bash", "-euc", block], cwd=self.folder, env=self._environment, timeout=120,
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
            said.seek(0)
            told = said.read()
        assert code is None or ran.returncode == code, f"{block}\n{told}"
        return told

    def nodes(self, name: str) -> list[int]:
        """The processes of the node of a site."""
        return [
            int(each.name) for each in Path("/proc").glob("[0-9]*")
            if self._is_node(each, self.folder / name)
        ]  # fmt: skip

    @staticmethod
    def _is_node(process: Path, folder: Path) -> bool:
        try:
            return (process / "cwd").readlink() == folder and b"node.toml" in (process / "cmdline").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            return False

    def wait(self, until: Callable[[], bool]) -> None:
        limit = time.monotonic() + 120
        while not until():
            assert time.monotonic() < limit, {log: log.read_text()[-900:] for log in self.folder.glob("*/node.log")}
            time.sleep(0.05)

    def stop(self, *names: str) -> None:
        """Ctrl-C, as it were."""
        for process in (process for name in names for process in self.nodes(name)):
            os.kill(process, signal.SIGTERM)
        self.wait(lambda: not any(map(self.nodes, names)))

    def rounds(self, name: str) -> int:
        rows = [*self.folder.glob(f"{name}/p2pfl-node-*/metrics.jsonl")]
        return len(records.read(rows[0])) if rows else 0

    def result(self, name: str) -> dict[str, Any]:
        (file,) = self.folder.glob(f"{name}/p2pfl-node-*/result.json")
        return dict(json.loads(file.read_text()))

    def close(self) -> None:
        for process in (process for folder in self.folder.iterdir() for process in self.nodes(folder.name)):
            os.kill(process, signal.SIGKILL)
        if self._machine is not None:
            self._machine.ends()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


@pytest.mark.live
@pytest.mark.more
def test_the_page_does_what_it_says(shell: Shell) -> None:
    """Its commands, in their order: three sites train, a fourth joins and one is revoked meanwhile. And who is revoked
    and has not heard of it, its file being as it was, is told so by the first that it calls."""
    at = shell.folder
    (at / "experiment.toml").write_text(page.EXPERIMENT)
    rows, keys, cards, accepted, start, status, invite, join, revoke = page.BLOCKS
    for block in (rows, keys, cards, accepted):
        shell.types(block)
    for node, name in enumerate(("north", "south", "west")):  # each with its own copy and its own signature alone
        complete, ring = keyed.completed(at / name / "node.toml", experiment.load_node(at / name / "node.toml"))
        assert ring is not None and complete.node == node and len(complete.peers) == 2
        assert [*store.read(at / name / "hearts.toml").accepted] == [node]
    shell.types(start)
    shell.wait(lambda: min(map(shell.rounds, ("north", "south", "west"))) > 20)
    told = shell.types(status)
    assert "north" in told and "west" in told, told
    before = (at / "west" / "hearts.toml").read_text()
    assert "in force: east is a member, node 3" in shell.types(invite)
    shell.types(join)
    shell.wait(lambda: shell.rounds("east") > 20)
    told = shell.types(revoke)
    assert "in force: west is revoked" in told and "All is in order." in told and "revoked: west" in told
    shell.wait(lambda: not shell.nodes("west"))
    assert "is no member of the federation any more" in shell.result("west")["error"]
    (at / "west" / "hearts.toml").write_text(before)
    began = shell.rounds("north")
    again = "cd west && p2pfl node node.toml --out again"
    told = shell.types(again, code=Exit.FAILED)
    assert "west, node 2, is no member any more: the others have revoked it" in told, told
    assert "is no member of the federation any more" in told
    assert not records.read(at / "west" / "again" / "metrics.jsonl")  # it has trained nothing
    told = shell.types(again, code=Exit.MISTAKE)  # its file says so from now on
    assert "which hearts has revoked" in " ".join(told.split()), told
    shell.wait(lambda: shell.rounds("north") > began)
    others = ("north", "south", "east")
    shell.stop(*others)
    for name in others:
        result = shell.result(name)
        assert result["error"] is None and result["stopped_by"] == "SIGTERM" and result["booked"] > 20, result
        assert {node for row in records.read(at / name / f"p2pfl-node-{result['node']}" / "trace.jsonl")[-20:]
                for node, *_ in row.get("booked", ())} <= {0, 1, 3}  # fmt: skip
    check = "p2pfl check --json north/p2pfl-node-0 south/p2pfl-node-1 east/p2pfl-node-3 2> /dev/null"
    assert abs(json.loads(shell.types(check, code=None))["mean_residual"]) < 1e-6
    private = [path for path in at.rglob("*.key")]
    assert {path.parent.name for path in private} == {"north", "south", "west", "east"} and len(private) == 4


@pytest.mark.live
@pytest.mark.more
def test_who_is_revoked_and_can_call_nobody_says_so_and_ends_by_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others let nobody in, and call it no more; what it says names what ends its waiting."""
    monkeypatch.chdir(tmp_path)
    names = ("north", "south", "west")
    with reserved(3) as ports:
        for name, port in zip(names, ports, strict=True):
            closed = [] if name == "north" else ["--no-reachable"]
            done("keygen", name, "--address", f"tcp://127.0.0.1:{port}", *closed)
    done("init", "hearts.toml", *(f"{name}.card.toml" for name in names))
    for name in names:
        done("accept", "hearts.toml", "--key", f"{name}.key", "--yes")
    shutil.copy("hearts.toml", "theirs.toml")
    for name in names[1:]:
        done("revoke", "theirs.toml", "north", "--key", f"{name}.key")
    Path("experiment.toml").write_text(EXPERIMENT)
    Path("node.toml").write_text('experiment = "experiment.toml"\nfederation = "hearts.toml"\nkey = "north.key"\n')
    command = [sys.executable, "-m", "p2pfl", "node", "node.toml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    late = threading.Timer(120, process.kill)
    late.start()
    try:
        assert process.stdout is not None
        assert any("none can be called: if the others have revoked this one" in line for line in process.stdout)
        os.replace("theirs.toml", "hearts.toml")
        said, _ = process.communicate(timeout=60)
        assert process.returncode == Exit.FAILED and "no member of the federation any more" in said, said
    finally:
        late.cancel()
        process.kill()
        process.communicate()
