"""A process of a model as the parent sees it: started, talked to over a socket, ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable

from nlocalmodels_server.workers.protocol import Frame, FrameReceiver, encode_frame
from nlocalmodels_server.workers.turns import TurnTable

# Helper threads wait for one another by spinning, which is twice as fast as sleeping, but only for so long, in rounds of 20 to
# 50 ns: alone, longer than the time between two steps; else longer than they wait within a step, and short beside the step of
# another model that then has the cores (docs/decisions/0010-turns.md).
_SPINS_ALONE, _SPINS_IN_TURN = 60_000, 10_000
_END_SECONDS = 1.0


class ModelProcess:
    """Made by `spawn`; `end` must follow."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        receiver: FrameReceiver,
        transport: asyncio.Transport,
        turn_table: TurnTable,
        place: int,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._receiver = receiver
        self._transport = transport
        self._turn_table = turn_table
        self._place = place

    @staticmethod
    async def spawn(turn_table: TurnTable, model_id: str, on_frame: Callable[[Frame], None]) -> ModelProcess:
        """Starts a process, which waits to be told what to load.

        Args:
            model_id: whose it is, for the log.
            on_frame: gets what it says.

        Raises:
            OSError: it could not be started.
        """
        place = turn_table.take_place()
        spins = _SPINS_IN_TURN if turn_table.is_shared else _SPINS_ALONE
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "nlocalmodels_server.workers.main",
                    *(str(number) for number in (theirs.fileno(), turn_table.fd, place)),
                    pass_fds=[theirs.fileno(), turn_table.fd],
                    stdin=asyncio.subprocess.DEVNULL,
                    env={"GOMP_SPINCOUNT": str(spins)} | os.environ,
                    start_new_session=True,
                )
            loop = asyncio.get_running_loop()
            transport, receiver = await loop.create_connection(lambda: FrameReceiver(model_id, on_frame), sock=ours)
        except BaseException:
            ours.close()
            turn_table.give_back(place)
            raise
        return ModelProcess(process, receiver, transport, turn_table, place)

    def send(self, frame: Frame) -> None:
        self._transport.write(encode_frame(frame))

    async def wait_ended(self) -> None:
        """Returns when it says nothing more: it is at its end, or talks nonsense."""
        await asyncio.shield(self._receiver.ended)

    def kill(self) -> None:
        """Ends it at once, whatever it is doing; also one that is stopped."""
        if self._process.returncode is None:
            self._process.kill()

    async def end(self) -> int:
        """Closes the socket, which ends a process that serves, kills one that is busy, and returns the exit code."""
        self._transport.close()
        try:
            return await asyncio.wait_for(self._process.wait(), _END_SECONDS)
        except TimeoutError:
            self.kill()
            return await self._process.wait()
        finally:
            self.kill()
            self._turn_table.give_back(self._place)
