"""A process that has imported what nodes need and forks one for each request: starting eight nodes costs one import.

Started as `python -m p2pfl.drivers.live.forkserver PARENT FD MODULE:FUNCTION [MODULE ...]`, by the process PARENT.
Requests come over the socket FD, one JSON object a packet: {"arguments": [...]}, with two file descriptors, the node's
standard input and its log. A child calls FUNCTION(arguments); what it fails with stands in its log. Answers: {"pid": p}
for each request, with a pidfd, and {"pid": p, "status": s} when a child has ended. No pickle.

When the other end of the socket closes, in whatever manner, the children end: by themselves, since their standard input
closes at the same time, or killed. When this process is killed, they go on: they belong to whoever holds the other end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable

import setproctitle

from p2pfl.drivers.live import clock
from p2pfl.drivers.live.lifeline import GRACE, die_with_parent, outlive_parent
from p2pfl.errors import Exit

MESSAGE = 1 << 16
"""Bytes of a request at most."""

_CHILDREN = GRACE - 1
"""Seconds that the children may take to end when the other end has closed, before they are killed."""


def main(arguments: list[str]) -> None:
    """Serve until the other end closes."""
    die_with_parent(int(arguments.pop(0)))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for whoever holds the other end, which ends the nodes
    link = socket.socket(fileno=int(arguments[0]))
    module, _, name = arguments[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    for preload in arguments[2:]:
        importlib.import_module(preload)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    outlive_parent()
    children: set[int] = set()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it closed in the middle of an answer
        _serve(link, wake_read, function, children)
    gc.freeze()  # nothing is to be looked through at the end: whoever waits for it would wait half a second longer
    _end(children, wake_read)


def _serve(link: socket.socket, wake: int, function: Callable[[list[str]], int], children: set[int]) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is link:
                    request, files, _, _ = socket.recv_fds(link, MESSAGE, 2)
                    if not request:
                        return
                    pid = _fork(json.loads(request)["arguments"], files, function, link)
                    children.add(pid)
                    process = os.pidfd_open(pid)
                    socket.send_fds(link, [json.dumps({"pid": pid}).encode()], [process])
                    os.close(process)
                else:
                    os.read(wake, 4096)
            for pid, status in _ended(children):
                link.send(json.dumps({"pid": pid, "status": status}).encode())


def _fork(arguments: list[str], files: list[int], function: Callable[[list[str]], int], link: socket.socket) -> int:
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        return pid
    code: int | None = None
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        link.close()
        os.setpgid(0, 0)
        os.dup2(files[0], 0)
        os.dup2(files[1], 1)
        os.dup2(files[1], 2)
        for file in files:
            os.close(file)
        for stream in (sys.stdout, sys.stderr):  # whatever the console of whoever has started this: a log is UTF-8
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        setproctitle.setproctitle("p2pfl " + " ".join(arguments))
        code = function(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else Exit.MISTAKE
    finally:
        if code is None:  # nothing may come back from here: it would go on as the parent does
            traceback.print_exception(*sys.exc_info())
            code = Exit.FAILED
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(children: set[int]) -> list[tuple[int, int]]:
    result = []
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.discard(pid)
            result.append((pid, os.waitstatus_to_exitcode(status)))
    return result


def _end(children: set[int], wake: int) -> None:
    """Let the children end by themselves, as their standard input has closed; kill those that do not, or are frozen."""
    limit = clock.now() + _CHILDREN
    with selectors.DefaultSelector() as selector:
        selector.register(wake, selectors.EVENT_READ)
        while children and (left := limit - clock.now()) > 0:
            if selector.select(left):
                os.read(wake, 4096)
            _ended(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
