"""What nodes of a live run need of the machine's memory: planned before anything starts, told when one is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_drivers import tiny

from p2pfl.drivers.live import files, memory
from p2pfl.drivers.live.memory import PRIVATE, SHARED, Needs, Watcher
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build
from p2pfl.node.free_memory import free_memory
from p2pfl.runs import live

MB = 1 << 20
SMALL = Needs([40], 40, 40, 40, 2, 100, 1000)

PEAKS = [  # of real nodes (memory_peak): dsgd with two and four neighbours; dsgd, gradient tracking, push-sum with two
    (941, 902, Needs([42 * MB, 1 * MB], 85 * MB, 43 * MB, 43 * MB, 2, 0, 1 * MB)),
    (1312, 1252, Needs([42 * MB, 1 * MB], 85 * MB, 43 * MB, 43 * MB, 4, 0, 1 * MB)),
    (1190, 1231, Needs([15 * MB], 15 * MB, 15 * MB, 15 * MB, 2, 31 * MB, 397 * MB)),
    (1702, 1600, Needs([15 * MB], 46 * MB, 31 * MB, 31 * MB, 2, 31 * MB, 397 * MB)),
    (1513, 1489, Needs([12 * MB], 120 * MB, 48 * MB, 24 * MB, 2, 0, 1 * MB)),
    (2313, 2250, Needs([42 * MB, 1 * MB], 425 * MB, 170 * MB, 85 * MB, 2, 0, 1 * MB)),
]


@pytest.mark.parametrize(("planned", "measured", "needs"), PEAKS)
def test_the_plan_is_within_a_tenth_of_what_was_measured(planned: int, measured: int, needs: Needs) -> None:
    megabytes = (memory.each(needs) + SHARED / 2) / 1e6  # the peak counts about half of what all share
    assert megabytes == pytest.approx(measured, rel=0.1) and megabytes == pytest.approx(planned, rel=0.01)


def test_more_of_anything_needs_more() -> None:
    base = memory.each(SMALL)
    for field in ("state", "payload", "received", "neighbors", "batches", "data"):
        assert memory.each(SMALL._replace(**{field: getattr(SMALL, field) + 1})) > base
    assert memory.each(SMALL._replace(leaves=[1 << 40])) < base  # a large one goes back to the machine when freed


def test_what_does_not_fit_is_refused_and_what_would_is_said() -> None:
    large = SMALL._replace(data=2 << 30)
    free = SHARED + 3 * memory.each(large)
    memory.fits(large, 3, free)
    memory.fits(large, 1000, None)  # nobody knows
    memory.fits(SMALL, 64, SHARED + 64 * (PRIVATE + MB))
    with pytest.raises(ConfigError) as told:
        memory.fits(large, 4, free)
    assert str(told.value).startswith(
        "topology.nodes=4: as processes on this machine they need about 8.8 GB, 2.1 GB each"
    )
    assert '; 3 of them fit. Use fewer nodes, a smaller model, or driver.kind = "simulate"' in str(told.value)
    with pytest.raises(ConfigError, match="; 0 of them fit"):
        memory.fits(large, 1, SHARED)


@pytest.mark.parametrize(
    ("nodes", "limit", "here", "said"),
    [
        (8, 30, True, "topology.nodes=8: p2pfl run needs 112 open files and sockets, and 30 are allowed here. "
         "Raise the hard limit to 112 (ulimit -n"),
        (8, 111, True, "p2pfl run needs 112"),
        (8, 112, True, ""),
        (200, 1024, True, "p2pfl run needs 1264"),
        (8, 91, False, "topology.nodes=8: each node needs 92 open files and sockets, and 91 are allowed here"),
        (8, 92, False, ""),
        (1, 64, False, ""),
    ],
)  # fmt: skip
def test_more_files_than_there_may_be_are_refused_with_figures(nodes: int, limit: int, here: bool, said: str) -> None:
    if not said:
        files.fits(nodes, limit, here)
        return
    with pytest.raises(ConfigError) as told:
        files.fits(nodes, limit, here)
    assert said in str(told.value) and ("simulate" in str(told.value)) == here


@pytest.mark.parametrize(("soft", "hard", "after"), [(30, 30, 30), (30, 4000, 4000), (500, 1 << 20, 1 << 16)])
def test_the_limit_of_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, after: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(files.resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(files.resource, "setrlimit", lambda which, given: limits.append(given))
    assert files.raised() == after == limits[-1][0] and limits[-1][1] == hard
    assert files.raised() == after  # once is enough
    assert len(limits) == 1 + (after > soft)


def test_an_experiment_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = build(tiny("live"))
    live.check(federation)
    needs = live.needs(federation)
    assert (
        needs.leaves == [40, 2560] and needs.state == needs.payload == needs.received == 2600 and needs.neighbors == 2
    )
    assert needs.batches == 2 * 16 * 64 * 4
    monkeypatch.setattr(live, "free_memory", lambda: SHARED + 2 * memory.each(needs))
    with pytest.raises(ConfigError, match=r"topology\.nodes=4: .* 2 of them fit"):
        live.check(federation)


def machine(
    root: Path, available: int, group: str = "/", limits: dict[str, tuple[str, int, int]] | None = None, kills: int = 0
) -> Path:
    """The files of a kernel. `limits`: of a control group, its limit, what it uses, what of that is cached files."""
    files = {
        "proc/meminfo": f"MemTotal: 9000000 kB\nMemAvailable:   {available // 1024} kB\n",
        "proc/self/cgroup": f"0::{group}\n",
        "proc/vmstat": f"nr_free_pages 7\noom_kill {kills}\n",
    }
    for name, (limit, used, cached) in (limits or {}).items():
        place = f"sys/fs/cgroup{name}"
        files[f"{place}/memory.max"], files[f"{place}/memory.current"] = f"{limit}\n", f"{used}\n"
        files[f"{place}/memory.stat"] = f"anon 3\ninactive_file {cached}\n"
        files[f"{place}/memory.events"] = f"low 0\noom 1\noom_kill {kills}\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "limits", "free"),
    [
        ("/", {}, 4096 * MB),
        ("/a/b", {"/a/b": ("max", 5, 0)}, 4096 * MB),
        ("/a/b", {"/a/b": (f"{2048 * MB}", 1024 * MB, 24 * MB)}, 1048 * MB),
        ("/a/b", {"/a/b": ("max", 5, 0), "/a": (f"{2048 * MB}", 1024 * MB, 0)}, 1024 * MB),  # one above it
        ("/a/b", {"/a/b": (f"{9999 * MB}", 0, 0)}, 4096 * MB),
        ("/elsewhere", {"/": (f"{512 * MB}", 512 * MB + 5, 0)}, 0),  # in a container the group is the top
    ],
)
def test_free_memory(tmp_path: Path, group: str, limits: dict[str, tuple[str, int, int]], free: int) -> None:
    assert free_memory(machine(tmp_path, 4096 * MB, group, limits)) == free


def test_control_groups_of_version_1_count_as_well(tmp_path: Path) -> None:
    machine(tmp_path, 4096 * MB)
    (tmp_path / "proc/self/cgroup").write_text("12:pids:/a\n7:cpu,memory:/slurm/job\n0::/\n")
    place = tmp_path / "sys/fs/cgroup/memory/slurm"
    (place / "job").mkdir(parents=True)
    (place / "memory.limit_in_bytes").write_text(f"{1000 * MB}\n")
    (place / "memory.usage_in_bytes").write_text(f"{700 * MB}\n")
    (place / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {50 * MB}\n")
    assert free_memory(tmp_path) == 350 * MB


def test_where_the_kernel_tells_nothing_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert Watcher(tmp_path).killed() == "out of memory?"


def test_who_was_killed_for_memory_is_told_with_figures(tmp_path: Path) -> None:
    watcher = Watcher(machine(tmp_path, 3 << 30, kills=4))
    assert watcher.killed() == ""  # the kernel has killed nobody: somebody else has
    machine(tmp_path, 3 << 29, kills=6)
    assert watcher.killed() == "out of memory? The kernel has killed 2 for it since the run began; 1.5 GB are free now"
    machine(tmp_path / "group", 3 << 30, "/a", {"/a": ("max", 5, 0)}, kills=1)
    in_group = Watcher(tmp_path / "group")
    machine(tmp_path / "group", 3 << 30, "/a", {"/a": ("max", 5, 0)}, kills=2)
    assert "The kernel has killed 1" in in_group.killed()


def test_this_machine_tells() -> None:
    left = free_memory()
    assert left is not None and left > 100 * MB
