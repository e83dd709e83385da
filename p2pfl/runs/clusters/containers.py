"""What Kubernetes and compose have in common: the image, and YAML that a person can read."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import yaml

from p2pfl.runs.clusters.plan import rendered

USER = 1000
"""The number of the user in the image."""
CONFIG, STATE, KEY = "/etc/p2pfl", "/var/lib/p2pfl", "/run/secrets/p2pfl/key"
"""Where a container has the node files, what it trains, and its private key."""


class Octal(int):
    """A mode of a file, written as such."""


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, lists below their names, modes in octal, and everything where it belongs."""

    def ignore_aliases(self, data: object) -> bool:
        """Write what stands in two places twice."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists, too."""
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(Octal, lambda dumper, mode: dumper.represent_scalar("tag:yaml.org,2002:int", f"0{mode:o}"))


def documents(head: str, *tables: dict[str, Any]) -> str:
    """Return YAML with a comment at its head."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines())
    made = (yaml.dump(table, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True) for table in tables)
    return comment + "---\n".join(["", *made] if len(tables) > 1 else made)


def containerfile() -> dict[str, str]:
    """Return the files that an image is made from: in a folder of their own, so that no key is ever near them."""
    version = metadata.version("p2pfl-jax")
    return {"image/Containerfile": rendered("Containerfile", version=version, user=USER)}
