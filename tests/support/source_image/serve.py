"""The test source's container: serves /models on port 8080, and takes orders over HTTP.

PUT /_control      {"<path prefix or glob>": {<fields of Behaviour>, "times": N}, ...}: the first that fits a request's path
                   decides, N times if that is given; replaces what was ordered before
GET /_control      what is ordered
DELETE /_control   behave well again, and end what stalls
GET /_requests     every request so far: path, headers, client_port, sent_bytes
DELETE /_requests  forget them
GET /_health       {}
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from support.model_source import Behaviour, ModelSource, Request

_FIELDS = {field.name for field in dataclasses.fields(Behaviour)}


class Control:
    """Keeps the orders and finds the one for a request."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._rules: dict[str, dict[str, Any]] = {}

    def behave(self, request: Request) -> Behaviour:
        path = request.path.split("?")[0]
        with self._lock:
            for pattern, rule in self._rules.items():
                if rule.get("times") == 0 or not (path.startswith(pattern) or fnmatch.fnmatchcase(path, pattern)):
                    continue
                if "times" in rule:
                    rule["times"] -= 1
                fields = {name: value for name, value in rule.items() if name != "times"}
                if "body" in fields:
                    fields["body"] = fields["body"].encode()
                return Behaviour(**fields)
        return Behaviour()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Answers a control request with a status and JSON."""
        if (method, path) == ("GET", "/_health"):
            return 200, b"{}"
        if path == "/_requests" and method in ("GET", "DELETE"):
            if method == "DELETE":
                self._source.requests.clear()
            return 200, json.dumps([dataclasses.asdict(request) for request in self._source.requests[:]]).encode()
        if path == "/_control" and method in ("GET", "PUT", "DELETE"):
            try:
                self._order(method, body)
            except ValueError as error:
                return 400, json.dumps({"error": str(error)}).encode()
            with self._lock:
                return 200, json.dumps(self._rules).encode()
        return 404, json.dumps({"error": f"no {method} {path} here; serve.py lists what there is"}).encode()

    def _order(self, method: str, body: bytes) -> None:
        if method == "GET":
            return
        rules = json.loads(body) if method == "PUT" else {}
        for pattern, rule in rules.items():
            if unknown := set(rule) - _FIELDS - {"times"}:
                raise ValueError(
                    f"{pattern}: unknown {', '.join(sorted(unknown))}; known are times, {', '.join(sorted(_FIELDS))}"
                )
        with self._lock:
            self._rules = rules
        self._source.release()


def main() -> None:
    source = ModelSource(host="0.0.0.0", port=int(os.environ.get("PORT", "8080")), folder=Path("/models"))
    control = Control(source)
    source.behave, source.control = control.behave, control.answer
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with source.running():
        stop.wait()


if __name__ == "__main__":
    main()
