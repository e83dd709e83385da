"""Exports for clusters: each file is held to the tool that reads it, or to its schema; no key is in any."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from p2pfl.cli import main
from p2pfl.errors import ConfigError
from p2pfl.runs.clusters import plan as clusters
from p2pfl.trust import document, keys, store
from p2pfl.trust.sites import Site

NAMES = ("Cleveland", "köln_1", "hungary.2")
LABELS = ("cleveland", "koln-1", "hungary-2")
TARGETS = ("systemd", "slurm", "kubernetes", "compose")
EXPERIMENT = """
name = "t"
rounds = 3
data = { source = "digits" }
model = { name = "logistic" }
training = { optimizer = { name = "sgd", learning_rate = 0.1 } }
topology = { graph = "complete", nodes = 3 }
algorithm = { name = "dsgd" }
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment, private keys, and a federation of three at hosts of their own."""
    (tmp_path / "experiment.toml").write_text(EXPERIMENT, "utf-8")
    federate(tmp_path, ["tcp://node07.cluster.example:5700", "tcp://koeln.example.org:5710", "tcp://h:5700"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def federate(folder: Path, addresses: list[str], name: str = "Hearts", file: str = "hearts.toml", **more: Any) -> None:
    private = [keys.PrivateKey(bytes([i]) * 32) for i in range(len(addresses))]
    sites = [Site(i, NAMES[i], private[i].public, address) for i, address in enumerate(addresses)]
    sites[-1] = sites[-1]._replace(**more)
    made = document.founded(name, "majority", tuple(sites))
    for i, key in enumerate(private):
        made = document.accepted(made, i, key)
        if not (folder / f"{NAMES[i]}.key").exists():
            keys.write(folder / f"{NAMES[i]}.key", key)
    store.create(folder / file, made)


def call(target: str, *more: str, file: str = "hearts.toml", out: str = "out") -> Result:
    image = ["--image", "registry.example.org/p2pfl:1"] if target == "kubernetes" and "--image" not in more else []
    return CliRunner().invoke(main, ["federation", "export", target, file, "--out", out, *image, *more])


def written(target: str, *more: str, **how: str) -> dict[str, str]:
    """The files of an export, by their path in its folder."""
    result = call(target, *more, **how)
    assert result.exit_code == 0, result.output
    out = Path(how.get("out", "out"))
    return {str(path.relative_to(out)): path.read_text("utf-8") for path in sorted(out.rglob("*")) if path.is_file()}


def tool(name: str) -> str:
    """The path of a program; the test is skipped where it is not there."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


# --- all of them


@pytest.mark.parametrize("target", TARGETS)
def test_no_key_is_in_an_export_and_every_node_file_names_one(place: Path, target: str) -> None:
    files = written(target)
    secrets = [line for path in place.glob("*.key") for line in path.read_text().split("\n") if "private-key" in line]
    assert len(secrets) == 3
    for name, text in files.items():
        assert not any(secret.split(":")[1] in text for secret in secrets), name
    assert not [name for name in files if name.endswith(".key")]
    found = [tomllib.loads(text) for name, text in node_files(target, files).items()]
    assert len(found) == 3
    for table in found:
        assert table["experiment"] == "experiment.toml" and table["federation"].endswith("/hearts.toml")
        assert table["key"].startswith("/") and "data" not in table


def node_files(target: str, files: dict[str, str]) -> dict[str, str]:
    if target == "kubernetes":
        (config,) = (each for each in objects(files) if each["kind"] == "ConfigMap")
        return {name: text for name, text in config["data"].items() if re.fullmatch(r"hearts-\d.toml", name)}
    return {name: text for name, text in files.items() if Path(name).name in {f"{each}.toml" for each in LABELS}}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_overwritten(place: Path, target: str) -> None:
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("precious")
    result = call(target)
    assert result.exit_code == 1
    assert result.output.strip() == "Error: --out out: is not empty, and nothing is overwritten; give a new folder"
    assert [path.name for path in (place / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_experiment_names_goes_along_but_no_rows(place: Path, target: str) -> None:
    text = EXPERIMENT.replace(
        '{ source = "digits" }', '{ source = "csv", path = "rows.csv", label = "ill", dictionary = "d.toml" }'
    )
    text = text.replace('graph = "complete", nodes = 3', 'file = "graphs/g.edgelist"')
    text = text.replace('name = "sgd"', 'name = "mine:slow"')
    (place / "other.toml").write_text(text)
    for name, said in (
        ("rows.csv", "a,ill\n"),
        ("d.toml", "# meanings\n"),
        ("graphs/g.edgelist", "0 1\n"),
        ("mine.py", "\n"),
    ):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(said)
    refused = call(target, "--experiment", "other.toml")
    assert refused.exit_code == 1 and "data.path='rows.csv': rows are not taken along" in refused.output
    data = "{node}/{name}.csv" if target == "kubernetes" else "/srv/rows/{node}/{name}.csv"
    files = written(target, "--experiment", "other.toml", "--data", data)
    assert not any("rows.csv" in name for name in files)
    if target == "kubernetes":
        (config,) = (each for each in objects(files) if each["kind"] == "ConfigMap")
        names = {*config["data"]}
        assert {"experiment.toml", "d.toml", "graphs..g.edgelist", "mine.py"} <= names
        volume = pod(files)["volumes"][0]["configMap"]
        assert {"key": "graphs..g.edgelist", "path": "graphs/g.edgelist"} in volume["items"]
        assert {each["key"] for each in volume["items"]} == names
    else:
        for name in ("experiment.toml", "d.toml", "graphs/g.edgelist", "mine.py"):
            assert [each for each in files if each.endswith(name)], name
    rows = sorted(tomllib.loads(text)["data"]["path"] for text in node_files(target, files).values())
    at = "/srv/rows"
    assert rows == [f"{at}/{node}/{name}.csv" for node, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("target", "more", "said"),
    [
        ("systemd", ["--site", "clevelan"], "--site clevelan: no such member; did you mean 'Cleveland'?"),
        ("systemd", ["--experiment", "none.toml"], "none.toml: no such file"),
        ("systemd", ["--keys", "/etc/my.key"], "--keys /etc/my.key: is the same for all sites; write {name} or {node}"),
        ("systemd", ["--folder", "etc"], "--folder etc: must be a full path"),
        ("systemd", ["--folder", "/my etc"], "--folder /my etc: can't hold ' ' in such a file"),
        ("systemd", ["--user", "a b"], "--user a b: is no name of a user"),
        ("slurm", ["--time", "soon"], "--time soon: must be written as Slurm does"),
        ("slurm", ["--partition", "a b"], "--partition a b: is no name of a partition"),
        ("slurm", ["--data", "/rows.csv"], "--data /rows.csv: is the same for all sites"),
        ("kubernetes", ["--namespace", "A"], "--namespace A: must be lower case letters"),
        ("kubernetes", ["--image", "a b"], "--image a b: is no name of an image"),
        ("kubernetes", ["--data", "/srv/{name}.csv"], "--data /srv/{name}.csv: must be a path in the volume of rows"),
        ("compose", ["--data", "{name}.csv"], "--data Cleveland.csv: must be a full path"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    place: Path, target: str, more: list[str], said: str
) -> None:
    result = call(target, *more)
    assert result.exit_code == 1 and said in result.output and "Traceback" not in result.output
    assert not (place / "out").exists()


def test_a_folder_without_an_experiment_is_told(place: Path) -> None:
    (place / "experiment.toml").unlink()
    assert "say which experiment the federation runs, with --experiment FILE" in call("slurm").output


@pytest.mark.parametrize("target", ["kubernetes", "compose"])
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5700", "tcp://localhost:5700", "tcp://[::1]:5700"])
def test_a_container_that_would_be_called_at_itself_is_refused(place: Path, target: str, address: str) -> None:
    federate(place, ["tcp://a:5700", address], file="two.toml")
    result = call(target, file="two.toml")
    assert result.exit_code == 1 and "that is the container itself" in result.output


def test_a_site_that_has_not_accepted_is_told(place: Path) -> None:
    federate(place, ["tcp://a:5700", "tcp://b:5700"], file="two.toml")
    (place / "two.toml").write_text(
        re.sub('signature = ".+"\n*$', "", (place / "two.toml").read_text("utf-8")), "utf-8"
    )
    result = call("slurm", file="two.toml")
    assert result.exit_code == 1 and "two.toml: köln_1 has not accepted the federation in this copy" in result.output
    assert call("slurm", "--site", "Cleveland", file="two.toml").exit_code == 0


def test_labels_are_names_for_every_cluster_and_no_two_are_one(place: Path) -> None:
    sites = [
        Site(i, name, keys.PrivateKey(bytes([i]) * 32).public, f"tcp://h{i}:1")
        for i, name in enumerate(("a.b", "A_b", "中"))
    ]
    made = clusters.plan("7 Hearts", sites, "", Path("experiment.toml"), (), None)
    assert [site.label for site in made.sites] == ["a-b-0", "a-b-1", "site-2"] and made.label == "f-7-hearts"


def test_a_key_that_root_lends_a_service_is_read_and_others_are_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd and Kubernetes mount it: root's, and readable by an access list, or by the group of the pod."""
    found = os.stat_result((stat.S_IFREG | 0o440, 1, 1, 1, 0, 1000, 100, 0, 0, 0))
    for user, mode, uid, good in (
        (1000, 0o440, 0, True), (1000, 0o400, 0, True), (1000, 0o444, 0, False), (1000, 0o460, 0, False),
        (1000, 0o440, 1000, False), (1000, 0o440, 7, False), (0, 0o440, 0, False), (0, 0o400, 0, True),
    ):  # fmt: skip
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        monkeypatch.setattr(
            os, "fstat", lambda file, m=mode, u=uid: os.stat_result((stat.S_IFREG | m, *found[1:4], u, *found[5:]))
        )
        if good:
            assert keys.read(place / "Cleveland.key").public
        else:
            with pytest.raises(ConfigError, match=f"mode {mode:o}: others on this machine"):
                keys.read(place / "Cleveland.key")


# --- systemd


def test_a_unit_is_what_systemd_takes(place: Path) -> None:
    analyze = tool("systemd-analyze")
    program = place / "p2pfl"  # it must be there
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    made = {*written("systemd", "--program", str(program), "--data", "/srv/{name}.csv")}
    units = sorted(name for name in made if name.endswith(".service"))
    assert units == [f"{each}/p2pfl-hearts-{each}.service" for each in LABELS[:1] + LABELS[:0:-1]]
    done = subprocess.run([analyze, "verify", *(f"out/{each}" for each in units)], capture_output=True, text=True)
    # of units of the machine itself, which a container has not, it may have something to say
    assert not [line for line in done.stderr.splitlines() if "p2pfl" in line], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("user", [[], ["--user", "trainer"]])
def test_a_unit_says_what_is_meant(place: Path, user: list[str]) -> None:
    files = written("systemd", "--data", "/srv/{name}.csv", *user)
    text = files["koln-1/p2pfl-hearts-koln-1.service"]
    lines = text.splitlines()
    state = "/var/lib/p2pfl/hearts-koln-1"
    for line in (
        f"ExecStart=/usr/local/bin/p2pfl node /etc/p2pfl/hearts/koln-1.toml --out {state} --resume",
        "LoadCredential=key:/etc/p2pfl/hearts/köln_1.key", "Restart=on-failure", "RestartPreventExitStatus=1 2 3",
        "SuccessExitStatus=129 130 143", "KillSignal=SIGTERM", "TimeoutStopSec=30s", "ProtectSystem=strict",
        "NoNewPrivileges=yes", "PrivateTmp=yes", "StateDirectory=p2pfl/hearts-koln-1",
        "BindReadOnlyPaths=/srv/köln_1.csv", "User=trainer" if user else "DynamicUser=yes",
    ):  # fmt: skip
        assert line in lines, line
    node = tomllib.loads(files["koln-1/koln-1.toml"])
    assert node["key"] == "/run/credentials/p2pfl-hearts-koln-1.service/key"
    assert node["federation"] == f"{state}/hearts.toml" and "TCP 5710 and 5711 must be let in" in text
    assert {Path(name).name for name in files if name.startswith("koln-1/")} == {
        "koln-1.toml", "experiment.toml", "hearts.toml", "p2pfl-hearts-koln-1.service",
    }  # fmt: skip


def test_a_site_that_nobody_reaches_needs_no_open_port(place: Path) -> None:
    federate(place, ["tcp://a:5700", "tcp://b:5700"], file="two.toml", reachable=False)
    text = written("systemd", "--site", NAMES[1], file="two.toml")["koln-1/p2pfl-hearts-koln-1.service"]
    assert "no port need be open" in text


def test_a_unit_is_closed_to_all_it_does_not_need(place: Path) -> None:
    analyze = tool("systemd-analyze")
    text = written("systemd")["cleveland/p2pfl-hearts-cleveland.service"]
    (place / "p.service").write_text(text)
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=25", "--no-pager", "p.service"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# --- shell scripts


@pytest.mark.parametrize("target", ["slurm", "kubernetes"])
def test_scripts_are_what_shellcheck_takes(place: Path, target: str) -> None:
    check = tool("shellcheck")
    files = written(target, "--partition", "long", "--gpus", "1") if target == "slurm" else written(target)
    scripts = {name: text for name, text in files.items() if text.startswith("#!")}
    if target == "kubernetes":
        scripts = {"start.sh": start_script(files)}
    assert {*scripts} == ({"hearts.sbatch", "submit.sh"} if target == "slurm" else {"start.sh"})
    for name, text in scripts.items():
        done = subprocess.run([check, "--norc", "-"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}\n{done.stdout}"


def start_script(files: dict[str, str]) -> str:
    (config,) = (each for each in objects(files) if each["kind"] == "ConfigMap")
    return str(config["data"]["start.sh"])


def test_a_job_says_what_is_meant(place: Path) -> None:
    files = written(
        "slurm", "--time", "2-12:00:00", "--cpus", "4", "--memory", "8", "--gpus", "1", "--keys", "/keys/{node}"
    )
    directives = re.findall(r"^#SBATCH (.+)$", files["hearts.sbatch"], re.MULTILINE)
    assert {
        "--array=0-2", "--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--mem=8G", "--time=2-12:00:00",
        "--gpus-per-task=1", "--signal=B:USR1@120", "--requeue", "--open-mode=append",
    } <= {*directives}  # fmt: skip
    assert "--partition" not in files["hearts.sbatch"]
    assert 'sbatch --array=0 --nodelist=node07 "$@" hearts.sbatch' in files["submit.sh"]
    assert os.access("out/submit.sh", os.X_OK)
    node = tomllib.loads(files["koln-1.toml"])
    assert node["key"] == "/keys/1" and node["federation"] == f"{place}/out/runs/koln-1/hearts.toml"
    assert {"runs/cleveland/hearts.toml", "runs/koln-1/hearts.toml", "runs/hungary-2/hearts.toml"} <= {*files}


NODE = """#!{python}
import os, signal, sys
def leave(number, frame):
    print("left", flush=True)
    os._exit(143)
signal.signal(signal.SIGTERM, leave)
print("node", *sys.argv[1:], flush=True)
{then}
"""
WAITS, ENDS, MISTAKEN, KILLED = "signal.pause()", "sys.exit(3)", "sys.exit(1)", "os.kill(os.getpid(), 9)"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script of an export where `p2pfl`, `srun` and `scontrol` are others."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], then: str, **environment: str) -> subprocess.Popen[str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in (
            ("p2pfl", NODE.format(python=sys.executable, then=then)),
            ("srun", '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n'),
            ("scontrol", f'#!/bin/sh\necho "$@" >{tmp_path}/requeued\n'),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path, **environment},
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def job(programs: Callable[..., subprocess.Popen[str]], then: str) -> subprocess.Popen[str]:
    written("slurm")
    slurm = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1"}
    process = programs(["bash", "out/hearts.sbatch"], then, **slurm)
    assert process.stdout is not None
    place = Path.cwd() / "out"
    assert process.stdout.readline() == f"node node {place}/koln-1.toml --out {place}/runs/koln-1 --resume\n"
    return process


@pytest.mark.more
@pytest.mark.parametrize(
    ("then", "number", "code", "requeued"),
    [
        (WAITS, signal.SIGUSR1, 0, "requeue 77_1\n"), (WAITS, signal.SIGTERM, 143, ""), (ENDS, None, 3, ""),
        (MISTAKEN, None, 1, ""), (KILLED, None, 137, ""),
    ],
)  # fmt: skip
def test_a_task_leaves_in_good_order_and_is_queued_again_when_its_time_is_up(
    place: Path, programs: Callable[..., subprocess.Popen[str]], then: str, number: int | None, code: int, requeued: str
) -> None:
    process = job(programs, then)
    if number is not None:
        process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert said == ("left\n" if number else "")
    file = place / "requeued"
    assert (file.read_text() if file.exists() else "") == requeued


@pytest.mark.more
@pytest.mark.parametrize(("then", "code"), [(WAITS, 143), (MISTAKEN, 1), (KILLED, 137)])
def test_a_pod_ends_as_its_node_does(
    place: Path, programs: Callable[..., subprocess.Popen[str]], then: str, code: int
) -> None:
    process = start_pod(place, programs, then)
    if then == WAITS:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert (place / "state" / "hearts.toml").read_text("utf-8") == (place / "hearts.toml").read_text("utf-8")
    assert not (place / "tmp" / "at-work").exists()


@pytest.mark.more
def test_a_pod_whose_node_is_done_stays_until_it_is_deleted(
    place: Path, programs: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_pod(place, programs, ENDS)
    assert process.stdout is not None
    assert process.stdout.readline() == "ended with 3; delete the pod to start it again\n"
    assert process.poll() is None and not (place / "tmp" / "at-work").exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def start_pod(place: Path, programs: Callable[..., subprocess.Popen[str]], then: str) -> subprocess.Popen[str]:
    script = start_script(written("kubernetes"))
    for name, there in (("/tmp/", "tmp/"), ("/etc/p2pfl", "etc"), ("/var/lib/p2pfl", "state")):
        (place / there).mkdir(exist_ok=True)
        script = script.replace(name, f"{place}/{there}")
    shutil.copyfile(place / "hearts.toml", place / "etc" / "hearts.toml")
    (place / "start.sh").write_text(script, "utf-8")
    process = programs(["sh", "start.sh"], then, POD="hearts-1")
    assert process.stdout is not None
    assert process.stdout.readline() == f"node node {place}/etc/hearts-1.toml --out {place}/state --resume\n"
    return process


# --- Kubernetes


def objects(files: dict[str, str]) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(files["hearts.yaml"]))


def pod(files: dict[str, str]) -> dict[str, Any]:
    (found,) = (each for each in objects(files) if each["kind"] == "StatefulSet")
    return dict(found["spec"]["template"]["spec"])


@pytest.mark.parametrize("version", ["1.28", pytest.param("1.32", marks=pytest.mark.more)])
def test_objects_are_what_kubernetes_takes(place: Path, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    found = objects(written("kubernetes", "--gpus", "1", "--data", "{name}.csv", "--namespace", "trials"))
    assert [each["kind"] for each in found] == [
        "ConfigMap", "Service", "Service", "Service", "Service", "PodDisruptionBudget", "StatefulSet",
    ]  # fmt: skip
    for each in found:
        validator.validate(each, version, strict=True)
        assert each["metadata"]["namespace"] == "trials"


def test_a_pod_sees_its_own_key_alone_and_may_do_nothing_else(place: Path) -> None:
    files = written("kubernetes")
    spec = pod(files)
    (node,) = spec["containers"]
    mounts = {each["name"]: each for each in node["volumeMounts"]}
    assert mounts["keys"] == {
        "name": "keys", "mountPath": "/run/secrets/p2pfl/key", "subPathExpr": "$(POD).key", "readOnly": True,
    }  # fmt: skip
    assert tomllib.loads(node_files("kubernetes", files)["hearts-1.toml"])["key"] == "/run/secrets/p2pfl/key"
    secret = next(each["secret"] for each in spec["volumes"] if each["name"] == "keys")
    assert secret == {"secretName": "hearts-keys", "defaultMode": 0o400} and "defaultMode: 0400" in files["hearts.yaml"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["fsGroup"] == 1000
    assert spec["automountServiceAccountToken"] is False and node["securityContext"]["readOnlyRootFilesystem"]
    assert spec["terminationGracePeriodSeconds"] == 30
    said = call("kubernetes", out="again").output
    for at, name in enumerate(NAMES):
        assert f"--from-file=hearts-{at}.key={name}.key" in said


def test_pods_at_their_own_addresses_need_no_service_but_the_headless_one(place: Path) -> None:
    hosts = [f"hearts-{at}.hearts.trials.svc.cluster.local" for at in range(3)]
    federate(place, [f"tcp://{host}:5700" for host in hosts], file="inside.toml")
    found = objects(written("kubernetes", "--namespace", "trials", file="inside.toml"))
    (service,) = (each for each in found if each["kind"] == "Service")
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert [each["port"] for each in service["spec"]["ports"]] == [5700, 5701]
    (pods,) = (each for each in found if each["kind"] == "StatefulSet")
    assert pods["spec"]["serviceName"] == service["metadata"]["name"] == "hearts"
    assert pods["spec"]["podManagementPolicy"] == "Parallel" and pods["spec"]["replicas"] == 3
    labels = pods["spec"]["template"]["metadata"]["labels"]
    (budget,) = (each for each in found if each["kind"] == "PodDisruptionBudget")
    for selector in (
        pods["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels


def test_a_site_that_is_called_from_outside_has_a_service_of_its_own(place: Path) -> None:
    result = call("kubernetes", "--site", NAMES[1])
    assert "tcp://koeln.example.org:5710 -> Service hearts-koln-1" in result.output
    found = objects({"hearts.yaml": Path("out/hearts.yaml").read_text("utf-8")})
    (outside,) = (each for each in found if each["kind"] == "Service" and each["spec"].get("type") == "LoadBalancer")
    assert outside["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == "hearts-0"
    assert [each["port"] for each in outside["spec"]["ports"]] == [5710, 5711]


def test_files_that_no_config_map_holds_are_refused(place: Path) -> None:
    (place / "experiment.toml").write_text(EXPERIMENT + "# " + 1_000_000 * "x")
    result = call("kubernetes")
    assert result.exit_code == 1 and "a ConfigMap holds 1000000" in result.output


# --- compose


@pytest.mark.parametrize(
    "image", [[], pytest.param(["--image", "registry.example.org/p2pfl:1"], marks=pytest.mark.more)]
)
def test_a_file_is_what_compose_takes(place: Path, image: list[str]) -> None:
    written("compose", "--data", "/srv/{name}.csv", *image)
    pytest.importorskip("check_jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "out/compose.yaml"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_compose_file_says_what_is_meant(place: Path) -> None:
    files = written("compose")
    table = yaml.safe_load(files["compose.yaml"])
    assert list(table["services"]) == [*LABELS]
    one = table["services"]["koln-1"]
    assert one["secrets"] == [{"source": "koln-1-key", "target": "key"}]
    assert table["secrets"]["koln-1-key"] == {"file": "./köln_1.key"}
    assert tomllib.loads(files["config/koln-1.toml"])["key"] == "/run/secrets/key"
    assert one["networks"] == {"federation": {"aliases": ["koeln.example.org"]}} and "ports" not in one
    assert one["command"] == ["node", "/etc/p2pfl/koln-1.toml", "--out", "/var/lib/p2pfl", "--resume"]
    assert one["stop_grace_period"] == "30s" and one["read_only"] is True and one["cap_drop"] == ["ALL"]
    for mount in one["volumes"]:
        assert Path("out", mount["source"]).is_dir(), "compose makes none"
    assert files["state/koln-1/hearts.toml"] == (place / "hearts.toml").read_text("utf-8")
    assert one["build"] == {"context": "image", "dockerfile": "Containerfile"}
    assert [name for name in files if name.startswith("image/")] == ["image/Containerfile"], "no key is ever near it"


def test_ports_are_open_where_others_call_from_elsewhere(place: Path) -> None:
    written("compose", "--site", NAMES[1])
    table = yaml.safe_load(Path("out/compose.yaml").read_text("utf-8"))
    assert table["services"]["koln-1"]["ports"] == ["5710:5710", "5711:5711"]


def test_two_containers_at_one_place_are_refused(place: Path) -> None:
    federate(place, ["tcp://same:5700", "tcp://same:5710"], file="host.toml")
    assert "are both at the host same" in call("compose", file="host.toml").output
    federate(place, ["tcp://192.0.2.1:5700", "tcp://192.0.2.1:5701"], file="ports.toml")
    assert "would both be called at port 5701 of this machine" in call("compose", file="ports.toml").output


def test_the_containerfile_makes_no_image_of_another_version(place: Path) -> None:
    text = written("compose")["image/Containerfile"]
    version = re.findall(r"^version = (.+)$", (Path(__file__).parents[1] / "setup.cfg").read_text(), re.MULTILINE)[0]
    assert "FROM python:3.12-slim" in text and f'ARG P2PFL="p2pfl-jax=={version}"' in text
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[0]) == ["p2pfl"]
