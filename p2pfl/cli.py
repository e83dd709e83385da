"""The command line: `p2pfl run`, `p2pfl node`, `p2pfl report`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
from rich.console import Console


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pfl-jax")
def main() -> None:
    """Decentralised peer-to-peer federated training in JAX: no server, no single point of failure."""
    # every node process compiles the same small programs: whoever comes second finds them here
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "p2pfl" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a field; VALUE is read as TOML.")
@click.option("--out", type=click.Path(path_type=Path), help="The run directory; must be new or empty.")
@click.option("--driver", type=click.Choice(["live", "simulate"]), help="Short for --set driver.kind=...")
@click.option("--json", "as_json", is_flag=True, help="Print the summary alone, as JSON.")
def run(file: Path, overrides: tuple[str, ...], out: Path | None, driver: str | None, as_json: bool) -> None:
    """Run the experiment in FILE: all its nodes on this machine, and its baselines."""
    # jax and the rest take a second to import: not for --help, nor for a mistake in the file
    from p2pfl import experiment, view

    overrides = (*overrides, *([f'driver.kind="{driver}"'] if driver else []))
    console = Console(highlight=False)
    with _errors():
        wanted = experiment.load(file, overrides, find=True)
        sys.path[:0] = [str(Path.cwd()), str(file.resolve().parent)]
        from p2pfl import run as running

        out = out or running.default_out(wanted.name)
        running.fresh(out)
    with _errors(f"{file}: "), view.make(console, quiet=as_json) as shown:
        table = running.run(wanted, out, shown)
    if as_json:
        click.echo(json.dumps(table, indent=1))
    else:
        console.print(view.results_table(table))
        if table["lost"]:
            console.print(f"lost: node {', '.join(map(str, table['lost']))}")
        console.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)
    if table.get("interrupted"):
        sys.exit(130)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Directory of this node's records.")
@click.option("--hold", is_flag=True, help="When all is compiled, wait for a line on standard input.")
def node(file: Path, out: Path | None, hold: bool) -> None:
    """Run one node of a federation, as FILE describes it."""
    with _errors():
        from p2pfl import node as one

        error = one.run(file, out, hold, lambda text: click.echo(text))
    if error:
        raise click.ClickException(error)


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(run: Path) -> None:
    """Write report.html of the run directory RUN anew."""
    from p2pfl import report as reporting

    with _errors():
        click.echo(reporting.write(run))


class _errors:
    """Errors of p2pfl, and of files that can't be written, end the command with their text and no traceback."""

    def __init__(self, where: str = "") -> None:
        self.where = where  # what the text of an error in the experiment begins with

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from p2pfl.errors import ConfigError, P2PFLError

        if isinstance(error, P2PFLError):
            where = self.where if isinstance(error, ConfigError) else ""
            raise click.ClickException(f"{where}{error}") from error
        if isinstance(error, OSError) and error.filename is not None:
            raise click.ClickException(f"{error.filename}: {error.strerror}") from error


def node_process(arguments: list[str]) -> int:
    """The command in a process that has been forked for a node."""
    main(arguments, prog_name="p2pfl")
    return 0
