"""A process that has imported what nodes need and forks one for each request: starting eight nodes costs one import.

Started as `python -m p2pfl.drivers.live.forkserver FD MODULE:FUNCTION [MODULE ...]`. Requests come over the socket FD,
one JSON
object a packet: {"arguments": [...]}, with two file descriptors, the node's standard input and its log. A child calls
FUNCTION(arguments). Answers: {"pid": p} for each request, {"pid": p, "status": s} when a child has ended. No pickle.
When the socket closes, the children end too.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable

import setproctitle

MESSAGE = 1 << 16
"""Bytes of a request at most."""


def main(arguments: list[str]) -> None:
    """Serve until the other end closes."""
    link = socket.socket(fileno=int(arguments[0]))
    module, _, name = arguments[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    for preload in arguments[2:]:
        importlib.import_module(preload)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is for the launcher, which ends the nodes
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    children: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is link:
                    request, files = _request(link)
                    if not request:
                        _end(children)
                        return
                    pid = _fork(json.loads(request)["arguments"], files, function, link)
                    children.add(pid)
                    link.send(json.dumps({"pid": pid}).encode())
                else:
                    os.read(wake_read, 4096)
            for pid, status in _ended(children):
                link.send(json.dumps({"pid": pid, "status": status}).encode())


def _request(link: socket.socket) -> tuple[bytes, list[int]]:
    """The next request; an empty one when the other end has closed, in whatever manner."""
    try:
        request, files, _, _ = socket.recv_fds(link, MESSAGE, 2)
    except ConnectionResetError:
        return b"", []
    return request, files


def _fork(arguments: list[str], files: list[int], function: Callable[[list[str]], int], link: socket.socket) -> int:
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        return pid
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        link.close()
        os.setpgid(0, 0)
        os.dup2(files[0], 0)
        os.dup2(files[1], 1)
        os.dup2(files[1], 2)
        for file in files:
            os.close(file)
        setproctitle.setproctitle("p2pfl " + " ".join(arguments))
        code = function(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(children: set[int]) -> list[tuple[int, int]]:
    found = []
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            children.discard(pid)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _end(children: set[int]) -> None:
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
