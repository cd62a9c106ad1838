"""A client that is gone between the acceptance of its request and the first event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from nlocalmodels_server.api.openai import Choices, _EventStream


class FakeChoices:
    num_cancels = 0

    def cancel(self) -> None:
        self.num_cancels += 1


def test_client_that_is_gone_before_the_first_event_cancels_its_generations() -> None:
    choices = FakeChoices()

    async def events() -> AsyncIterator[bytes]:
        yield b"never asked for"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None: ...

    asyncio.run(_EventStream(events(), cast(Choices, choices))({"type": "http", "asgi": {}}, receive, send))
    assert choices.num_cancels == 1
