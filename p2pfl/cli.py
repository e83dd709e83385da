"""The command line: `p2pfl init`, `doctor`, `run`, `node`, `check`, `chaos`, `report`, `predict`, `export` and more.

Its exit codes: `Exit`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console

from p2pfl.cli_federation import federation
from p2pfl.console import (
    LOG_LEVEL,
    Commands,
    Failure,
    Seconds,
    StretchesOrExact,
    also_told,
    compiled_programs,
    errors_told,
    going_on,
    judge,
    log_options,
    told_how_to_go_on,
)
from p2pfl.errors import ConfigError, Exit
from p2pfl.shipped import experiments

if TYPE_CHECKING:
    from p2pfl.config.experiment import Experiment
    from p2pfl.types import Schedule


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pfl-jax")
def main() -> None:
    """Decentralised peer-to-peer federated training in JAX: no server, no single point of failure."""
    # at the end all that jax has made would be looked through, which takes longer than most commands after Ctrl-C
    atexit.register(gc.freeze)
    # every node process compiles the same small programs: whoever comes second finds them here
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := compiled_programs()) is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


main.add_command(federation)


# --- first minutes: init, completion, doctor


@main.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--template", type=click.Choice(["hospital", "study", "lan", *experiments()]), default="hospital",
    show_default=True, help="hospital: four hospitals, each with a table of its own; study: graph by churn; lan: two "
    "machines; data: the layouts of data sets; all others: a copy of that experiment of p2pfl, whose README.md says "
    "what it claims and which data it needs.",
)  # fmt: skip
def init(folder: Path | None, template: str) -> None:
    """Write an experiment folder that runs as it is.

    DIR must be new or empty; without it, it is called as the template.
    """
    folder = folder or Path(template)
    with errors_told(leaves=folder):
        from p2pfl.runs import init as templates

        files = templates.write(folder, template)
        said = templates.TEMPLATES.get(template, "as it is in p2pfl")
        click.echo(f"{folder}: {said}: {', '.join(map(str, files))}")
        for name in templates.wanted(folder):
            click.echo(f"It needs {folder / name}, which is no part of p2pfl: README.md there says what it is")
        click.echo("Next, and README.md there says how to go on:")
        if template not in templates.TEMPLATES or str(folder) == ".":
            click.echo(f"  cat {folder / 'README.md'}")
        if str(folder) != ".":
            click.echo(f"  cd {folder}")
        if template in templates.TEMPLATES:
            click.echo("  p2pfl run experiment.toml")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    It completes commands, options, names and files; its first lines say where it goes.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    wanted = {
        "bash": 'add to ~/.bashrc: eval "$(p2pfl completion bash)"',
        "zsh": 'add to ~/.zshrc, below compinit: eval "$(p2pfl completion zsh)"',
        "fish": "p2pfl completion fish > ~/.config/fish/completions/p2pfl.fish",
    }
    first, _, rest = kind(main, {}, "p2pfl", "_P2PFL_COMPLETE").source().lstrip().partition("\n")
    head = f"# {wanted[shell]}"
    click.echo("\n".join([first, head, rest] if first.startswith("#compdef") else [head, first, rest]), nl=False)


@main.command()
@click.argument("file", metavar="[NODE.toml]", required=False, type=click.Path(path_type=Path))
@click.option("--wait", type=Seconds(), help="Let others call, and call them again, for up to so long, as in 60s.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found alone, as JSON.")
def doctor(file: Path | None, wait: float | None, as_json: bool) -> None:
    """Say what is wrong with this machine, or with a node's way to the others.

    Of NODE.toml: whether it can listen, whom it reaches and who reaches it, which side fails, and what to do.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others may compute on the device
    with errors_told(disk=Exit.FAILED):
        from p2pfl.runs import doctor as runs

        if wait and file is None:
            raise ConfigError("--wait: others call a node; give its file, as in p2pfl doctor node.toml --wait 60s")
        console = Console(highlight=False, stderr=as_json, markup=False, soft_wrap=True)
        tell = (lambda found: None) if as_json else (lambda found: runs.show(found, console))
        found = runs.diagnose(file, wait or 0.0, tell, lambda text: console.print(f"       ... {text}", style="dim"))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        console.print(found.summary)
    if found.code:
        sys.exit(found.code)


# --- runs


def _held(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """End with whoever holds the other end of standard input."""
    if wanted:
        from p2pfl.drivers.live.lifeline import Lifeline

        Lifeline()


_LIFELINE = click.option(
    "--lifeline", is_flag=True, expose_value=False, callback=_held,
    help="End as by SIGTERM when standard input ends: whoever has started this is gone.",
)  # fmt: skip


@main.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field; VALUE is read as TOML.")
@click.option("--out", type=click.Path(path_type=Path), help="The run directory; must be new or empty.")
@click.option("--driver", type=click.Choice(["live", "virtual", "simulate"]), help="Short for --set driver.kind=...")
@click.option("--json", "as_json", is_flag=True, help="Print the summary alone, as JSON.")
@click.option(
    "--hosts", metavar="ADDRESS,N,I", help="Simulate on N hosts, of which this is number I; ADDRESS of host 0."
)
@click.option(
    "--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on with the run in this directory; no FILE."
)
@log_options
@_LIFELINE
def run(
    file: Path | None, overrides: tuple[str, ...], out: Path | None, driver: str | None, as_json: bool,
    hosts: str | None, resume: Path | None, log_form: str, log_level: str,
) -> None:  # fmt: skip
    """Run the experiment in FILE: all its nodes on this machine, and its baselines."""
    _one_of(file, resume, {"--out": out, "--driver": driver, "--hosts": hosts})
    # jax and the rest take a second to import: not for --help, nor for a mistake in the file
    from p2pfl.config import experiment
    from p2pfl.node.said import Said
    from p2pfl.reporting import terminal
    from p2pfl.runs.log import Log

    log = Log(lambda text: click.echo(text, err=as_json), log_form, log_level)
    if log_level != "info":
        os.environ[LOG_LEVEL] = log_level  # for the processes of the nodes, whose log.txt stays text
    overrides = (*overrides, *([f'driver.kind="{driver}"'] if driver else []))
    console = Console(highlight=False)
    with also_told(log.failed), errors_told():
        if resume is not None:
            wanted, folder = _resumed(resume, overrides)
        else:
            assert file is not None
            wanted, folder = experiment.load(file, overrides, find=True), str(file.resolve().parent)
        if wanted.driver.kind == "simulate":
            _cores_as_devices()
        first = _join_hosts(hosts, wanted.driver.kind, wanted.baselines)
        sys.path[:0] = [str(Path.cwd()), folder]
        from p2pfl.runs.run import default_out, fresh
        from p2pfl.runs.run import run as run_experiment
        from p2pfl.runs.verdict import verdict

        out = resume or out or default_out(wanted.name)
        if resume is None:
            fresh(out)
    with (
        told_how_to_go_on(out), also_told(log.failed), errors_told(f"{resume or file}: ", leaves=out),
        log.view(console, quiet=as_json) as shown,
    ):  # fmt: skip
        summary = run_experiment(wanted, out, shown, folder=folder, resumes=resume is not None)
    if not first:  # of several hosts the first one tells
        return
    if log.json:
        log.say(Said(f"report: {out / 'report.html'}", "done", directory=str(out)))
    if as_json:
        click.echo(json.dumps(summary.as_dict(), indent=1))
    elif not log.json:
        console.print(terminal.results_table(summary))
        if summary.lost:
            planned = " (as planned)" if not summary.lost_unplanned else ""
            console.print(f"lost: node {', '.join(map(str, summary.lost))}{planned}")
        console.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)
        if summary.interrupted:
            console.print(f"to go on: {going_on(out)}", soft_wrap=True, markup=False)
    judge(verdict(summary), log.failed)


def _one_of(file: Path | None, resume: Path | None, others: Mapping[str, object]) -> None:
    """Raises UsageError unless a run is either begun or resumed. `others`: options that a run has been begun with."""
    if (file is None) == (resume is None):
        said = "give FILE or --resume RUN" + (", not both: RUN has its experiment" if file else "")
        raise click.UsageError(said)
    given = [name for name, value in others.items() if value is not None]
    if resume is not None and given:
        raise click.UsageError(f"--resume RUN goes on as RUN began; leave {' and '.join(given)} out")


def _resumed(run: Path, overrides: tuple[str, ...]) -> tuple[Experiment, str]:
    """The experiment of a run that goes on, and where its modules lie. Raises ConfigError."""
    from p2pfl.runs import origin, resume

    wanted = resume.wanted(run, overrides)
    known = origin.read(run)
    return wanted, known.folder if known else ""


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Directory of this node's records.")
@click.option("--hold", is_flag=True, help="When all is compiled, wait for a line on standard input.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in the node's directory, if there is one.")
@click.option(
    "--return-in", "returns", type=click.IntRange(1), metavar="ROUND", help="It comes back in this round, as planned."
)
@click.option(
    "--after",
    type=click.IntRange(1),
    metavar="ROUND",
    help="All nodes were stopped, and begin together after it.",
)
@click.option("--without", multiple=True, type=click.IntRange(0), metavar="NODE", help="Of these, who comes in later.")
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), metavar="PORT",
    help="Let Prometheus ask there, on the loopback address, how the node stands.",
)  # fmt: skip
@log_options
def node(
    file: Path, out: Path | None, hold: bool, resume: bool, returns: int | None, after: int | None,
    without: tuple[int, ...], metrics_port: int | None, log_form: str, log_level: str,
) -> None:  # fmt: skip
    """Run one node of a federation, as FILE describes it."""
    from p2pfl.runs.log import Log

    log = Log(click.echo, log_form, log_level)
    with also_told(log.failed):
        with errors_told(disk=Exit.FAILED):
            from p2pfl.runs import node as one

            together = one.Together(after or 0, without)
            metrics = None if metrics_port is None else f"127.0.0.1:{metrics_port}"
            ended = one.run(file, out, hold, resume, log.say, returns, together, 0, metrics)
        if ended.result.error:
            raise Failure(ended.result.error, Exit.FAILED)
    if hold and ended.verdict.code == Exit.NOT_WHOLE:  # whoever has started it judges all nodes together
        return
    judge(ended.verdict, log.failed)


@main.command()
@click.argument("where", metavar="ADDRESS|NODE.toml")
@click.option("--json", "as_json", is_flag=True, help="Print the answer alone, as JSON.")
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="NAME.key", help="Ask as the member whose private key this is."
)
@click.option("--federation", "file", type=click.Path(path_type=Path), help="The federation file; with --key.")
def status(where: str, as_json: bool, key: Path | None, file: Path | None) -> None:
    """Ask a node that runs how it stands: its members, its round, who is late, its books, what it has dropped."""
    if (key is None) != (file is None):
        raise click.UsageError("--key and --federation go together")
    with errors_told():
        from datetime import UTC, datetime

        from p2pfl.runs import status as runs

        answer = runs.ask(where, None if key is None or file is None else runs.AskingMember(key, file))
    if as_json:
        click.echo(json.dumps(answer.as_dict(), indent=1))
    else:
        for line in runs.lines(answer, datetime.now(UTC)):
            click.echo(line)
    for reason in answer.reasons:
        click.echo(reason, err=True)
    if answer.code:
        sys.exit(answer.code)


@main.command()
@click.argument("file", metavar="NODE.toml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the result; must hold none.")
@click.option(
    "--unstratified",
    type=StretchesOrExact(),
    metavar="N|exact",
    help="Of survival: also with one baseline hazard for all, constant in N stretches of time, or free (exact).",
)
def coefficients(file: Path, out: Path | None, unstratified: int | Literal["exact"] | None) -> None:
    """Find the coefficients of a linear model, with standard errors, together with the other nodes: by sums alone."""
    with errors_told(disk=Exit.FAILED):
        from p2pfl.runs import gossiped
        from p2pfl.runs.log import Log

        ended = gossiped.run(file, out, Log(click.echo).say, unstratified)
    for line in ended.lines():
        click.echo(line)
    if ended.result.error:
        raise Failure(ended.result.error, Exit.FAILED)
    judge(ended.verdict)


@main.command()
@click.argument("what", metavar="FILE|RUN", type=click.Path(path_type=Path))
@click.option("--every", type=Seconds(), required=True, help="A node is killed every so often, as in 10s.")
@click.option("--for", "length", type=Seconds(), help="How long, as in 10min; to the last round unless given.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of who is killed.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field of FILE.")
@click.option("--driver", type=click.Choice(["live", "virtual", "simulate"]), help="Short for --set driver.kind=...")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of both runs of FILE; must be new or empty.")
@click.option("--json", "as_json", is_flag=True, help="Print the result alone, as JSON.")
def chaos(
    what: Path, every: float, length: float | None, seed: int, overrides: tuple[str, ...], driver: str | None,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Kill a node every few seconds and start it again: in one of two runs of FILE, or in the live run RUN."""
    with errors_told():
        from p2pfl.config import experiment
        from p2pfl.reporting import terminal

        if what.is_dir():
            if overrides or driver or out:
                raise ConfigError(f"{what}: is a run; --set, --driver and --out go with an experiment file")
            from p2pfl.runs import chaos_attached

            chaos_attached.attach(what, every, length, seed, lambda text: click.echo(text, err=as_json))
            return
        wanted = experiment.load(what, (*overrides, *([f'driver.kind="{driver}"'] if driver else [])), find=True)
        if wanted.driver.kind == "simulate":
            _cores_as_devices()
        sys.path[:0] = [str(Path.cwd()), str(what.resolve().parent)]
        from p2pfl.runs import chaos as runs
        from p2pfl.runs.run import default_out

        console = Console(highlight=False)
        out = out or default_out(f"chaos-{wanted.name}")
        with terminal.make(console, quiet=as_json) as shown:
            result = runs.chaos(wanted, runs.Wanted(every, length, seed), out, shown)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=1))
    else:
        console.print(runs.table(result))
        console.print(f"result: {out / 'chaos.json'}", soft_wrap=True, markup=False)
    judge(result.verdict)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The sweep's directory; runs of an earlier call are kept.")
@click.option("--workers", type=click.IntRange(1, 256), help="How many runs to make at once; one per core by default.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field of the base experiment.")
@click.option("--only", multiple=True, metavar="AXIS=LABEL", help="Make only these runs; seed=0 chooses a seed.")
@click.option("--json", "as_json", is_flag=True, help="Print the table alone, as JSON.")
@_LIFELINE
def sweep(
    file: Path, out: Path | None, workers: int | None, overrides: tuple[str, ...], only: tuple[str, ...], as_json: bool
) -> None:
    """Make every run of the sweep in FILE, and the table and picture of what came of them."""
    from p2pfl.sweeps import plan, table
    from p2pfl.sweeps.workers import make_all

    console = Console(highlight=False)
    with errors_told():
        planned = plan.read(file)
        runs = plan.runs(planned, overrides, only)
    out = out or Path("runs") / f"sweep-{planned.sweep.name}"
    with errors_told(leaves=out):
        with table.make(console, as_json) as shown:
            made = make_all(planned, out, runs, workers or len(os.sched_getaffinity(0)), shown)
        whole = table.write(planned, out, runs, only, made)
    if as_json:
        click.echo(json.dumps(whole, indent=1))
    else:
        console.print(f"table: {out / 'table.md'}", soft_wrap=True, markup=False)
    if made.stopped:
        click.echo("interrupted; run the same command again to continue", err=True)
        sys.exit(Exit(128 + made.stopped))
    if made.failed:
        said = f"failed: {', '.join(made.failed)}; see the reasons in {out / 'table.md'}"
        raise Failure(said, Exit.NOT_WHOLE)


@main.command()
@click.argument("run", metavar="RUN|MODEL", type=click.Path(path_type=Path))
@click.option("--data", "rows", type=click.Path(path_type=Path), required=True, help="Rows: a table, .npz or images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The table to write; must be new.")
@click.option("--node", type=click.IntRange(0), help="Whose model answers; said, where it is left out.")
@click.option("--answer", metavar="NAME", help="Which of the models of [evaluation] answers, such as fine_tuned.")
def predict(run: Path, rows: Path, out: Path, node: int | None, answer: str | None) -> None:
    """Answer new rows with a model of the run directory RUN, or of the export MODEL."""
    with errors_told():
        sys.path[:0] = [str(Path.cwd())]  # code is never taken from a run's directory
        from p2pfl.runs import use

        use.predict(run, rows, out, node, answer, lambda text: click.echo(text))
    click.echo(f"predictions: {out}")


@main.command()
@click.argument("run", metavar="RUN|MODEL", type=click.Path(path_type=Path))
@click.option("--to", metavar="FORMAT", required=True, help="safetensors, orbax, stablehlo or onnx.")
@click.option("--node", type=click.IntRange(0), help="Whose model; said, where it is left out.")
@click.option("--answer", metavar="NAME", help="Which of the models of [evaluation] answers, such as fine_tuned.")
@click.option("--out", type=click.Path(path_type=Path), help="The directory to write; must be new or empty.")
def export(run: Path, to: str, node: int | None, answer: str | None, out: Path | None) -> None:
    """Export a model of the run directory RUN: its weights or its function, what it needs to be used, and its card."""
    with errors_told():
        sys.path[:0] = [str(Path.cwd())]  # code is never taken from a run's directory
        from p2pfl.runs import export as exports

        out = out or Path(f"{run.resolve().name}-{to}")
        said = exports.export(run, to, out, node, answer)
    click.echo(f"{said}: {out}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path), help="Rows instead of the run's test rows, as for predict.")
@click.option("--node", type=click.IntRange(0), help="Whose model, on whose rows; else the model of all, site by site.")
@click.option("--answer", metavar="NAME", help="Which of the models of [evaluation] answers, such as personal.")
@click.option("--class", "of", metavar="NAME", help="Whose odds are explained; else those of what is predicted.")
@click.option("--rows", type=click.IntRange(1, 100), default=4, show_default=True, help="Images of each site.")
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Shuffles of each column.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of rows and shuffles.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory to write to; RUN/explanations unless given.")
def explain(run: Path, out: Path | None, **asked: Any) -> None:
    """Say what the answers of RUN's model rest on, at every site: pixels of images, columns of tables."""
    with errors_told():
        sys.path[:0] = [str(Path.cwd())]  # code is never taken from a run's directory
        from p2pfl.reporting import page
        from p2pfl.runs import explain as explanations

        found = explanations.explain(run, explanations.Question(**asked), out, lambda text: click.echo(text))
        click.echo(f"explanations: {found}")
        if out is None and (run / "summary.json").is_file():
            click.echo(f"report: {page.write(run)}")


@main.command()
@click.argument("what", metavar="RUN|EXPERIMENT.toml", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field of EXPERIMENT.toml.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run directory of EXPERIMENT.toml; must be new or empty."
)
@click.option("--node", type=click.IntRange(0), default=0, show_default=True, help="Who listens and attacks.")
@click.option("--victim", type=click.IntRange(0), help="Whom it attacks; its first neighbour unless given.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds that are computed again; all unless given.")
@click.option("--steps", metavar="H,...", default="1", show_default=True, help="Local steps of settings to compare.")
@click.option("--batch", "batches", metavar="B,...", default="1", show_default=True, help="Rows of a step in them.")
@click.option(
    "--noise", metavar="S,...", default="0.001,0.01,0.1", show_default=True,
    help="Noise multipliers of [privacy], tried in the smallest of them.",
)  # fmt: skip
@click.option("--iterations", type=click.IntRange(1), default=400, show_default=True, help="Of each search for rows.")
@click.option("--shadows", type=click.IntRange(2), default=16, show_default=True, help="Shadow models of LiRA.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of searches and shadow models.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found alone, as JSON.")
def audit(
    what: Path, overrides: tuple[str, ...], out: Path | None, steps: str, batches: str, noise: str, as_json: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Attack what a neighbour is sent, and say what comes back: the leak report.

    Of RUN, whose messages are computed again, or of EXPERIMENT.toml, which is simulated first.
    """
    asked |= {"steps": _numbers("steps", steps, int), "batches": _numbers("batch", batches, int)}
    with errors_told(leaves=out):
        from p2pfl.reporting import leaks, page
        from p2pfl.runs import audit as audits

        question = audits.AuditQuestion(noise=_numbers("noise", noise, float), **asked)

        def say(text: str) -> None:
            click.echo(text, err=True)

        if what.is_dir():
            if overrides or out is not None:
                raise ConfigError(f"{what}: is a run; --set and --out go with an experiment file")
            sys.path[:0] = [str(Path.cwd())]  # code is never taken from a run's directory
            run = what
        else:
            sys.path[:0] = [str(Path.cwd()), str(what.resolve().parent)]
            run = audits.simulate(what, overrides, out, question, say)
        found = audits.audit(run, question, say=say)
        report = page.write(run)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for line in leaks.lines(found):
        click.echo(line)
    click.echo(f"report: {report}")


def _numbers(name: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """The numbers of a list such as 1,8; "" for none."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r}: must be numbers with commas between, as in 1,8", param_hint=name
        ) from error


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="DIR", help="Write its figures and tables here, too."
)
def report(run: Path, figures: Path | None) -> None:
    """Write report.html of the run directory RUN again."""
    from p2pfl.reporting import page, paper

    with errors_told():
        if figures is not None:
            written = paper.write(run, figures)
        click.echo(page.write(run))
        if figures is not None:
            click.echo(f"{written.figures} figures and {written.tables} tables: {written.path}")


@main.command()
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the books alone, as JSON.")
def check(run: tuple[Path, ...], as_json: bool) -> None:
    """Balance the books of a run: RUN is its directory, or those of all its nodes, wherever they were started."""
    with errors_told():
        from p2pfl.runs.check import check as compute

        checked = compute(run)
    if as_json:
        click.echo(json.dumps(checked.as_dict(), indent=1))
    else:
        for line in checked.lines():
            click.echo(line)
    judge(checked.verdict)


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts alone, as JSON.")
def replay(run: Path, as_json: bool) -> None:
    """Compute the run in the directory RUN again from its trace, and compare the models to the bit."""
    with errors_told():
        sys.path[:0] = [str(Path.cwd())]
        from p2pfl.runs.replay import replay as compute

        verdicts = compute(run, lambda text: click.echo(text, err=as_json))
    if as_json:
        click.echo(json.dumps([verdict._asdict() for verdict in verdicts], indent=1))
    else:
        for each in verdicts:
            click.echo(f"node {each.node}: " + ("equal" if each.equal else f"differs by up to {each.difference:.3g}"))
    wrong = [verdict.node for verdict in verdicts if not verdict.equal]
    if wrong:
        raise Failure(
            f"{len(wrong)} of {len(verdicts)} nodes differ: node {', '.join(map(str, wrong))}. The trace leads to "
            "other models: the version, the machine, the data or a file has changed",
            Exit.NOT_WHOLE,
        )


@main.group()
def data() -> None:
    """What the rows of a federation mean."""


@data.command()
@click.argument("file", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="A field of [data], as in --set label=ill.")
def describe(file: tuple[Path, ...], given: tuple[str, ...]) -> None:
    """Print the data dictionary of FILE: a table, an .npz, or an experiment or node file; of several, one for all."""
    with errors_told():
        sys.path[:0] = [str(Path.cwd())]
        from p2pfl.data import dictionary
        from p2pfl.runs.describe import describe as compute

        click.echo(dictionary.dumps(compute(file, given, lambda text: click.echo(text, err=True))), nl=False)


@main.command()
@click.argument("graph")
@click.option("--nodes", type=int, help="How many nodes; for a graph by name.")
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="An argument of the graph, as in --set k=2.")
@click.option("--weights", help="Mixing weights of a static graph: metropolis, max_degree, best_constant, ...")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of graphs that are drawn at random.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures alone, as JSON.")
@click.option(
    "--draw", "picture", type=click.Path(path_type=Path), metavar="FILE.png", help="Also draw the graph into this file."
)
def topology(
    graph: str, nodes: int | None, given: tuple[str, ...], weights: str | None, seed: int, as_json: bool,
    picture: Path | None,
) -> None:  # fmt: skip
    """Describe GRAPH, a name or a file: how fast its nodes agree, and what may run on it."""
    with errors_told():
        from p2pfl.topology import advice, describe

        schedule, drawn = _graph(graph, nodes, given, weights, seed)
        figures = describe(schedule, drawn)
        if picture is not None:
            from p2pfl.reporting import topology_figure

            topology_figure.save(schedule, Path(graph).stem, picture)
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        # nine digits: a large ring's rho would be 1 with fewer
        shown = "-" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.9g}"
        click.echo(f"{name:<26}{shown}")
    click.echo()
    for sentence in advice(figures, schedule):
        click.echo(sentence)
    if picture is not None:
        click.echo(f"picture: {picture}")


def _graph(
    graph: str, nodes: int | None, given: tuple[str, ...], weights: str | None, seed: int
) -> tuple[Schedule, float | None]:
    """The schedule that the command names, and its rate if it is drawn anew in each round."""
    from p2pfl import topology as graphs

    arguments = dict(_argument(text) for text in given)
    if Path(graph).suffix or "/" in graph:
        if arguments:
            raise ConfigError(f"--set {given[0]}: goes with a graph by name; {graph} is a file")
        loaded = graphs.load(Path(graph), seed)
        if nodes not in (None, len(loaded)):
            raise ConfigError(f"--nodes {nodes}: the graph in {graph} has {len(loaded)}; leave --nodes out")
        return graphs.schedule(loaded, weights), None
    if nodes is None and (graph in graphs.GRAPHS or ":" in graph):
        raise ConfigError(f"--nodes: missing; it must be given with a graph by name, as in {graph} --nodes 16")
    count = 1 if nodes is None else nodes
    if ":" in graph:
        from p2pfl.federation import epochs

        sys.path[:0] = [str(Path.cwd())]
        return epochs.plan(graph, count, arguments=arguments, weights=weights, seed=seed, rounds=100), None
    planned = graphs.plan(graph, count, arguments=arguments, weights=weights, seed=seed, rounds=100)
    return planned, graphs.expected_rho(graph, count, arguments=arguments, seed=seed)


def _argument(text: str) -> tuple[str, object]:
    """NAME=VALUE; VALUE is TOML, and what is no TOML is a text."""

    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise ConfigError(f"--set {text!r}: must be written NAME=VALUE, as in k=2")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name.strip(), value.strip()


def _cores_as_devices() -> None:
    """Every core a device of one thread each: nodes are spread over devices, which is worth more than threads in one.

    Before jax starts; a person's own XLA_FLAGS stand.
    """
    cores = len(os.sched_getaffinity(0))
    flags = f"--xla_force_host_platform_device_count={cores} --xla_cpu_multi_thread_eigen=false"
    os.environ.setdefault("XLA_FLAGS", flags)


def _join_hosts(hosts: str | None, kind: str, baselines: bool) -> bool:
    """Let this process be one of several that simulate together; returns whether it is the first."""
    if hosts is None:
        return True

    parts = hosts.split(",")
    if len(parts) != 3 or not all(part.isdigit() for part in parts[1:]) or int(parts[2]) >= int(parts[1]):
        raise ConfigError(
            f"--hosts {hosts!r}: must be ADDRESS:PORT,N,I with I from 0 to N - 1, as in 10.0.0.1:5000,2,0"
        )
    if kind != "simulate" or baselines:
        raise ConfigError("--hosts: for a simulation without baselines; use --driver simulate --set baselines=false")
    import jax

    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))
    return int(parts[2]) == 0


def node_process(arguments: list[str]) -> int:
    """The command in a process that has been forked for a node."""
    main(arguments, prog_name="p2pfl")
    return 0
