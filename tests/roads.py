"""Roads between nodes of a test: connections that are forwarded late, by fits and starts, and cut in mid-message.

What `tc netem` does to packets is done to connections here, without a privilege. A packet that is lost costs a
connection time (`stall`), since TCP sends it again; what TCP can't hide is a connection that ends (`cut`). What is
drawn comes from a seed; when it falls due is up to the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

_READ = 1 << 16
"""Bytes that are read at once ..."""

_AHEAD = 64
"""... and how many of these may be on the way in one direction; then nothing is read."""

_CONNECTIONS = 256
"""At a time, on one road."""

_LONGEST = 600.0
"""Seconds after which all roads are closed, whatever becomes of the test."""

_RESET = struct.pack("ii", 1, 0)
"""A socket that lingers for no time ends its connection with a reset: what was on the way is lost."""


def never(draw: random.Random) -> float:
    """A connection is never cut."""
    return math.inf


class Weather(NamedTuple):
    """What a road does to each direction of each connection. Seconds and bytes."""

    latency: float = 0.0
    jitter: float = 0.0  # up to so much more; what is behind it waits, too
    bandwidth: float = math.inf  # bytes a second
    stall: float = 0.0  # share of what is read at once that waits for ...
    stalls: float = 0.3  # ... so much more
    cut: Callable[[random.Random], float] = never  # given a source of draws, after how many bytes it ends


class Road:
    """The way to one port. `cut` counts the connections that were, `carried` the bytes."""

    def __init__(self, entry: tuple[str, int], to: tuple[str, int], weather: Weather, seed: int) -> None:
        self.entry, self.to, self.weather, self.seed = entry, to, weather, seed
        self.connections = self.cut = self.carried = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self) -> None:
        """Forward whoever calls, until this is cancelled."""
        async with await asyncio.start_server(self._called, *self.entry) as server:
            await server.serve_forever()

    def end(self) -> None:
        """Cut all connections."""
        for each in [*self._open]:
            _reset(each)

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        if len(self._open) >= 2 * _CONNECTIONS:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.to)
        except OSError:  # nobody listens there yet; the caller tries again
            _reset(writer)
            return
        self._open |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as group:
                for source, to, way in ((reader, far_writer, "there"), (far_reader, writer, "back")):
                    on_the_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_AHEAD)
                    draw = random.Random(f"{self.seed} {self.entry[1]} {number} {way}")
                    group.create_task(self._take(source, on_the_way, draw))
                    group.create_task(self._give(to, on_the_way))
        except* OSError:
            _reset(writer)
            _reset(far_writer)
        finally:
            self._open -= {writer, far_writer}
            writer.close()
            far_writer.close()

    async def _take(
        self, reader: asyncio.StreamReader, on_the_way: asyncio.Queue[tuple[float, bytes | None]], draw: random.Random
    ) -> None:
        """Read, and say when it is to be there; None: then the connection is cut."""
        weather, due, left = self.weather, 0.0, self.weather.cut(draw)
        while left > 0:
            data = await reader.read(_READ)
            part = data[: max(1, int(min(left, _READ)))]
            left -= len(part)
            late = weather.latency + weather.jitter * draw.random() + weather.stalls * (draw.random() < weather.stall)
            due = max(asyncio.get_running_loop().time() + late, due) + len(part) / weather.bandwidth
            await on_the_way.put((due, part))
            if not data:
                return
        await on_the_way.put((due, None))

    async def _give(self, writer: asyncio.StreamWriter, on_the_way: asyncio.Queue[tuple[float, bytes | None]]) -> None:
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if data is None:
                self.cut += 1
                raise ConnectionResetError
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            self.carried += len(data)


class Roads:
    """Roads of one test, in a thread of their own; as a context, they end with it."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.all: list[Road] = []
        self._loop = asyncio.new_event_loop()
        self._serving: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._run, name="roads", daemon=True)
        self._thread.start()

    def __enter__(self) -> Roads:
        return self

    def __exit__(self, *given: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def open(self, entry: tuple[str, int], to: tuple[str, int], weather: Weather = Weather()) -> Road:  # noqa: B008
        """Open a road from one port to another."""
        road = Road(entry, to, weather, self.seed)
        self.all.append(road)
        self._loop.call_soon_threadsafe(lambda: self._serving.append(self._loop.create_task(road.serve())))
        return road

    @property
    def cut(self) -> int:
        """Connections that were cut."""
        return sum(road.cut for road in self.all)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_later(_LONGEST, self._loop.stop)
        self._loop.run_forever()
        for road in self.all:
            road.end()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
