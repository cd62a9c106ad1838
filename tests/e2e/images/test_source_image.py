"""The tests' own model source, as it runs in a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import images
from support.image_runs import Run, running
from support.serving import free_port
from support.source_image import REAL_MODEL, source_index

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def source(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    port = free_port()
    run = Run(images.IMAGES["source"].name, archives["source"], environ={"PORT": str(port)})
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def is_healthy() -> bool:
        try:
            return client.get("/_health").status_code == 200
        except httpx.TransportError:
            return False

    with client, running(run, tmp_path_factory.mktemp("source") / "log") as container:
        container.wait_for(is_healthy)
        yield client
        assert container.terminate() == 0, container.log()


@pytest.fixture(autouse=True)
def _well_behaved(source: httpx.Client) -> None:
    source.delete("/_control")
    source.delete("/_requests")


def order(source: httpx.Client, rules: dict[str, Any]) -> None:
    source.put("/_control", json=rules).raise_for_status()


def test_it_holds_what_the_index_says(source: httpx.Client) -> None:
    index = source.get("/index.json").json()
    assert index == source_index()
    assert {REAL_MODEL, "tiny-a.Q8_0.gguf", "tiny-b.F16.gguf", "tiny-c.gguf", "chat-d.gguf", "bulk-64m.gguf"} == set(index)
    for file, facts in index.items():
        digest, num_bytes = hashlib.sha256(), 0
        with source.stream("GET", f"/{file}") as answer:
            for piece in answer.iter_bytes():
                digest.update(piece)
                num_bytes += len(piece)
        assert {"sha256": digest.hexdigest(), "sizeBytes": num_bytes} == facts, file


def test_it_speaks_ranges(source: httpx.Client) -> None:
    whole = source.get("/tiny-a.Q8_0.gguf").content
    part = source.get("/tiny-a.Q8_0.gguf", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    rest = source.get("/tiny-a.Q8_0.gguf", headers={"Range": f"bytes={len(whole) - 7}-"})
    assert (rest.status_code, rest.content) == (206, whole[-7:])
    assert source.get("/../app/serve.py").status_code == 404


def test_it_misbehaves_when_told_to(source: httpx.Client) -> None:
    order(
        source, {"/tiny-a": {"status": 503, "headers": {"Retry-After": "1"}, "times": 1}, "*.gguf": {"close_after_bytes": 1000}}
    )
    refused = source.get("/tiny-a.Q8_0.gguf")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    with pytest.raises(httpx.RemoteProtocolError):
        source.get("/tiny-a.Q8_0.gguf")
    assert source.get("/_control").json()["/tiny-a"]["times"] == 0
    source.delete("/_control")
    assert source.get("/tiny-a.Q8_0.gguf").status_code == 200
    requests = source.get("/_requests").json()
    assert [request["path"] for request in requests] == ["/tiny-a.Q8_0.gguf"] * 3
    assert [request["sent_bytes"] for request in requests] == [0, 1000, source_index()["tiny-a.Q8_0.gguf"]["sizeBytes"]]


def test_new_order_ends_a_stall(source: httpx.Client) -> None:
    order(source, {"/": {"stall_after_bytes": 10}})
    with source.stream("GET", "/tiny-c.gguf") as stalled:
        pieces = stalled.iter_raw()
        assert len(next(pieces)) == 10
        source.delete("/_control")
        with pytest.raises(httpx.RemoteProtocolError):
            next(pieces)


def test_unknown_order_is_refused_by_name(source: httpx.Client) -> None:
    answer = source.put("/_control", json={"/": {"statuss": 500}})
    assert answer.status_code == 400
    assert "unknown statuss; known are times, body" in answer.json()["error"]
    assert source.get("/_control").json() == {}
