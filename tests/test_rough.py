"""Real nodes with keys, between which every connection is slow, stalls, and is cut in the middle of messages."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from roads import Roads, Weather
from sites import Site, found
from test_live import P2PFL

from p2pfl.drivers.live.ports import reserved
from p2pfl.errors import Exit
from p2pfl.node import records

pytestmark = [pytest.mark.live, pytest.mark.more]

ROUNDS = 60
EXPERIMENT = f"""
name = "hearts"
rounds = {ROUNDS}
baselines = false
[data]
source = "digits"
[model]
name = "mlp"
hidden = [16]
[training]
optimizer = {{ name = "sgd", learning_rate = 0.1 }}
[topology]
graph = "ring"
nodes = 4
[algorithm]
name = "dsgd"
[network]
preset = "lan"
[evaluation]
every = 20
"""


def soon(draw: random.Random) -> float:
    """After some thirty models in the mean, and in the middle of one."""
    return draw.expovariate(1 / 160_000)


ROUGH = Weather(latency=0.05, jitter=0.03, stall=0.02, cut=soon)
HOSTS = {"north": "127.0.0.1", "south": "::1", "east": "127.0.0.1", "west": "127.0.0.1"}
"""Where the roads to the sites begin."""


def wait(until: Callable[[], bool], sites: dict[str, Site], seconds: float = 180.0) -> None:
    limit = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < limit, {name: site.log[-800:] for name, site in sites.items()}
        time.sleep(0.02)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[dict[str, Site], Roads]]:
    """Four sites. Each listens inside, as in a container, and is called outside: at a number of IPv4 or of IPv6, or at
    a name; all that leads there is a road."""
    with reserved(8) as ports:
        pass
    outside, inside = ports[:4], ports[4:]
    told = {"north": "127.0.0.1", "south": "[::1]", "east": "localhost", "west": "127.0.0.1"}
    addresses = {name: f"tcp://{host}:{port}" for (name, host), port in zip(told.items(), outside, strict=True)}
    made = found(tmp_path, addresses, EXPERIMENT)
    with Roads(seed=1) as roads:
        for name, entry, to in zip(made, outside, inside, strict=True):
            made[name].sets(f'listen = "tcp://127.0.0.1:{to}"')
            for port in (0, 1):
                roads.open((HOSTS[name], entry + port), ("127.0.0.1", to + port), ROUGH)
        yield made, roads
        for site in made.values():
            site.close()


def twin(folder: Path) -> float:
    """Mean accuracy of the same nodes where no message is late."""
    (folder / "twin.toml").write_text(EXPERIMENT)
    command = [*P2PFL, "run", "twin.toml", "--driver", "simulate", "--out", "twin", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["accuracy_mean"])


def test_four_sites_on_roads_that_are_slow_stall_and_end_in_the_midst_of_models(
    sites: tuple[dict[str, Site], Roads], tmp_path: Path
) -> None:
    """All links are rough, and one site sleeps for seconds; books and accuracy are as if nothing had been."""
    made, roads = sites
    for site in made.values():
        site.start()
    west, others = made["west"], [site for name, site in made.items() if name != "west"]
    wait(lambda: min(site.rounds() for site in made.values()) > 10, made)
    west.stands_still(True)
    wait(lambda: all("removed" in site.log for site in others), made)
    here = others[0].rounds()
    wait(lambda: others[0].rounds() > here + 5, made)
    west.stands_still(False)
    for site in made.values():
        assert site.process is not None
        assert site.process.wait(180) == Exit.DONE, site.log[-2000:]
    assert all(west.node in site.notes("removed") for site in others) and west.node in west.notes("reborn")
    assert roads.cut >= 8, roads.cut
    results = [json.loads((site.records / "result.json").read_text()) for site in made.values()]
    assert all(each["encrypted"] and each["round"] == ROUNDS and not each["left"] for each in results)
    middle = sum(each["dropped"].get("connection", 0) for each in results)
    assert middle >= 4, [each["dropped"] for each in results]
    done = subprocess.run(
        [*P2PFL, "check", "--json", *(str(site.records) for site in made.values())], capture_output=True, text=True
    )
    books = json.loads(done.stdout)
    assert books["mean_residual"] < 1e-6 and books["exchanges_booked"] > ROUNDS, books
    last = [records.read(site.records / "metrics.jsonl")[-1]["accuracy_after_mixing"] for site in made.values()]
    assert abs(sum(last) / len(last) - twin(tmp_path)) < 0.02, last
