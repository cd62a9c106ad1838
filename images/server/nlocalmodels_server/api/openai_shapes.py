"""The shapes of OpenAI's answers and stream events, and what differs in them between chat and completion."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from nlocalmodels_server import __version__
from nlocalmodels_server.workers.worker import Worker

# Stands for a delta's text in an event, and in nothing else of it.
_ANY_TEXT = "\ue000text\ue001"


class Shape:
    """What differs between the two endpoints."""

    def __init__(self, worker: Worker, is_chat: bool) -> None:
        self.is_chat = is_chat
        self._text_events: dict[int, tuple[bytes, bytes]] = {}
        self._head = {
            "id": ("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": worker.model_id,
            "system_fingerprint": f"nlocalmodels-{__version__}",
        }

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {"object": kind, **self._head, "choices": choices, "usage": usage}

    def choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {"object": kind, **self._head, "choices": choices, **more}

    def text_event(self, index: int, text: str, more: dict[str, Any]) -> bytes:
        """Returns the event of a text delta. All but the text is written once: there is one for each token of each stream."""
        parts = self._text_events.get(index)
        if parts is None:
            whole = sse(self.chunk([self.delta(index, _ANY_TEXT, None)], **more))
            head, _, tail = whole.partition(json.dumps(_ANY_TEXT, ensure_ascii=False).encode())
            parts = self._text_events[index] = (head, tail)
        return parts[0] + json.dumps(text, ensure_ascii=False).encode() + parts[1]

    def delta(self, index: int, text: str, finish_reason: str | None, role: str | None = None) -> dict[str, Any]:
        if not self.is_chat:
            return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
        delta: dict[str, Any] = {"role": role, "content": ""} if role else {}
        if text:
            delta["content"] = text
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def sse(data: dict[str, Any]) -> bytes:
    """Returns a server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
