"""A process of a model as the parent sees it: started, talked to over a socket, ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from nlocalmodels_server.workers.protocol import Frame, encode_frame, read_frame
from nlocalmodels_server.workers.turns import TurnTable

# Helper threads wait for one another by spinning, which is twice as fast as sleeping, but stop after 0.2 to 0.5 ms: longer than
# they wait within a step, and short beside the step of another model that then has the cores (docs/decisions/0010-turns.md).
_OPENMP_ENVIRON = {"GOMP_SPINCOUNT": "10000"}
_END_SECONDS = 1.0


class ModelProcess:
    """Made by `spawn`; `end` must follow."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        turn_table: TurnTable,
        place: int,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self._turn_table = turn_table
        self._place = place

    @staticmethod
    async def spawn(turn_table: TurnTable) -> ModelProcess:
        """Starts a process, which waits to be told what to load.

        Raises:
            OSError: it could not be started.
        """
        place = turn_table.take_place()
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
                    env=_OPENMP_ENVIRON | os.environ,
                    start_new_session=True,
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            turn_table.give_back(place)
            raise
        return ModelProcess(process, reader, writer, turn_table, place)

    def send(self, frame: Frame) -> None:
        self._writer.write(encode_frame(frame))

    async def receive(self) -> Frame | None:
        """Returns the next frame, None at the end of the process or of its sense."""
        return await read_frame(self._reader)

    def kill(self) -> None:
        """Ends it at once, whatever it is doing; also one that is stopped."""
        if self._process.returncode is None:
            self._process.kill()

    async def end(self) -> int:
        """Closes the socket, which ends a process that serves, kills one that is busy, and returns the exit code."""
        self._writer.close()
        try:
            return await asyncio.wait_for(self._process.wait(), _END_SECONDS)
        except TimeoutError:
            self.kill()
            return await self._process.wait()
        finally:
            self.kill()
            self._turn_table.give_back(self._place)
