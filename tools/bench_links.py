"""Speed of a link between two nodes, sealed and in the clear, beside bare pairs of ZeroMQ in the same run."""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

MODEL = 44_000_000
"""Bytes of a model."""

_FEDERATION = "links"


def _pair() -> Any:
    """The keyrings of two nodes."""
    from p2pfl.trust import keyring
    from p2pfl.trust.keys import PrivateKey

    private = [PrivateKey(bytes([node]) * 32) for node in (0, 1)]
    public = {node: each.public for node, each in enumerate(private)}
    return [keyring.of(private[node], node, public, {0: "a", 1: "b"}, "f") for node in (0, 1)]


def _transport(port: int, node: int, sealed: bool) -> Any:
    from p2pfl.drivers.live.transport import Transport
    from p2pfl.protocol.codec import Schema

    keys = _pair()[node] if sealed else None
    schemas = [Schema("", (MODEL,))]
    return Transport(f"tcp://127.0.0.1:{port}", node, 2, _FEDERATION, schemas, keyring=keys)


def _sends(ports: tuple[int, int], sealed: bool, count: int, pipe: Any) -> None:
    """A node that sends models as fast as they are taken."""
    from p2pfl.drivers.live.transport import Letter

    model = np.zeros(MODEL, np.uint8)
    with contextlib.ExitStack() as opened:
        here = _transport(ports[1], 1, sealed)
        opened.callback(here.close, 0.0)
        here.know(0, f"tcp://127.0.0.1:{ports[0]}")
        while not pipe.poll():  # until the first has come
            here.send(0, Letter((b"hello",), 5))
            _turn(here)
        for _ in range(count):
            while not here.send(0, Letter((b"model", model), MODEL + 5, "Offer", (1, 1))):
                _turn(here)
            while here._parcels_out.waiting:
                _turn(here)
        pipe.send(True)
        pipe.recv()


def _turn(here: Any) -> int:
    select.select([here.fileno()], [], [], 0.001)
    models = sum(len(message.frames) > 1 for message in here.receive())
    here.step()
    here.progress(models)  # as in rounds that take one each: what comes without any is bounded
    return models


def _bare_sends(port: int, sealed: bool, count: int, pipe: Any) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as here:
        if sealed:
            here.curve_publickey, here.curve_secretkey = zmq.curve_keypair()
            here.curve_serverkey = pipe.recv()
        here.connect(f"tcp://127.0.0.1:{port}")
        model = np.zeros(MODEL, np.uint8)
        here.send(b"hello")
        pipe.recv()
        for _ in range(count):
            here.send(model, copy=False)
        pipe.recv()


def _child(target: Callable[..., None], *given: Any) -> tuple[Any, Any]:
    apart = multiprocessing.get_context("spawn")
    mine, its = apart.Pipe()
    process = apart.Process(target=target, args=(*given, its), daemon=True)
    process.start()
    its.close()
    return process, mine


def ours(sealed: bool, count: int) -> float:
    """MB/s of models from one node to another."""
    from p2pfl.drivers.live.ports import reserved

    with reserved(2) as (first, second):
        pass
    with contextlib.ExitStack() as opened:
        here = _transport(first, 0, sealed)
        opened.callback(here.close, 0.0)
        here.know(1, f"tcp://127.0.0.1:{second}")
        process, pipe = _child(_sends, (first, second), sealed, count)
        while not any(True for _ in here.receive()):
            here.step()
        began, come = time.perf_counter(), 0
        pipe.send(True)
        while come < count:
            come += _turn(here)
        seconds = time.perf_counter() - began
        while not pipe.poll():
            _turn(here)
        pipe.send(True)
        process.join()
    return count * MODEL / seconds / 1e6


def bare(sealed: bool, count: int) -> float:
    """MB/s of the same from one socket of ZeroMQ to another."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as here:
        public = b""
        if sealed:
            here.curve_server = 1
            public, here.curve_secretkey = zmq.curve_keypair()
            here.curve_publickey = public
        port = here.bind_to_random_port("tcp://127.0.0.1")
        process, pipe = _child(_bare_sends, port, sealed, count)
        if sealed:
            pipe.send(public)
        here.recv_multipart()
        began = time.perf_counter()
        pipe.send(True)
        for _ in range(count):
            here.recv_multipart(copy=False)
        seconds = time.perf_counter() - began
        pipe.send(True)
        process.join()
    return count * MODEL / seconds / 1e6


def measure(repeats: int, count: int) -> dict[str, Any]:
    """Figures of a link: medians, and the ratios that matter."""
    runs = [(ours(True, count), ours(False, count), bare(True, count), bare(False, count)) for _ in range(repeats)]
    names = ("sealed", "in_the_clear", "bare_curve", "bare")
    rates = {f"mb_per_second_{name}": [run[i] for run in runs] for i, name in enumerate(names)}
    return {
        "sealed_to_bare_curve": statistics.median(run[0] / run[2] for run in runs),
        "sealed_to_bare_curve_min": min(run[0] / run[2] for run in runs),
        "sealed_to_bare_curve_max": max(run[0] / run[2] for run in runs),
        "in_the_clear_to_bare": statistics.median(run[1] / run[3] for run in runs),
        **{name: statistics.median(each) for name, each in rates.items()},
    }
