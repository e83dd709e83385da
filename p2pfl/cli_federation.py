"""The commands `p2pfl federation ...`: who may take part, and what starts the nodes on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pfl.console import Failure, errors_told
from p2pfl.errors import Exit

if TYPE_CHECKING:
    from p2pfl.runs.clusters.plan import Export as ClusterExport


@click.group()
def federation() -> None:
    """Who may take part in a federation: keys, members, changes that they sign."""


_KEY = click.option(
    "--key", type=click.Path(path_type=Path), required=True, metavar="NAME.key", help="The private key of this site."
)


@federation.command()
@click.argument("name")
@click.option("--address", required=True, metavar="tcp://HOST:PORT", help="As the other sites reach this one.")
@click.option("--reachable/--no-reachable", default=True, help="Whether others can connect to it; else it connects.")
def keygen(name: str, address: str, reachable: bool) -> None:
    """Make the key of this site, NAME.key, and its card for the others, NAME.card.toml."""
    with errors_told():
        from p2pfl.runs import federation as runs

        runs.keygen(name, address, reachable, click.echo)


@federation.command("init")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("card", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--quorum", type=click.Choice(["majority", "two_thirds", "all"]), default="majority", show_default=True,
    help="How many members must sign a change.",
)  # fmt: skip
def federation_init(file: Path, card: tuple[Path, ...], quorum: str) -> None:
    """Write the federation FILE, with the sites of the CARDs as founding members: nodes 0, 1, ... in their order."""
    with errors_told():
        from p2pfl.runs import federation as runs

        runs.init(file, card, quorum, click.echo)


@federation.command()
@click.argument("file", type=click.Path(path_type=Path))
@_KEY
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--experiment", type=click.Path(path_type=Path), help="Of the node file that is to be written.")
@click.option("--node-file", type=click.Path(path_type=Path), metavar="NODE.toml", help="Write this node file, too.")
@click.option("--data", "rows", type=click.Path(path_type=Path), metavar="ROWS", help="This machine's own rows.")
def accept(
    file: Path, key: Path, yes: bool, experiment: Path | None, node_file: Path | None, rows: Path | None
) -> None:
    """Accept the federation in FILE for this site: sign it, and write the site's node file where that is wanted."""
    if (node_file is None) != (experiment is None) or (rows is not None and node_file is None):
        raise click.UsageError("--experiment and --node-file go together, and --data with both")
    with errors_told():
        from p2pfl.runs import federation as runs

        wanted = None
        if node_file is not None and experiment is not None:
            wanted = runs.NodeWanted(experiment, node_file, rows)

        def agreed() -> bool:
            if yes:
                return True
            try:
                said: str = click.prompt("Are these the right members and fingerprints? Type yes", default="no")
            except click.Abort:  # no terminal, or its end
                return False
            return said.strip().lower() == "yes"

        runs.accept(file, key, wanted, agreed, click.echo)


@federation.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("card", type=click.Path(path_type=Path))
@_KEY
def invite(file: Path, card: Path, key: Path) -> None:
    """Sign that the site of CARD becomes a member of the federation in FILE."""
    with errors_told():
        from p2pfl.runs import federation as runs

        runs.invite(file, card, key, click.echo)


@federation.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@_KEY
def revoke(file: Path, name: str, key: Path) -> None:
    """Sign that the member NAME is one no more."""
    with errors_told():
        from p2pfl.runs import federation as runs

        runs.revoke(file, name, key, click.echo)


@federation.command("list")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def federation_list(file: Path, as_json: bool) -> None:
    """Print who the members are, who has accepted, what is pending, and who was revoked."""
    with errors_told():
        from p2pfl.runs import federation as runs
        from p2pfl.trust import store

        there = store.read(file)
    if as_json:
        click.echo(json.dumps(runs.listed(there), indent=1))
    else:
        for line in runs.lines(there):
            click.echo(line)


@federation.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), metavar="NAME.key", help="Check this private key, too.")
def federation_check(file: Path, key: Path | None) -> None:
    """Check every signature, address and rule of the federation FILE, and whether a key is a member's."""
    with errors_told():
        from p2pfl.runs import federation as runs

        wrong = runs.check(file, key, click.echo)
    if wrong:
        raise Failure("\n".join(wrong), Exit.MISTAKE)
    click.echo("All is in order.")


# --- export: files by which a cluster starts the nodes


@federation.group("export")
def clusters() -> None:
    """Write files by which a cluster starts the nodes of a federation: its federation file says which."""


def _exports(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of every export."""
    for option in (
        click.option(
            "--data",
            metavar="PATH",
            help="Where a site's rows lie, with {name} or {node}; as the experiment says, unless given.",
        ),
        click.option(
            "--site", "only", multiple=True, metavar="NAME", help="Only this member; may be given several times."
        ),
        click.option(
            "--experiment", type=click.Path(path_type=Path), help="The experiment; experiment.toml beside FILE."
        ),
        click.option(
            "--out", type=click.Path(path_type=Path), required=True, help="The folder to write; must be new or empty."
        ),
        click.argument("file", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


def _exported(out: Path, made: Callable[[], ClusterExport]) -> None:
    """Write an export, and say what a person does next."""
    with errors_told():
        from p2pfl.runs.clusters import export as clusters

        written = clusters.write(made(), out)
    click.echo(f"{out}: {', '.join(written.files)}")
    click.echo("Next:")
    for step in written.steps:
        click.echo(f"  {step}")


_KEYS = click.option("--keys", metavar="PATH", help="Where the private key of a site lies, with {name} or {node}.")
_CPUS = click.option("--cpus", type=click.IntRange(1), default=1, show_default=True, help="Of a node.")
_MEMORY = click.option("--memory", type=click.IntRange(1), default=2, show_default=True, help="Of a node, GiB.")
_GPUS = click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="Of a node.")


@clusters.command()
@_exports
@_KEYS
@click.option("--folder", metavar="PATH", help="Where the files lie on each site's machine; /etc/p2pfl/FEDERATION.")
@click.option("--user", metavar="NAME", help="As whom the node runs; as a user that systemd makes for it.")
@click.option("--program", metavar="PATH", default="/usr/local/bin/p2pfl", show_default=True, help="p2pfl, there.")
@click.option("--devices", is_flag=True, help="Let the node see devices, such as GPUs.")
def systemd(
    file: Path, out: Path, experiment: Path | None, only: tuple[str, ...], data: str | None, keys: str | None,
    folder: str | None, user: str | None, program: str, devices: bool,
) -> None:  # fmt: skip
    """Write a systemd unit for each site, in a folder to be carried there."""
    from p2pfl.runs.clusters import export as clusters
    from p2pfl.runs.clusters import systemd as units

    _exported(
        out, lambda: units.export(clusters.planned(file, experiment, only, data), keys, folder, user, program, devices)
    )


@clusters.command()
@_exports
@_KEYS
@click.option("--program", metavar="PATH", default="p2pfl", show_default=True, help="p2pfl, as the hosts find it.")
@click.option("--time", default="24:00:00", show_default=True, help="Limit of a task, as Slurm writes it.")
@click.option("--partition", metavar="NAME", help="Of the cluster; its default one unless given.")
@_CPUS
@_MEMORY
@_GPUS
def slurm(
    file: Path, out: Path, experiment: Path | None, only: tuple[str, ...], data: str | None, keys: str | None,
    program: str, time: str, partition: str | None, cpus: int, memory: int, gpus: int,
) -> None:  # fmt: skip
    """Write an array job of Slurm, a task for each site; DIR must be one that all hosts see."""
    from p2pfl.runs.clusters import export as clusters
    from p2pfl.runs.clusters import slurm as jobs

    def made() -> ClusterExport:
        plan = clusters.planned(file, experiment, only, data)
        return jobs.export(plan, out, keys, program, time, partition, cpus, memory, gpus)

    _exported(out, made)


@clusters.command()
@_exports
@click.option("--image", required=True, metavar="NAME", help="Of the node; made from image/Containerfile, in DIR.")
@click.option("--namespace", default="default", show_default=True, help="In which it runs; a part of the pods' names.")
@click.option("--secret", metavar="NAME", help="The Secret with the private keys; FEDERATION-keys.")
@click.option("--storage", type=click.IntRange(1), default=5, show_default=True, help="Of what a node keeps, GiB.")
@_CPUS
@_MEMORY
@_GPUS
def kubernetes(
    file: Path, out: Path, experiment: Path | None, only: tuple[str, ...], data: str | None, image: str,
    namespace: str, secret: str | None, storage: int, cpus: int, memory: int, gpus: int,
) -> None:  # fmt: skip
    """Write a StatefulSet with a pod for each site, and all that it needs but the keys."""
    from p2pfl.runs.clusters import export as clusters
    from p2pfl.runs.clusters import kubernetes as pods

    def made() -> ClusterExport:
        plan = clusters.planned(file, experiment, only, data)
        return pods.export(plan, image, namespace, secret, cpus, memory, gpus, storage)

    _exported(out, made)


@clusters.command()
@_exports
@_KEYS
@click.option("--image", metavar="NAME", help="Of the node; made from image/Containerfile, in DIR, unless given.")
@_CPUS
@_MEMORY
def compose(
    file: Path, out: Path, experiment: Path | None, only: tuple[str, ...], data: str | None, keys: str | None,
    image: str | None, cpus: int, memory: int,
) -> None:  # fmt: skip
    """Write a compose file with a service for each site."""
    from p2pfl.runs.clusters import compose as services
    from p2pfl.runs.clusters import export as clusters

    _exported(out, lambda: services.export(clusters.planned(file, experiment, only, data), keys, image, cpus, memory))
