"""A lean client: it keeps what comes with its time of arrival, and reads it only when the measurement is over.

The servers compute on the same cores, so nothing is parsed while they do. One connection per request, as HTTP/1.1 with
`Connection: close`.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TIMEOUT_SECONDS = 300.0


class BenchError(Exception):
    """What keeps the benchmark from a result; the message says the remedy."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked."""

    port: int
    model: str


@dataclass(frozen=True, slots=True)
class Stream:
    """A finished stream. All times are in seconds on one clock; `event_times` are those of events that brought text."""

    sent_at: float
    event_times: list[float]
    text: str
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: str | None

    @property
    def first_at(self) -> float:
        return self.event_times[0]

    @property
    def last_at(self) -> float:
        return self.event_times[-1]

    def tokens_until(self, when: float) -> float:
        """Returns the tokens that had come by then, between two events in proportion to time, so that no edge of a window
        counts for one stream and not for another."""
        times = self.event_times
        index = bisect_right(times, when)
        if index == 0 or len(times) < 2:
            return 0.0
        events = float(index)
        if index < len(times):
            events += (when - times[index - 1]) / (times[index] - times[index - 1])
        # An event may bring several tokens: of a split character, or of a guess that was right.
        return events * self.num_tokens / len(times)


class Request(asyncio.Protocol):
    """A request on its way."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._pieces: list[tuple[float, bytes]] = []
        self._seen_events = 0
        self._wanted_events: list[tuple[int, asyncio.Event]] = []
        self._ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.sent_at = time.perf_counter()
        transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))
        if self._wanted_events:
            self._seen_events += data.count(b"data: ")
            for number, event in self._wanted_events:
                if self._seen_events >= number:
                    event.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio gives it)
        self._ended.set()
        for _, event in self._wanted_events:
            event.set()

    async def events(self, number: int) -> None:
        """Returns when that many events have come, or the stream has ended. To be called before the first comes."""
        event = asyncio.Event()
        self._wanted_events.append((number, event))
        await asyncio.wait_for(event.wait(), TIMEOUT_SECONDS)

    def drop(self) -> None:
        """Leaves, as a client that is not interested any more."""
        if self._transport is not None:
            self._transport.abort()

    async def result(self) -> Stream:
        """Returns the stream after its end.

        Raises:
            BenchError: it was refused, failed, or did not end in time.
        """
        try:
            await asyncio.wait_for(self._ended.wait(), TIMEOUT_SECONDS)
        except TimeoutError:
            raise BenchError(f"a stream did not end within {TIMEOUT_SECONDS:.0f} s; look at the server's log.") from None
        finally:
            self.drop()
        return _read(self.sent_at, self._pieces)


async def send(endpoint: Endpoint, body: dict[str, Any]) -> Request:
    """Starts a streamed completion."""
    content = json.dumps({"model": endpoint.model, "stream": True, "stream_options": {"include_usage": True}, **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{endpoint.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, request = await loop.create_connection(lambda: Request(head.encode() + content), "127.0.0.1", endpoint.port)
    return request


def _read(sent_at: float, pieces: list[tuple[float, bytes]]) -> Stream:
    whole = b"".join(data for _, data in pieces)
    status, _, _ = whole.partition(b"\r\n")
    if b" 200 " not in status + b" " or b"\r\n\r\n" not in whole:
        raise BenchError(f"{whole[:600].decode(errors='replace')}\na server refused a request; its answer is above.")
    times: list[float] = []
    texts: list[str] = []
    usage: dict[str, int] = {}
    finish_reason = None
    for when, event in _events(pieces):
        if "error" in event:
            raise BenchError(f"a stream failed: {event['error']}; look at the server's log.")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            if choice.get("text"):
                times.append(when)
                texts.append(choice["text"])
            finish_reason = choice.get("finish_reason") or finish_reason
    if not times or not usage:
        raise BenchError(f"{whole[-600:].decode(errors='replace')}\na stream brought no text or no usage; its end is above.")
    return Stream(sent_at, times, "".join(texts), usage["prompt_tokens"], usage["completion_tokens"], finish_reason)


def _events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields each event with the time when its last byte came."""
    buffer = b""
    for when, data in pieces:
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            # Both servers send each event as one HTTP chunk, so the sizes of chunks stand in lines of their own.
            if line.startswith(b"data: {"):
                yield when, json.loads(line[len(b"data: ") :])
