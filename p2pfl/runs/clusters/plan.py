"""What is exported: the sites of a federation that are started here, their node files, and what lies beside them.

A private key is only ever named: where it lies on the machine that starts the node, or where it is mounted there.
"""

from __future__ import annotations

import importlib.resources
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jinja2
import tomli_w

from p2pfl.config import experiment as config
from p2pfl.config import toml
from p2pfl.drivers.live import addresses
from p2pfl.errors import ConfigError, nearest
from p2pfl.trust.sites import Site

LEAVE = 30
"""Seconds that a node is given to leave, before it is killed: it takes up to 8, and the checkpoint of a large model."""

_MODULE = re.compile(r"([A-Za-z_]\w*):[A-Za-z_]\w*")
_UNFIT = re.compile(r"""[\s"'\\%$`;:]""")


class ClusterSite(NamedTuple):
    """A member of the federation whose node is started."""

    name: str  # as the federation file has it
    node: int
    address: str  # tcp://HOST:PORT
    reachable: bool
    label: str  # its name in lower case letters, digits and dashes, no other site's

    @property
    def host(self) -> str:
        """The host of its address."""
        return addresses.parsed(self.address).host

    @property
    def numeric(self) -> bool:
        """Its host is a number."""
        return addresses.parsed(self.address).numeric

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports at which it is called: of the models, and of the membership."""
        port = addresses.parsed(self.address).port
        return (port, port + 1)

    def filled(self, pattern: str) -> str:
        """Put its name and number into a pattern: {name}, {node}."""
        return pattern.replace("{name}", self.name).replace("{node}", str(self.node))


class ClusterPlan(NamedTuple):
    """All that an export is made of."""

    name: str  # of the federation
    label: str  # the same in lower case letters, digits and dashes
    sites: tuple[ClusterSite, ...]  # by number
    elsewhere: tuple[str, ...]  # members that are started somewhere else
    federation: str  # the text of its file
    files: Mapping[str, str]  # what lies beside each node file: the experiment and what it names
    data: str | None  # where the rows of a site lie: {name} and {node} stand for the site's

    @property
    def federation_file(self) -> str:
        """The name of the federation file."""
        return f"{self.label}.toml"

    def rows(self, site: ClusterSite) -> str | None:
        """Where the rows of a site lie."""
        return None if self.data is None else site.filled(self.data)

    def node_file(self, site: ClusterSite, key: str, state: str, rows: str | None) -> str:
        """The node file of a site, with the path of its key, of its own folder and of its rows where it runs.

        The federation file lies in that folder: the node writes into it what the members change.
        """
        federation = f"{state}/{self.federation_file}"
        table: dict[str, Any] = {"experiment": "experiment.toml", "federation": federation, "key": key}
        table |= {} if rows is None else {"data": {"path": rows}}
        return f"# The node of {site.name}, number {site.node} of {self.name}.\n{tomli_w.dumps(table)}"


class Export(NamedTuple):
    """What a cluster is given."""

    files: Mapping[str, str]  # path in the folder -> text
    steps: Sequence[str]  # what a person does next
    programs: Sequence[str] = ()  # of the files, those that are run


def plan(
    name: str, members: Sequence[Site], federation: str, experiment: Path, only: Sequence[str], data: str | None
) -> ClusterPlan:
    """Plan an export.

    Args:
        name: of the federation.
        members: all of it.
        federation: the text of its file.
        experiment: the experiment's file.
        only: names of the members that are started here; all unless given.
        data: where a site's rows lie, with {name} or {node}; the experiment says it, unless given.

    Returns:
        The plan.

    Raises:
        ConfigError: there is no such member, or a file can't be taken along; with the way out.
    """
    known = {member.name: member for member in members}
    for each in only:
        if each not in known:
            raise ConfigError(f"--site {each}: no such member; {nearest(each, known)}")
    chosen = sorted((known[each] for each in dict.fromkeys(only)) if only else members, key=lambda each: each.node)
    if not chosen:
        raise ConfigError(f"the federation {name!r} has no members; nothing can be started")
    if data is not None and len(chosen) > 1 and "{name}" not in data and "{node}" not in data:
        raise ConfigError(f"--data {data}: is the same for all sites; write {{name}} or {{node}} where they differ")
    labels = [label(member.name) for member in chosen]
    sites = tuple(
        ClusterSite(
            member.name, member.node, member.address, member.reachable,
            own if own and labels.count(own) == 1 else f"{own or 'site'}-{member.node}",
        )
        for member, own in zip(chosen, labels, strict=True)
    )  # fmt: skip
    own = label(name) or "federation"
    own = own if own[0].isalpha() else f"f-{own}"  # as names of services must be
    beside = taken_along(experiment, data is not None)
    if f"{own}.toml" in beside:
        raise ConfigError(
            f"the federation is named {name!r}, as the file of the experiment is; nothing can tell them apart"
        )
    elsewhere = tuple(member.name for member in members if member not in chosen)
    return ClusterPlan(name, own, sites, elsewhere, federation, beside, data)


def label(name: str) -> str:
    """Return a name in lower case letters, digits and single dashes, 40 at most.

    >>> label("Universitätsklinik_Köln.1")
    'universitatsklinik-koln-1'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")


def taken_along(file: Path, own_rows: bool) -> dict[str, str]:
    """Return the experiment file and the texts beside it that it names, by their path from it; no rows.

    own_rows: every site brings its own, so that those of the experiment are read by nobody.
    """
    config.load(file)  # it must be one
    table = toml.read(file)
    result = {"experiment.toml": file.read_text("utf-8-sig")}
    for field, name in _named(table):
        source = toml.located(name, file.parent)
        if field == "data.path":
            if not own_rows and not Path(name).is_absolute():
                raise ConfigError(
                    f"{file}: {field}={name!r}: rows are not taken along; say where they lie at each site with "
                    "--data, as in --data '/srv/rows/{name}.csv', or write the full path"
                )
        elif not Path(name).is_absolute():
            if ".." in PurePosixPath(name).parts:
                raise ConfigError(f"{file}: {field}={name!r}: can't be taken along; put it beside the experiment")
            result[name] = _text(source, file, field, name)
    for module in sorted(_modules(table)):
        source = file.parent / f"{module}.py"
        if source.is_file():
            result[source.name] = _text(source, file, "a module", source.name)
    return result


def _named(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that an experiment names: (field, name)."""
    data, topology, churn = table.get("data"), table.get("topology"), table.get("churn")
    for found, key, field in (
        (data, "path", "data.path"), (data, "dictionary", "data.dictionary"), (topology, "file", "topology.file"),
        *((each, "path", f"churn[{i}].path") for i, each in enumerate(churn if isinstance(churn, list) else ())),
    ):  # fmt: skip
        if isinstance(found, dict) and isinstance(found.get(key), str):
            yield field, found[key]
    layout = data.get("layout") if isinstance(data, dict) else None
    if isinstance(layout, str) and layout.endswith(".toml"):
        yield "data.layout", layout


def _modules(value: object) -> set[str]:
    """The modules of "module:function", wherever they stand."""
    if isinstance(value, str):
        match = _MODULE.fullmatch(value)
        return {match[1]} if match else set()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_modules, inner))


def _text(source: Path, file: Path, field: str, name: str) -> str:
    try:
        return source.read_text("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(toml.not_found(file, field, name, str(source))) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: {field}={name!r}: is no text, and can't be taken along; write its full path"
        ) from error


def plain_path(option: str, path: str) -> str:
    """Return a full path that no unit file and no shell reads as anything else. Raises ConfigError."""
    if not path.startswith("/"):
        raise ConfigError(f"{option} {path}: must be a full path, as it is on the machine that starts the node")
    if found := _UNFIT.search(path):
        raise ConfigError(f"{option} {path}: can't hold {found[0]!r} in such a file; give another path, such as a link")
    return path


def pattern(option: str, path: str, sites: Sequence[ClusterSite]) -> str:
    """Return a pattern of private keys. Raises ConfigError where all sites would have one."""
    if len(sites) > 1 and "{name}" not in path and "{node}" not in path:
        raise ConfigError(f"{option} {path}: is the same for all sites; write {{name}} or {{node}} where they differ")
    return path


def no_loopback(sites: Sequence[ClusterSite], what: str) -> None:
    """Raise ConfigError where an address leads nowhere but to the container itself."""
    for site in sites:
        if addresses.parsed(site.address).loopback:
            raise ConfigError(
                f"the address of {site.name} is {site.address}: in {what} that is the container itself; its address "
                "in the federation must be one by which the others reach it"
            )


def rendered(template: str, **values: object) -> str:
    """Return a template of this folder with these values."""
    text = (importlib.resources.files("p2pfl.runs.clusters") / f"{template}.jinja").read_text("utf-8")
    made = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    return made.from_string(text).render(values)
