"""What becomes of a file whose sources fail, that has shards, that others fetched before, or that is carried in a bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nlocalmodels_downloader import volume as volume_module
from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.errors import (
    CorruptError,
    DeniedError,
    DownloaderError,
    ExhaustedError,
    GoneError,
    RefusedError,
    SpaceError,
)
from nlocalmodels_downloader.sources import parse_source
from nlocalmodels_downloader.sync import Synchronizer
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, Verified, Volume
from support.downloads import HUB_COMMIT, MIB, Downloads, sha256
from support.gguf_files import bulk_gguf
from support.model_source import Behaviour, ModelSource, Request


def _is_probe(request: Request) -> bool:
    return request.range == (0, 1)


def _asked(source: ModelSource) -> list[tuple[int, int]]:
    """Returns the spans of bodies, joined where they touch: bytes that were asked for twice are seen."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(request.range or (0, 0) for request in source.requests if request.range != (0, 1)):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _gone_from(offset: int) -> Callable[[Request], Behaviour]:
    """Serves the bytes before an offset and none after it, however they are asked for."""

    def behave(request: Request) -> Behaviour:
        span = request.range
        if span is None or span[1] <= offset:
            return Behaviour()
        return Behaviour(status=404) if span[0] >= offset else Behaviour(close_after_bytes=offset - span[0])

    return behave


def _mirrored(downloads: Downloads, data: bytes | None, *mirrors: ModelSource) -> Model:
    sources = tuple(parse_source(f"{mirror.url}/m.gguf") for mirror in mirrors)
    return replace(downloads.model(data), mirrors=sources)


def _over_one_connection(downloads: Downloads) -> Downloads:
    return replace(downloads, settings=replace(downloads.settings, num_connections=1))


def _record(downloads: Downloads, name: str = "m") -> dict[str, object]:
    document = json.loads((downloads.root / ".nlocalmodels" / "verified" / f"{name}.gguf.json").read_bytes())
    assert isinstance(document, dict)
    return document


# Mirrors


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(status=404),
        Behaviour(status=401),
        Behaviour(status=503),
        Behaviour(body=b"<html>not here</html>"),
        Behaviour(body=bulk_gguf(3 * MIB + 17, seed=8)),
        Behaviour(status=302, headers={"Location": "ftp://127.0.0.1/m.gguf"}),
        Behaviour(close_after_bytes=0),
    ],
    ids=["gone", "denied", "unavailable", "no GGUF", "other bytes", "bad redirect", "breaks"],
)
def test_fetch_goes_on_with_the_mirror_when_the_source_fails(
    downloads: Downloads, other_source: ModelSource, behaviour: Behaviour
) -> None:
    data = downloads.serve()
    other_source.files["/m.gguf"] = data
    downloads.source.behave = lambda _: behaviour
    assert downloads.sync(_mirrored(downloads, data, other_source)) == []
    assert downloads.published() == data
    assert _record(downloads)["source"] == f"{other_source.url}/m.gguf"


def test_fetch_asks_no_mirror_when_the_source_has_the_file(downloads: Downloads, other_source: ModelSource) -> None:
    data = downloads.serve()
    assert downloads.sync(_mirrored(downloads, data, other_source)) == []
    assert other_source.requests == []


def test_fetch_asks_the_mirror_only_for_what_the_source_did_not_bring(
    hasty_downloads: Downloads, other_source: ModelSource
) -> None:
    """The first source sends a block and is silent from then on."""
    downloads = _over_one_connection(replace(hasty_downloads, settings=replace(hasty_downloads.settings, num_attempts=1)))
    data = downloads.serve()
    other_source.files["/m.gguf"] = data

    def behave(request: Request) -> Behaviour:
        if _is_probe(request):
            return Behaviour()
        return Behaviour(stall_after_bytes=MIB if request.range and request.range[0] == 0 else 0)

    downloads.source.behave = behave
    assert downloads.sync(_mirrored(downloads, data, other_source)) == []
    assert downloads.published() == data
    assert _asked(other_source) == [(MIB, len(data))]


def test_fetch_asks_the_mirror_for_everything_after_a_wrong_digest(downloads: Downloads, other_source: ModelSource) -> None:
    data = downloads.serve()
    other_source.files["/m.gguf"] = data
    downloads.source.files["/m.gguf"] = bulk_gguf(len(data), seed=8)
    assert _over_one_connection(downloads).sync(_mirrored(downloads, data, other_source)) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == [(0, len(data))], "another try would bring the same"
    assert _asked(other_source) == [(0, len(data))]


@pytest.mark.parametrize(
    ("first", "last", "kind", "exit_code"),
    [
        (Behaviour(status=404), Behaviour(status=401), DeniedError, 10),
        (Behaviour(status=401), Behaviour(status=404), GoneError, 11),
        (Behaviour(status=404), Behaviour(body=bulk_gguf(MIB, seed=8)), CorruptError, 13),
        (Behaviour(body=bulk_gguf(MIB, seed=8)), Behaviour(status=503), ExhaustedError, 14),
        (Behaviour(status=503), Behaviour(status=302, headers={"Location": "ftp://127.0.0.1/"}), RefusedError, 15),
    ],
)
def test_fetch_fails_for_the_last_sources_reason_and_logs_the_others(
    downloads: Downloads,
    other_source: ModelSource,
    caplog: pytest.LogCaptureFixture,
    first: Behaviour,
    last: Behaviour,
    kind: type[DownloaderError],
    exit_code: int,
) -> None:
    downloads.source.behave = lambda _: first
    other_source.behave = lambda _: last
    [error] = downloads.sync(_mirrored(downloads, bulk_gguf(MIB, seed=1), other_source))
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert downloads.source.requests
    assert "Going on with the next source." in caplog.text
    assert downloads.source.url in caplog.text
    assert downloads.published() is None


def test_fetch_tries_every_mirror_in_order(downloads: Downloads, other_source: ModelSource) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda r: Behaviour(status=404) if r.path != "/third.gguf" else Behaviour(body=data)
    other_source.behave = lambda _: Behaviour(status=404)
    sources = (f"{other_source.url}/second.gguf", f"{downloads.source.url}/third.gguf", f"{other_source.url}/fourth.gguf")
    model = replace(downloads.model(data), mirrors=tuple(map(parse_source, sources)))
    assert downloads.sync(model) == []
    assert downloads.published() == data
    assert [request.path for request in other_source.requests] == ["/second.gguf"]


def _at_hub(downloads: Downloads, data: bytes) -> Downloads:
    """Plays the hub, which states the digest and sends the bytes itself."""
    linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Repo-Commit": HUB_COMMIT}
    downloads.source.behave = lambda _: Behaviour(body=data, headers=linked)
    return replace(downloads, settings=replace(downloads.settings, hub_endpoint=downloads.source.url))


def test_fetch_holds_the_mirror_to_the_digest_that_the_hub_stated(downloads: Downloads, other_source: ModelSource) -> None:
    data = bulk_gguf(MIB)
    at_hub = _at_hub(downloads, data)
    states_digest = downloads.source.behave
    downloads.source.behave = lambda r: states_digest(r) if _is_probe(r) else Behaviour(status=404)
    model = Model(
        "m", "m.gguf", parse_source(f"hf://o/r/m.gguf@{HUB_COMMIT}"), mirrors=(parse_source(f"{other_source.url}/m.gguf"),)
    )
    other_source.files["/m.gguf"] = bulk_gguf(MIB, seed=8)
    [error] = at_hub.sync(model)
    assert isinstance(error, CorruptError)
    assert sha256(data) in str(error)
    other_source.files["/m.gguf"] = data
    assert at_hub.sync(model) == []
    assert downloads.published() == data


# Split models


def _split(downloads: Downloads, num_shards: int = 3) -> tuple[Model, dict[str, bytes]]:
    names = [f"m-0000{number}-of-0000{num_shards}" for number in range(1, num_shards + 1)]
    data = {name: downloads.serve(name, 2 * MIB + number, seed=number) for number, name in enumerate(names)}
    first, *others = (replace(downloads.model(data[name], name), id="m") for name in names)
    return replace(first, shards=tuple(others)), data


def _published(downloads: Downloads, data: dict[str, bytes]) -> list[str]:
    """Returns the names that are there, each with the right bytes."""
    there = [name for name in data if downloads.published(name) is not None]
    assert all(downloads.published(name) == data[name] for name in there)
    return there


def test_fetch_publishes_shards_when_all_are_there_and_the_first_last(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = _split(downloads)
    order: list[str] = []
    publish = Volume.publish

    def publish_and_tell(self: Volume, data_path: Path, file: str, verified: Verified, is_durable: bool = False) -> None:
        assert len({request.path for request in downloads.source.requests}) == len(data), "a shard was still to come"
        publish(self, data_path, file, verified, is_durable)
        order.append(file)

    monkeypatch.setattr(Volume, "publish", publish_and_tell)
    assert downloads.sync(model) == []
    assert _published(downloads, data) == list(data)
    assert len(order) == 3
    assert order[-1] == model.file
    [manifest] = (downloads.root / ".nlocalmodels" / "sets").glob("*.json")
    [entry] = json.loads(manifest.read_bytes())["models"]
    assert entry["file"] == model.file
    assert [shard["file"] for shard in entry["shards"]] == [shard.file for shard in model.shards]
    assert list((downloads.root / ".nlocalmodels" / "partials").iterdir()) == []


def test_fetch_publishes_no_shard_while_one_is_missing_and_keeps_the_others(downloads: Downloads) -> None:
    model, data = _split(downloads)
    absent = f"/{list(data)[-1]}.gguf"
    downloads.source.behave = lambda r: Behaviour(status=404 if r.path == absent else None)
    [error] = downloads.sync(model)
    assert isinstance(error, GoneError)
    assert _published(downloads, data) == []
    downloads.source.behave = lambda _: Behaviour()
    downloads.source.requests.clear()
    assert downloads.sync(model) == []
    assert _published(downloads, data) == list(data)
    assert {request.path for request in downloads.source.requests if not _is_probe(request)} == {absent}


_KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from nlocalmodels_downloader.volume import Volume

publish, calls = Volume.publish, []

def publish_or_die(self, *args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(self, *args, **kwargs)

Volume.publish = publish_or_die
sys.argv = ["nlocalmodels_downloader", "sync", "--config", sys.argv[1]]
import runpy
runpy.run_module("nlocalmodels_downloader", run_name="__main__")
"""


def test_fetch_goes_on_where_a_kill_between_two_shards_left_off(downloads: Downloads, tmp_path: Path) -> None:
    model, data = _split(downloads)

    def entry(file: Model) -> dict[str, object]:
        return {"file": file.file, "source": file.source.text, "sha256": file.sha256}

    config = tmp_path / "downloads.yaml"
    models = [{"id": model.id, **entry(model), "shards": [entry(shard) for shard in model.shards]}]
    config.write_text(yaml.safe_dump({"modelPath": str(downloads.root), "models": models}))
    command = [sys.executable, "-c", _KILLED_WHILE_PUBLISHING, str(config)]
    ended = subprocess.run(command, env=_environ(tmp_path), check=False, capture_output=True, text=True, timeout=30)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert _published(downloads, data) == [list(data)[-1]], "the first shard is there only when all are"
    assert not (downloads.root / ".nlocalmodels" / "sets").exists()
    downloads.source.requests.clear()
    assert downloads.sync(model) == []
    assert _published(downloads, data) == list(data)
    assert _asked(downloads.source) == [], "all bytes had come"
    assert list((downloads.root / ".nlocalmodels" / "partials").iterdir()) == []


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "POD_UID": "pod", "TERMINATION_MESSAGE_PATH": str(folder / "termination")}


# Bundles


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "a bundle" / "m.gguf"
    path.parent.mkdir()
    path.write_bytes(bulk_gguf(2 * MIB + 5))
    return path


def _bundled(path: Path, digest: str | None) -> Model:
    return Model("m", "m.gguf", parse_source(f"file://{path}"), digest)


def test_fetch_takes_a_bundle_without_the_network(downloads: Downloads, bundle: Path) -> None:
    data = bundle.read_bytes()
    assert downloads.sync(_bundled(bundle, sha256(data))) == []
    assert downloads.published() == data
    assert bundle.read_bytes() == data
    assert downloads.source.requests == []
    bundle.unlink()
    assert downloads.sync(_bundled(bundle, sha256(data))) == []


def test_fetch_refuses_a_bundle_of_other_bytes(downloads: Downloads, bundle: Path) -> None:
    [error] = downloads.sync(_bundled(bundle, sha256(b"other")))
    assert isinstance(error, CorruptError)
    assert downloads.published() is None


def test_fetch_takes_a_bundle_without_digest_only_if_allowed(downloads: Downloads, bundle: Path) -> None:
    [error] = downloads.sync(_bundled(bundle, None))
    assert isinstance(error, RefusedError)
    assert "declare sha256, or set allowUnverified" in str(error)
    assert downloads.published() is None
    assert downloads.sync(_bundled(bundle, None), allow_unverified=True) == []
    assert downloads.published() == bundle.read_bytes()
    bundle.write_bytes(bulk_gguf(2 * MIB + 5, seed=8))
    assert downloads.sync(_bundled(bundle, None), allow_unverified=True) == []
    assert downloads.published() == bundle.read_bytes()


def test_fetch_falls_back_from_a_bundle_to_the_network(downloads: Downloads, bundle: Path) -> None:
    data = downloads.serve()
    bundle.unlink()
    mirrored = replace(_bundled(bundle, sha256(data)), mirrors=(downloads.model(data).source,))
    assert downloads.sync(mirrored) == []
    assert downloads.published() == data


# What is there already


def test_fetch_goes_on_with_what_a_dead_pod_has_left(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=4 * MIB)
    downloads.source.behave = _gone_from(2 * MIB)
    assert len(_over_one_connection(downloads).sync(downloads.model(data))) == 1
    downloads.source.behave = lambda _: Behaviour()
    downloads.source.requests.clear()
    other_pod = replace(downloads, settings=replace(downloads.settings, owner="other", num_connections=1))
    assert other_pod.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == [(2 * MIB, 4 * MIB)]
    assert list((downloads.root / ".nlocalmodels" / "partials").iterdir()) == []


def _damage_unseen(downloads: Downloads, name: str = "m") -> None:
    """Loses bytes as a power cut does: nothing but a digest can tell."""
    path = downloads.root / f"{name}.gguf"
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(512))
    record = _record(downloads, name)
    status = path.stat()
    record["fingerprint"] = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    (downloads.root / ".nlocalmodels" / "verified" / f"{name}.gguf.json").write_text(json.dumps(record))


def test_fetch_verifies_a_file_again_after_a_reboot_without_a_request(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = downloads.serve()
    assert downloads.sync(downloads.model(data)) == []
    source = _record(downloads)["source"]
    downloads.source.requests.clear()
    monkeypatch.setattr(volume_module, "boot_id", lambda: "another boot")
    for times in (1, 1):
        assert downloads.sync(downloads.model(data)) == []
        assert caplog.text.count("verifying its digest") == times
    assert downloads.source.requests == []
    assert (_record(downloads)["bootId"], _record(downloads)["source"]) == ("another boot", source)


def test_fetch_finds_what_a_power_cut_took_from_a_published_file(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    data = downloads.serve()
    assert downloads.sync(downloads.model(data)) == []
    _damage_unseen(downloads)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() != data, "the record alone is trusted until the machine starts anew"
    monkeypatch.setattr(volume_module, "boot_id", lambda: "another boot")
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_fetch_trusts_a_durable_record_after_a_reboot(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = downloads.serve()
    durable = replace(downloads, settings=replace(downloads.settings, is_durable=True))
    assert durable.sync(downloads.model(data)) == []
    assert _record(downloads)["bootId"] is None
    monkeypatch.setattr(volume_module, "boot_id", lambda: "another boot")
    assert downloads.sync(downloads.model(data)) == []
    assert "verifying its digest" not in caplog.text


def test_fetch_does_not_ask_again_for_a_hub_file_after_a_reboot(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bulk_gguf(2 * MIB)
    at_hub = _at_hub(downloads, data)
    model = Model("m", "m.gguf", parse_source(f"hf://o/r/m.gguf@{HUB_COMMIT}"))
    assert at_hub.sync(model) == []
    downloads.source.requests.clear()
    monkeypatch.setattr(volume_module, "boot_id", lambda: "another boot")
    assert at_hub.sync(model) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == []


def _sync_and_prune(downloads: Downloads, *models: Model) -> None:
    config = Config(downloads.root, models, prune_keep_sets=1)
    assert Synchronizer(config, downloads.settings, downloads.stop).run() == []


def test_fetch_leaves_a_persons_verified_file_when_its_set_is_pruned(downloads: Downloads) -> None:
    found, fetched, new = (downloads.serve(name, seed=seed) for seed, name in enumerate(("found", "fetched", "new")))
    downloads.root.mkdir()
    (downloads.root / "found.gguf").write_bytes(found)
    _sync_and_prune(downloads, downloads.model(found, "found"), downloads.model(fetched, "fetched"))
    assert _record(downloads, "found")["source"] == FOUND_ON_VOLUME
    _sync_and_prune(downloads, downloads.model(new, "new"))
    assert (downloads.published("found"), downloads.published("fetched"), downloads.published("new")) == (found, None, new)


def test_fetch_takes_a_persons_file_for_a_persons_also_after_a_reboot(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, new = downloads.serve("found", seed=1), downloads.serve("new", seed=2)
    downloads.root.mkdir()
    (downloads.root / "found.gguf").write_bytes(found)
    _sync_and_prune(downloads, downloads.model(found, "found"))
    monkeypatch.setattr(volume_module, "boot_id", lambda: "another boot")
    _sync_and_prune(downloads, downloads.model(found, "found"))
    _sync_and_prune(downloads, downloads.model(new, "new"))
    assert downloads.published("found") == found


# Space


def test_fetch_refuses_a_set_beyond_the_limit_with_numbers_and_without_a_request(downloads: Downloads) -> None:
    limit_bytes = 5 * MIB
    limited = replace(downloads, settings=replace(downloads.settings, volume_limit_bytes=limit_bytes))
    models = [downloads.model(downloads.serve(name, 3 * MIB, seed), name, size_bytes=3 * MIB) for seed, name in enumerate("ab")]
    with pytest.raises(SpaceError) as caught:
        limited.sync(*models)
    assert str(6 * MIB) in str(caught.value)
    assert "enlarge the volume by at least 1." in str(caught.value)
    assert caught.value.exit_code == 12
    assert downloads.source.requests == []


def test_fetch_counts_what_is_there_against_the_limit_and_does_not_ask_space_for_it(downloads: Downloads) -> None:
    limited = replace(downloads, settings=replace(downloads.settings, volume_limit_bytes=7 * MIB))
    models = [
        downloads.model(downloads.serve(name, 3 * MIB, seed), name, size_bytes=3 * MIB) for seed, name in enumerate("abc")
    ]
    assert limited.sync(*models[:2]) == []
    assert limited.sync(*models[:2]) == []
    downloads.source.requests.clear()
    with pytest.raises(SpaceError, match=f"need {3 * MIB} bytes more"):
        limited.sync(*models)
    assert downloads.source.requests == []


def test_fetch_refuses_a_file_beyond_the_limit_whose_size_only_the_source_tells(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=3 * MIB)
    limited = replace(downloads, settings=replace(downloads.settings, volume_limit_bytes=2 * MIB))
    [error] = limited.sync(downloads.model(data))
    assert isinstance(error, SpaceError)
    assert f"needs {3 * MIB} bytes more" in str(error)
    assert _asked(downloads.source) == []


# The same bytes twice


def _declared(downloads: Downloads, data: bytes, name: str) -> Model:
    return replace(downloads.model(data, "m"), id=name, file=f"{name}.gguf")


def _from_hub(downloads: Downloads, data: bytes, name: str) -> Model:
    return Model(name, f"{name}.gguf", parse_source(f"hf://o/r/{name}.gguf@{HUB_COMMIT}"))


@pytest.mark.parametrize("declare", [_declared, _from_hub])
def test_fetch_of_the_same_bytes_under_two_names_brings_both(
    downloads: Downloads, declare: Callable[[Downloads, bytes, str], Model]
) -> None:
    data = downloads.serve()
    at_hub = _at_hub(downloads, data)
    assert at_hub.sync(*(declare(downloads, data, name) for name in ("one", "two"))) == []
    assert (downloads.published("one"), downloads.published("two")) == (data, data)
    assert list((downloads.root / ".nlocalmodels" / "partials").iterdir()) == []
    assert not (downloads.root / ".nlocalmodels" / "replaced").exists()
    downloads.source.requests.clear()
    assert at_hub.sync(*(declare(downloads, data, name) for name in ("one", "two"))) == []
    assert downloads.source.requests == []
