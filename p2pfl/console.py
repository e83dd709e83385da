"""What every command does with its console: streams, signals, errors as exit codes, times as a person writes them; and
with a home that can't be written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from p2pfl.errors import ConfigError, Exit, P2PFLError, Stopped, stopping

if TYPE_CHECKING:
    from p2pfl.runs.verdict import RunVerdict


class Commands(click.Group):
    """The commands, each of which ends in good order upon SIGTERM and SIGHUP as upon Ctrl-C, with the code for it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        streams()
        _somewhere()
        try:
            with _signals():
                done = super().invoke(ctx)
            if ctx.invoked_subcommand != "node":  # whose result is not what it says
                _unsaid()
            return done
        except KeyboardInterrupt as error:
            number = stopping(error)
            click.echo(f"ended by {number.name}", err=True)
            sys.exit(Exit(128 + number))


def _somewhere() -> None:
    """Raises Failure in a directory that somebody has removed: nothing that is named relative to it can be."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise Failure("the current directory is gone: cd to one that is there", Exit.MISTAKE) from error


def streams() -> None:
    """Make do with whatever console there is.

    A standard stream that is closed becomes the null device: else the next socket would take its number, and be written
    to by every process that is started. What a console can't show it shows as an escape: no run fails for a dash.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, number)
            os.set_inheritable(number, True)
            if opened != number:
                os.close(opened)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # it was closed when Python started
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)  # the buffer itself with PYTHONUNBUFFERED
        if isinstance(raw, io.FileIO) and raw.fileno() == number:
            lasting, at_once = io.BufferedWriter(_Lasting(number)), stream.line_buffering or stream.write_through
            stream = io.TextIOWrapper(lasting, stream.encoding, line_buffering=at_once)
            setattr(sys, name, stream)
        stream.reconfigure(errors="backslashreplace")


class _Lasting(io.RawIOBase):
    """The file of a standard stream: a reader that has gone, or a full disk, ends nobody who says something there."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.lost: OSError | None = None  # why something could not be written

    def writable(self) -> bool:
        """It is for output."""
        return True

    def fileno(self) -> int:
        """Of the stream."""
        return self._number

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Write what can be written."""
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:  # somebody else has made the terminal so
                select.select([], [self._number], [])
            except OSError as error:
                self.lost = error
                return len(data)


def _unsaid() -> None:
    """End with an error where what a command had to say could not be written; a reader that has gone wants no more."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Lasting) and raw.lost is not None and not isinstance(raw.lost, BrokenPipeError):
        click.echo(f"standard output: can't be written: {raw.lost.strerror}", err=True)
        sys.exit(Exit.FAILED)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Raise `Stopped` upon SIGTERM and SIGHUP; one that somebody has seen to (nohup) stays as it is."""

    def stop(number: int, frame: object) -> NoReturn:
        raise Stopped(number)

    taken = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


class Failure(click.ClickException):
    """Ends the command with a text on standard error and a code of `Exit`."""

    def __init__(self, text: str, code: Exit) -> None:
        super().__init__(text)
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """For click."""
        return self.code


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, or that has no more for this user; Python does not always say of which file."""


@contextlib.contextmanager
def errors_told(where: str = "", disk: Exit = Exit.MISTAKE, leaves: Path | None = None) -> Iterator[None]:
    """Let errors of p2pfl, and of files that can't be written, end the command with their text and no traceback.

    `where`: what the text of an error in the experiment begins with. `disk`: the code for a file that can't be written.
    `leaves`: the directory that the command fills, for a disk that is full.
    """
    try:
        yield
    except ConfigError as error:
        raise Failure(f"{where}{error}", Exit.MISTAKE) from error
    except P2PFLError as error:
        raise Failure(str(error), Exit.FAILED) from error
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        raise Failure(
            f"{error.object!r:.200}: has letters that file names can't have here, in {error.encoding}: "
            "set PYTHONUTF8=1, or LC_ALL=C.UTF-8",
            Exit.MISTAKE,
        ) from error
    except OSError as error:
        if error.filename is None and error.errno not in _NO_ROOM:
            raise
        if error.errno in _NO_ROOM:  # in the middle, as a rule
            named = error.filename or leaves or "a file"
            raise Failure(f"{named}: can't be written: {error.strerror}; make room there", Exit.FAILED) from error
        raise Failure(f"{error.filename}: {error.strerror}", disk) from error


def compiled_programs() -> Path | None:
    """Return the folder of compiled programs, which is made; None where nobody can: then each process compiles anew."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "p2pfl" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, or no home at all
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


@contextlib.contextmanager
def also_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Let somebody else be told the text that a command ends with, too."""
    try:
        yield
    except Failure as error:
        tell(error.message)
        raise


def judge(verdict: RunVerdict, tell: Callable[[str], None] = lambda text: None) -> None:
    """Say why a run is not whole, in one line, and exit with the code for it.

    `tell`: somebody else who is told.
    """
    if verdict.reasons:
        text = f"not whole: {'; '.join(verdict.reasons)}"
        tell(text)
        click.echo(text, err=True)
    if verdict.code:
        sys.exit(verdict.code)


def going_on(out: Path) -> str:
    """The command that resumes a run."""
    return f"p2pfl run --resume {shlex.quote(str(out))}"


@contextlib.contextmanager
def told_how_to_go_on(out: Path) -> Iterator[None]:
    """Say, where a signal ends a run that has begun, how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if (out / "run.json").is_file():
            click.echo(f"to go on: {going_on(out)}", err=True)
        raise


LOG_LEVEL = "P2PFL_LOG_LEVEL"
"""The variable of the environment that is the least level of what is logged, where no option says it."""


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of its log: arguments `log_form` and `log_level`."""
    form = click.option(
        "--log", "log_form", type=click.Choice(["text", "json"]), default="text", show_default=True,
        help="Say what happens as text, or as lines of JSON.",
    )  # fmt: skip
    level = click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True,
        envvar=LOG_LEVEL, help="Say only what is of this level or above it.",
    )  # fmt: skip
    return form(level(command))


class Seconds(click.ParamType):
    """A time as a person writes it: 10s, 1.5min, 2h; seconds where no unit is given."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return it in seconds."""
        read = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|)", str(value).strip())
        if read is None or not float(read[1]) > 0:
            self.fail(f"{value!r} is no time greater than 0; write it as 10s, 1.5min or 2h", param, ctx)
        return float(read[1]) * {"min": 60.0, "h": 3600.0}.get(read[2], 1.0)


class StretchesOrExact(click.ParamType):
    """A number of stretches of time, or "exact"."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number, or "exact"."""
        text = str(value).strip()
        if text != "exact" and not (text.isdecimal() and int(text)):
            self.fail(
                f"{value!r}: give a number of stretches of time, as 20, or exact for every event time", param, ctx
            )
        return text if text == "exact" else int(text)
