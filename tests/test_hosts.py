"""Hospitals on machines of their own: what docs/federation.md has them type, in network namespaces with a switch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import page
import pytest
from machines import FIREWALL, Machine, Switched, demand, hearing
from sites import typed
from test_live import P2PFL

from p2pfl.errors import Exit
from p2pfl.node import model_file, records

NAMES = ("athens", "berlin", "cairo", "delhi", "essen", "ferrara")
DIGITS = """
[data]
source = "digits"
[model]
name = "mlp"
hidden = [32]
"""
TABLES = """
[data]
source = "csv"
label = "ill"
[model]
name = "logistic"
"""
# with this learning rate what is saved in the end is what was sent, so that it can be looked for in what was heard
EXPERIMENT = """
name = "hearts"
rounds = {rounds}
[training]
optimizer = {{ name = "sgd", learning_rate = 1e-30 }}
[topology]
graph = "{graph}"
nodes = {nodes}
[algorithm]
name = "dsgd"
[network]
preset = "lan"
[evaluation]
every = 50
"""


class Site:
    """A hospital: a folder on a machine, and the node that runs there."""

    def __init__(self, folder: Path, machine: Machine, name: str, node: int, address: str, reachable: bool) -> None:
        self.folder, self.machine, self.name, self.node = folder, machine, name, node
        self.address, self.reachable = address, reachable
        self.process: subprocess.Popen[str] | None = None

    def p2pfl(self, *command: str) -> str:
        """Type a command of p2pfl in the folder, of those that read and write files; return what it says."""
        return typed(self.folder, *command)

    def start(self, *more: str) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*self.machine.inside, *P2PFL, "node", "node.toml", *more],
                cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, text=True, env={**os.environ, "LANG": "C.UTF-8"},
            )  # fmt: skip

    @property
    def records(self) -> Path:
        return self.folder / f"p2pfl-node-{self.node}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def booked(self) -> list[tuple[int, int]]:
        """The exchanges that it has booked: round and neighbour."""
        rows = records.read(self.records / "trace.jsonl")
        return [(row["round"], each[0]) for row in rows for each in row.get("booked", ())]

    def round(self) -> int:
        file = self.records / "metrics.jsonl"
        rows = list(records.read(file)) if file.exists() else []
        return int(rows[-1]["round"]) if rows else 0

    def result(self) -> dict[str, object]:
        table: dict[str, object] = json.loads((self.records / "result.json").read_text())
        return table


class Hospitals:
    """All of them, with keys and a federation file, made by the commands of docs/federation.md."""

    def __init__(
        self, folder: Path, count: int, rounds: int, closed: tuple[int, ...] = (), graph: str = "ring",
        later: int = 0,
    ) -> None:  # fmt: skip
        """`later`: so many more have made their keys, and a table each; so have the others then."""
        self.network = Switched(count + later)
        self.tables = bool(later)
        self.sites: list[Site] = []
        with contextlib.ExitStack() as undone:
            undone.callback(self.close)
            self._prepare(folder, count + later, closed, EXPERIMENT.format(rounds=rounds, graph=graph, nodes=count))
            self._found(count)
            undone.pop_all()

    def _prepare(self, folder: Path, count: int, closed: tuple[int, ...], text: str) -> None:
        draw = np.random.default_rng(0)
        for place, name in enumerate(NAMES[:count]):
            home, at = folder / name, self.network.address(place)
            home.mkdir()
            (home / "experiment.toml").write_text(text + (TABLES if self.tables else DIGITS))
            if self.tables:
                x = draw.normal(size=(120, 2))
                rows = [f"{a:.3f},{b:.3f},{'yes' if a + b > 0 else 'no'}\n" for a, b in x]
                (home / "rows.csv").write_text("age,pressure,ill\n" + "".join(rows))
            site = Site(home, self.network.at[place], name, place, f"tcp://{at}:5700", place not in closed)
            if place in closed:
                site.machine.does(FIREWALL)
            self.sites.append(site)
            *words, _ = page.command("federation", "keygen", north=name)
            site.p2pfl(*words, site.address, *(["--no-reachable"] if place in closed else []))

    def _found(self, count: int) -> None:
        first, *others = self.sites[:count]
        for site in others:
            self.send(site, f"{site.name}.card.toml", first)
        init = [word for word in page.command("federation", "init") if not word.endswith(".card.toml")]
        first.p2pfl(*init, *(f"{site.name}.card.toml" for site in (first, *others)))
        for site in others:
            self.send(first, "hearts.toml", site)
        for site in (first, *others):
            self.accept(site)

    def accept(self, site: Site) -> None:
        words = page.command("federation", "accept", north=site.name)
        site.p2pfl(*(word for word in words if self.tables or word not in ("--data", "rows.csv")))

    @staticmethod
    def send(one: Site, file: str, other: Site) -> None:
        """By mail: no file that is sent is a private key."""
        assert not file.endswith(".key")
        (other.folder / file).write_bytes((one.folder / file).read_bytes())

    def wait(self, until: Callable[[], bool], seconds: float = 180.0) -> None:
        limit = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < limit, {site.name: site.log[-600:] for site in self.sites}
            time.sleep(0.1)

    def ended(self, site: Site, seconds: float = 240.0) -> int:
        assert site.process is not None
        return site.process.wait(seconds)

    def check(self, *sites: Site) -> dict[str, object]:
        done = subprocess.run(
            [*P2PFL, "check", "--json", *(str(site.records) for site in sites)], capture_output=True, text=True
        )
        table: dict[str, object] = json.loads(done.stdout)
        return table

    def close(self) -> None:
        for site in self.sites:
            if site.process is not None:
                site.process.kill()
                site.process.wait()
        self.network.close()


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Callable[..., Hospitals]]:
    made: list[Hospitals] = []

    def make(*given: int, **more: object) -> Hospitals:
        made.append(Hospitals(tmp_path, *given, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def snippets(file: Path, most: int = 40) -> list[bytes]:
    """Parts of the weights in a file of a model, long enough not to occur by chance."""
    arrays = [np.ascontiguousarray(each).tobytes() for each in model_file.read(file).values()]
    whole = max(arrays, key=len)
    step = max(48, len(whole) // most)
    return [part for at in range(0, len(whole) - 48, step) if len({*(part := whole[at : at + 48])}) > 24]


@pytest.mark.faults
def test_six_sites_three_of_them_closed_and_one_revoked_while_it_trains(
    hospitals: Callable[..., Hospitals], tmp_path: Path
) -> None:
    """The one that is revoked gets not one more model; the others end in good order, and their books balance."""
    all_ = hospitals(6, 1500, closed=(1, 2, 4))  # berlin and cairo are neighbours that nobody can call
    heard = hearing(all_.network.switch, str(tmp_path / "heard"))
    try:
        for site in all_.sites:
            site.start()
        revoked, others = all_.sites[3], [site for site in all_.sites if site.node != 3]
        all_.wait(lambda: min(site.round() for site in all_.sites) > 100)
        for site in others[:4]:  # a majority of six
            site.p2pfl(*page.command("federation", "revoke", west=revoked.name, south=site.name))
        all_.wait(lambda: "no member of the federation any more" in revoked.log or "no members any more" in revoked.log)
        at = revoked.round()
        for site in others:
            assert all_.ended(site) == Exit.DONE, site.log[-2000:]
        assert revoked.round() <= at + 1  # what it had begun; it trains no round alone
    finally:
        heard.kill()
        heard.communicate()
    assert at < 1500
    for site in others:
        assert site.result()["encrypted"] is True
        assert max((round for round, node in site.booked() if node == revoked.node), default=0) <= at + 1
    books = all_.check(*others)
    assert abs(float(str(books["mean_residual"]))) < 1e-6
    forwarded = [site.result()["forwarded"] for site in others if site.reachable]
    assert any(each for each in forwarded), forwarded  # what berlin and cairo have for each other
    captured = (tmp_path / "heard").read_bytes()
    assert len(captured) > 5_000_000
    models = [snippet for site in others for snippet in snippets(site.records / model_file.NAME)]
    assert len(models) > 100
    assert not [each for each in models if each in captured]


@pytest.mark.faults
def test_what_is_heard_of_nodes_without_keys_holds_their_models(
    hospitals: Callable[..., Hospitals], tmp_path: Path
) -> None:
    """The other test could not find what is not looked for rightly: here it is found."""
    both = hospitals(2, 60)
    for site, other in zip(both.sites, reversed(both.sites), strict=True):
        (site.folder / "node.toml").write_text(
            f'experiment = "experiment.toml"\nnode = {site.node}\nlisten = "tcp://*:5700"\naddress = "{site.address}"\n'
            f'peers = ["{other.address}"]\nplaintext = true\n'
        )
    heard = hearing(both.network.switch, str(tmp_path / "heard"))
    try:
        for site in both.sites:
            site.start()
        for site in both.sites:
            assert both.ended(site) == Exit.DONE
    finally:
        heard.kill()
        heard.communicate()
    captured = (tmp_path / "heard").read_bytes()
    assert "in the clear" in both.sites[0].log
    models = [snippet for site in both.sites for snippet in snippets(site.records / model_file.NAME)]
    assert len(models) > 50
    assert sum(each in captured for each in models) > len(models) / 2  # but for those that two packets share
    assert both.sites[0].result()["encrypted"] is False


@pytest.mark.faults
def test_a_cable_is_pulled_a_fourth_site_joins_and_one_comes_back_at_another_address(
    hospitals: Callable[..., Hospitals],
) -> None:
    three = hospitals(3, 100_000, graph="complete", later=1)
    *founders, fourth = three.sites
    for site in founders:
        site.start()
    three.wait(lambda: min(site.round() for site in founders) > 100)
    three.network.cut(1)
    seen = [site.round() for site in three.sites]
    three.wait(lambda: three.sites[0].round() > seen[0] + 100 and three.sites[2].round() > seen[2] + 100)
    three.network.mend(1)
    seen = [site.round() for site in three.sites]
    three.wait(lambda: three.sites[1].round() > max(seen) + 50)
    for site in founders[:2]:  # a majority of three, each with its own copy of the file; the third hears of it
        three.send(fourth, f"{fourth.name}.card.toml", site)
        site.p2pfl(*page.command("federation", "invite", east=fourth.name, north=site.name))
    three.wait(lambda: f"{fourth.name} is a member from now on" in founders[2].log)
    three.send(founders[2], "hearts.toml", fourth)
    three.accept(fourth)
    fourth.start()
    three.wait(lambda: fourth.round() > founders[0].round() - 50 and len(fourth.booked()) > 100)
    moved = three.sites[2]
    assert moved.process is not None
    moved.process.send_signal(signal.SIGTERM)
    moved.process.wait(60)
    moved.machine.does("ip address del 10.77.0.3/24 dev wire\nip address add 10.77.0.33/24 dev wire")
    file = moved.folder / "node.toml"
    file.write_text('address = "tcp://10.77.0.33:5700"\n' + file.read_text())
    moved.start("--resume")
    back = moved.round()
    three.wait(lambda: moved.round() > back + 100)
    assert {node for round, node in moved.booked() if round > back + 50} == {0, 1, 3}
    for site in three.sites:
        assert site.process is not None
        site.process.send_signal(signal.SIGTERM)
    for site in three.sites:
        three.ended(site, 60)
    assert abs(float(str(three.check(*three.sites)["mean_residual"]))) < 1e-6


@pytest.mark.faults
def test_what_goes_wrong_on_a_machine_fails_and_is_not_skipped() -> None:
    """Whether there can be machines at all is looked at once, and apart."""
    demand()
    made = Machine()
    try:
        with pytest.raises(AssertionError, match="Cannot find device"):
            made.does("ip link set lo up\nip link set nowhere up")
    finally:
        made.ends()
