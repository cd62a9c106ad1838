"""What a model's process says, as the parent hears it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from nlocalmodels_server.workers import protocol
from nlocalmodels_server.workers.protocol import Frame, FrameReceiver, encode_frame

Hear = Callable[[Frame], None]


def with_receiver(hear: Hear, talk: Callable[[socket.socket, FrameReceiver], Awaitable[None]]) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            loop = asyncio.get_running_loop()
            transport, receiver = await loop.create_connection(lambda: FrameReceiver("m", hear), sock=ours)
            async with asyncio.timeout(10):
                await talk(theirs, receiver)
            transport.close()

    asyncio.run(run())


def test_frames_come_whole_and_in_order_however_they_arrive() -> None:
    frames: list[Frame] = [{"op": "events", "text": text} for text in ("ä", "", "x" * 100_000, "end")]
    heard: list[Frame] = []

    async def talk(theirs: socket.socket, receiver: FrameReceiver) -> None:
        data = b"".join(map(encode_frame, frames))
        for start, end in pairwise((0, 1, 5, 30, 31, 50_000, len(data))):
            theirs.sendall(data[start:end])
            await asyncio.sleep(0.01)
        theirs.close()
        await receiver.ended

    with_receiver(heard.append, talk)
    assert heard == frames


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack(">I", protocol.MAX_FRAME_BYTES + 1),
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 3) + b"no!",
        struct.pack(">I", 2) + b"\xff\xfe",
        struct.pack(">I", 100_000) + b"[" * 100_000,
    ],
    ids=["too large", "no object", "no JSON", "no UTF-8", "too deep"],
)
def test_nonsense_ends_the_connection(nonsense: bytes, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Frame] = []

    async def talk(theirs: socket.socket, receiver: FrameReceiver) -> None:
        theirs.sendall(encode_frame({"op": "beat"}) + nonsense)
        await receiver.ended

    with_receiver(heard.append, talk)
    assert heard == [{"op": "beat"}]
    assert "m: its process does not keep to the protocol" in caplog.text


def test_frame_that_nobody_understands_ends_the_connection_and_no_later_one_is_heard() -> None:
    def hear(frame: Frame) -> None:
        heard.append(frame)
        raise KeyError("op")

    heard: list[Frame] = []

    async def talk(theirs: socket.socket, receiver: FrameReceiver) -> None:
        theirs.sendall(encode_frame({"a": 1}) + encode_frame({"b": 2}))
        await receiver.ended

    with_receiver(hear, talk)
    assert heard == [{"a": 1}]
