"""run.json of a run directory: with what a run has begun, and where its processes took it up."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from p2pfl.data.stored import Stored
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import Federation

_FILE = "run.json"


class Beginning(NamedTuple):
    """A process of a run begins its rounds."""

    after: int  # this round; 0: at the beginning
    reached: int  # the last that an earlier process had recorded; 0: there was none
    more: tuple[str, ...] = ()  # what else a person should know


class Origin(NamedTuple):
    """The content of run.json."""

    experiment: str  # digest of what must not change in experiment.toml
    rows: str  # digest of the data
    rounds: int  # of the experiment
    folder: str = ""  # where modules lie that the experiment names; "": nowhere but in the current directory
    starts: tuple[Beginning, ...] = ()

    @property
    def resumed(self) -> tuple[int, ...]:
        """The round after which the run went on, for each time that it was resumed."""
        return tuple(start.after for start in self.starts[1:])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of that."""
        return tuple(note(start) for start in self.starts[1:])

    def write(self, run: Path) -> None:
        """Write run.json, whole or not at all."""
        table = {**self._asdict(), "starts": [start._asdict() for start in self.starts]}
        partial = run / "run.partial"
        partial.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
        partial.replace(run / _FILE)


def note(start: Beginning) -> str:
    """Say where a run goes on, for a person."""
    after, last, more = start
    which = f"rounds {after + 1} to {last} are" if last > after + 1 else f"round {last} is"
    again = f"; {which} trained again" if last > after else ""
    return "; ".join([(f"resumed: goes on after round {after}" if after else "resumed: begins again") + again, *more])


def read(run: Path) -> Origin | None:
    """Read run.json; None where there is none. Raises ConfigError where it is garbled."""
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text("utf-8"))
        starts = tuple(
            Beginning(int(each["after"]), int(each["reached"]), tuple(map(str, each["more"])))
            for each in table["starts"]
        )
        known = str(table["experiment"]), str(table["rows"]), int(table["rounds"]), str(table["folder"])
        return Origin(*known, starts)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is garbled ({error}); run the experiment anew with --out DIR") from error


def begins(run: Path, after: int, reached: int, more: Sequence[str] = ()) -> Beginning | None:
    """Note that a process begins its rounds after this one; returns what is noted, None of the first process.

    `reached`: the last round that was recorded before; `more`: see Beginning. Without run.json nothing happens.
    """
    origin = read(run)
    if origin is None:
        return None
    start = Beginning(after, reached, tuple(more))
    origin._replace(starts=(*origin.starts, start)).write(run)
    return start if origin.starts else None


def text_digest(text: str) -> str:
    """Digest of a text, 32 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def rows_digest(federation: Federation) -> str:
    """Digest of the rows of a federation and of whose they are, 32 hex digits."""
    h, data = hashlib.blake2b(digest_size=16), federation.dataset
    arrays = [data.train.x, data.train.y, data.test.x, data.test.y]
    arrays += [*federation.partition.train, *federation.partition.test]
    for array in arrays:
        if isinstance(array, Stored):
            h.update(array.digest())
            continue
        whole = np.ascontiguousarray(array)
        h.update(f"{whole.dtype} {whole.shape} ".encode())
        h.update(whole.reshape(-1).view(np.uint8).data)
    return h.hexdigest()


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run directory for this process for as long as it works in it. Raises ConfigError where another does.

    The kernel lets go of it when the process ends, however it ends.
    """
    file = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{run}: is still going on, in another process; wait for its end, or stop it with Ctrl-C"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(file)
