"""What a whole sync leaves on the volume, sends, and says."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.errors import CorruptError, DeniedError, DownloaderError, GoneError, RefusedError, SpaceError
from nlocalmodels_downloader.sources import parse_source
from nlocalmodels_downloader.volume import Verified, Volume
from support.downloads import HUB_COMMIT, MIB, Downloads, sha256
from support.gguf_files import bulk_gguf
from support.model_source import Behaviour, ModelSource, Request


def _redirect(target: str) -> Behaviour:
    return Behaviour(status=302, headers={"Location": target})


def _manifests(downloads: Downloads) -> list[dict[str, object]]:
    return [json.loads(path.read_bytes()) for path in (downloads.root / ".nlocalmodels" / "sets").glob("*.json")]


def _replaced(downloads: Downloads) -> list[bytes]:
    return [path.read_bytes() for path in (downloads.root / ".nlocalmodels" / "replaced").glob("*")]


def test_sync_publishes_every_model_and_names_them_in_the_manifest(downloads: Downloads) -> None:
    first, second = downloads.serve("a", seed=1), downloads.serve("b", seed=2)
    assert downloads.sync(downloads.model(first, "a"), downloads.model(second, "b")) == []
    assert (downloads.published("a"), downloads.published("b")) == (first, second)
    [manifest] = _manifests(downloads)
    assert manifest["models"] == [
        {"id": "a", "file": "a.gguf", "sha256": sha256(first), "sizeBytes": len(first)},
        {"id": "b", "file": "b.gguf", "sha256": sha256(second), "sizeBytes": len(second)},
    ]
    assert list((downloads.root / ".nlocalmodels" / "partials").iterdir()) == []


def test_sync_of_nothing_writes_an_empty_manifest(downloads: Downloads) -> None:
    assert downloads.sync() == []
    assert [manifest["models"] for manifest in _manifests(downloads)] == [[]]


def test_sync_goes_on_after_one_model_failed(downloads: Downloads) -> None:
    last = downloads.serve("last")
    [error] = downloads.sync(downloads.model(b"absent", "absent"), downloads.model(last, "last"))
    assert isinstance(error, GoneError)
    assert downloads.published("last") == last
    assert _manifests(downloads) == []


def test_sync_of_a_verified_file_asks_nothing_of_anybody(downloads: Downloads) -> None:
    data = downloads.serve()
    model = downloads.model(data)
    assert downloads.sync(model) == []
    downloads.source.requests.clear()
    assert downloads.sync(model) == []
    assert downloads.source.requests == []
    gone = replace(model, source=parse_source("http://127.0.0.1:9/m.gguf"))
    assert downloads.sync(gone) == []


def test_sync_verifies_an_unrecorded_file_without_a_request(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.root.mkdir()
    (downloads.root / "m.gguf").write_bytes(data)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.source.requests == []
    assert len(_manifests(downloads)) == 1


def test_sync_fetches_anew_when_a_verified_file_was_damaged_since(downloads: Downloads) -> None:
    data = downloads.serve()
    assert downloads.sync(downloads.model(data)) == []
    with (downloads.root / "m.gguf").open("r+b") as file:
        file.seek(MIB)
        file.write(b"damage")
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_sync_keeps_a_foreign_file_of_the_same_name(downloads: Downloads) -> None:
    data, foreign = downloads.serve(), bulk_gguf(5000, seed=9)
    downloads.root.mkdir()
    (downloads.root / "m.gguf").write_bytes(foreign)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _replaced(downloads) == [foreign]


def test_sync_keeps_a_foreign_file_that_took_the_place_of_a_published_one(downloads: Downloads) -> None:
    data, foreign = downloads.serve(), bulk_gguf(5000, seed=9)
    assert downloads.sync(downloads.model(data)) == []
    (downloads.root / "m.gguf").write_bytes(foreign)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _replaced(downloads) == [foreign]


def test_sync_keeps_a_foreign_folder_of_the_same_name(downloads: Downloads) -> None:
    data = downloads.serve()
    (downloads.root / "m.gguf").mkdir(parents=True)
    (downloads.root / "m.gguf" / "note").write_text("mine")
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    [kept] = (downloads.root / ".nlocalmodels" / "replaced").iterdir()
    assert (kept / "note").read_text() == "mine"


def test_sync_replaces_its_own_older_file(downloads: Downloads) -> None:
    old = downloads.serve(seed=1)
    assert downloads.sync(downloads.model(old)) == []
    os.chown(downloads.root / "m.gguf", -1, os.getgid())  # as a kubelet does at every mount: the ctime changes
    new = downloads.serve(seed=2)
    assert downloads.sync(downloads.model(new)) == []
    assert downloads.published() == new
    assert _replaced(downloads) == []


def test_sync_starts_once_more_and_names_both_digests_when_the_digest_is_wrong(downloads: Downloads) -> None:
    data = downloads.serve()
    declared = sha256(b"something else")
    [error] = downloads.sync(replace(downloads.model(data), sha256=declared))
    assert isinstance(error, CorruptError)
    assert error.exit_code == 13
    assert sha256(data) in str(error)
    assert declared in str(error)
    bodies = [request.range or (0, 0) for request in downloads.source.requests if request.range != (0, 1)]
    assert len([start for start, _ in bodies if start == 0]) == 2
    assert sum(end - start for start, end in bodies) == 2 * len(data)
    assert downloads.published() is None


def test_sync_needs_no_more_space_after_a_wrong_digest(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.sync(replace(downloads.model(data), sha256=sha256(b"something else")))
    assert sum(path.stat().st_size for path in downloads.partials.glob("*.data")) == 0


def test_sync_refuses_a_size_that_is_not_the_declared_one(downloads: Downloads) -> None:
    data = downloads.serve()
    [error] = downloads.sync(downloads.model(data, size_bytes=len(data) + 1))
    assert isinstance(error, CorruptError)
    assert f"{len(data)} bytes, but sizeBytes declares {len(data) + 1}" in str(error)
    assert [request.range for request in downloads.source.requests] == [(0, 1)]


@pytest.mark.parametrize("status", [200, 206, 416])
def test_sync_refuses_an_empty_file(downloads: Downloads, status: int) -> None:
    headers = {"Content-Range": "bytes 0-0/0"} if status == 206 else {}
    downloads.source.behave = lambda _: Behaviour(status=status, headers=headers)
    [error] = downloads.sync(downloads.model(None), allow_unverified=True)
    assert isinstance(error, RefusedError)
    assert "is empty" in str(error)


def test_sync_refuses_an_unknown_size(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(ranges=False, chunked=True)
    [error] = downloads.sync(downloads.model(data))
    assert "declare sizeBytes" in str(error)
    assert downloads.sync(downloads.model(data, size_bytes=len(data))) == []
    assert downloads.published() == data


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[:-40], lambda data: b"PK\x03\x04" + data[4:], lambda data: data[:30]],
    ids=["cut", "zip", "head"],
)
def test_sync_publishes_nothing_that_is_no_whole_gguf(downloads: Downloads, spoil: object) -> None:
    assert callable(spoil)
    bad = spoil(downloads.serve())
    downloads.source.files["/m.gguf"] = bad
    [error] = downloads.sync(downloads.model(bad))
    assert isinstance(error, CorruptError)
    assert downloads.published() is None


def test_sync_refuses_what_nothing_verifies(downloads: Downloads) -> None:
    data = downloads.serve()
    [error] = downloads.sync(downloads.model(None))
    assert isinstance(error, RefusedError)
    assert "declare sha256" in str(error)
    assert downloads.sync(downloads.model(None), allow_unverified=True) == []
    assert downloads.published() == data


def _over_one_connection(downloads: Downloads) -> Downloads:
    """Asks for one run of bytes after the other."""
    return replace(downloads, settings=replace(downloads.settings, num_connections=1))


def _gone_from(offset: int) -> Callable[[Request], Behaviour]:
    """Serves the bytes before an offset and none after it, however they are asked for."""

    def behave(request: Request) -> Behaviour:
        span = request.range
        if span is None or span[1] <= offset:
            return Behaviour()
        return Behaviour(status=404) if span[0] >= offset else Behaviour(close_after_bytes=offset - span[0])

    return behave


def _interrupted(downloads: Downloads, data: bytes) -> Path:
    """Leaves a partial with blocks 0 to 3 of 8 and returns its journal."""
    downloads.source.behave = _gone_from(4 * MIB)
    [error] = _over_one_connection(downloads).sync(downloads.model(data))
    assert isinstance(error, GoneError)
    downloads.source.behave = lambda _: Behaviour()
    downloads.source.requests.clear()
    [journal] = downloads.partials.glob("*.journal")
    assert [line.split()[0] for line in journal.read_bytes().splitlines()[1:]] == [b"0", b"1", b"2", b"3"]
    return journal


def _asked(source: ModelSource) -> list[tuple[int, int]]:
    """Returns the spans of bodies, joined where they touch: bytes that were asked for twice are seen."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(request.range or (0, 0) for request in source.requests if request.range != (0, 1)):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def test_sync_asks_only_for_what_an_earlier_run_did_not_bring(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    _interrupted(downloads, data)
    assert _over_one_connection(downloads).sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == [(4 * MIB, 8 * MIB)]


def test_sync_fetches_the_block_of_a_torn_journal_line_again(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    journal = _interrupted(downloads, data)
    journal.write_bytes(journal.read_bytes()[:-3])
    assert _over_one_connection(downloads).sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == [(3 * MIB, 8 * MIB)]


def test_sync_fetches_a_block_again_whose_bytes_a_power_cut_took(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    journal = _interrupted(downloads, data)
    with journal.with_suffix(".data").open("r+b") as file:
        file.seek(MIB + 4096)
        file.write(bytes(4096))
    assert _over_one_connection(downloads).sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == [(1 * MIB, 2 * MIB), (4 * MIB, 8 * MIB)]


@pytest.mark.parametrize("garbage", [b"", b"\0" * 200, b"{}\n0 00000000\n", b"\xff\xfe 1"])
def test_sync_starts_anew_when_the_journal_is_garbage(downloads: Downloads, garbage: bytes) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    journal = _interrupted(downloads, data)
    journal.write_bytes(garbage)
    assert _over_one_connection(downloads).sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _asked(downloads.source) == [(0, 8 * MIB)]


def test_sync_resumes_nothing_of_another_size(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    _interrupted(downloads, data)
    short = bulk_gguf(2 * MIB)
    [journal] = downloads.partials.glob("*.journal")
    journal.rename(downloads.partials / f"{sha256(short)}.journal")
    journal.with_suffix(".data").rename(downloads.partials / f"{sha256(short)}.data")
    downloads.source.files["/m.gguf"] = short
    assert _over_one_connection(downloads).sync(downloads.model(short)) == []
    assert downloads.published() == short
    assert _asked(downloads.source) == [(0, len(short))]


def _play_hub(hub: ModelSource, cdn: ModelSource, data: bytes, headers: dict[str, str]) -> None:
    def behave(request: Request) -> Behaviour:
        return Behaviour(status=302, headers={"Location": f"{cdn.url}/blob?X-Signature=SECRET", **headers})

    hub.behave = behave
    cdn.behave = lambda _: Behaviour(body=data)


def _hub_model(file: str = "weights/m.gguf", revision: str = HUB_COMMIT) -> Model:
    return Model("m", "m.gguf", parse_source(f"hf://org/repo/{file}@{revision}"))


def _at_hub(downloads: Downloads, token: str | None = None) -> Downloads:
    return replace(downloads, settings=replace(downloads.settings, hub_endpoint=downloads.source.url, hub_token=token))


def test_sync_takes_the_digest_of_a_pinned_commit_from_the_hub(downloads: Downloads, other_source: ModelSource) -> None:
    data = bulk_gguf(2 * MIB)
    _play_hub(downloads.source, other_source, data, {"X-Linked-Etag": f'"{sha256(data)}"', "X-Repo-Commit": HUB_COMMIT})
    assert _at_hub(downloads).sync(_hub_model()) == []
    assert downloads.published() == data
    assert {request.path for request in downloads.source.requests} == {f"/org/repo/resolve/{HUB_COMMIT}/weights/m.gguf"}
    downloads.source.requests.clear()
    assert _at_hub(downloads).sync(_hub_model()) == []
    assert downloads.source.requests == []


def test_sync_takes_the_digest_of_a_renamed_repository(downloads: Downloads, other_source: ModelSource) -> None:
    data = bulk_gguf(2 * MIB)
    linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Repo-Commit": HUB_COMMIT}
    _play_hub(downloads.source, other_source, data, linked)
    at_new_name = downloads.source.behave
    downloads.source.behave = lambda r: _redirect("/new/name") if r.path.startswith("/org") else at_new_name(r)
    assert _at_hub(downloads).sync(_hub_model()) == []
    assert downloads.published() == data


def test_sync_refuses_bytes_that_the_hubs_digest_contradicts(downloads: Downloads, other_source: ModelSource) -> None:
    data = bulk_gguf(2 * MIB)
    linked = {"X-Linked-Etag": f'"{sha256(b"other")}"', "X-Repo-Commit": HUB_COMMIT}
    _play_hub(downloads.source, other_source, data, linked)
    [error] = _at_hub(downloads).sync(_hub_model())
    assert isinstance(error, CorruptError)
    assert downloads.published() is None


@pytest.mark.parametrize("revision", ["main", HUB_COMMIT[:8]])
def test_sync_names_the_commit_to_pin_when_the_revision_can_move(
    downloads: Downloads, other_source: ModelSource, revision: str
) -> None:
    data = bulk_gguf(2 * MIB)
    linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Repo-Commit": HUB_COMMIT}
    _play_hub(downloads.source, other_source, data, linked)
    [error] = _at_hub(downloads).sync(_hub_model(revision=revision))
    assert isinstance(error, RefusedError)
    assert f"@{HUB_COMMIT}" in str(error)


def test_sync_trusts_no_digest_that_comes_from_behind_a_redirect(downloads: Downloads, other_source: ModelSource) -> None:
    data = bulk_gguf(2 * MIB)
    downloads.source.behave = lambda _: _redirect(f"{other_source.url}/blob")
    other_source.behave = lambda _: Behaviour(body=data, headers={"X-Linked-Etag": f'"{sha256(data)}"'})
    [error] = _at_hub(downloads).sync(_hub_model())
    assert isinstance(error, RefusedError)


def test_sync_sends_the_token_to_the_hub_alone(downloads: Downloads, other_source: ModelSource) -> None:
    data = bulk_gguf(2 * MIB)
    linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Repo-Commit": HUB_COMMIT}
    _play_hub(downloads.source, other_source, data, linked)
    assert _at_hub(downloads, "hf_TOKEN").sync(_hub_model()) == []
    assert {request.headers.get("authorization") for request in downloads.source.requests} == {"Bearer hf_TOKEN"}
    assert {request.headers.get("authorization") for request in other_source.requests} == {None}


def test_sync_sends_the_token_to_no_other_source(downloads: Downloads, other_source: ModelSource) -> None:
    data = downloads.serve()
    elsewhere = replace(downloads, settings=replace(downloads.settings, hub_endpoint=other_source.url, hub_token="hf_TOKEN"))
    assert elsewhere.sync(downloads.model(data)) == []
    assert not any("authorization" in request.headers for request in downloads.source.requests)


def test_sync_takes_nothing_from_netrc(downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password NETRC\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    data = downloads.serve()
    downloads.source.behave = lambda r: _redirect("/x.gguf") if r.path == "/m.gguf" else Behaviour(body=data)
    assert downloads.sync(downloads.model(data)) == []
    assert not any("authorization" in request.headers for request in downloads.source.requests)


def test_sync_says_denied_when_the_hub_gates_the_file(downloads: Downloads) -> None:
    downloads.source.behave = lambda _: Behaviour(status=403, headers={"X-Error-Code": "GatedRepo"})
    [error] = _at_hub(downloads, "hf_TOKEN").sync(_hub_model())
    assert isinstance(error, DeniedError)
    assert "hf_TOKEN" not in str(error)


@pytest.mark.parametrize(
    "behaviour", [Behaviour(status=503), Behaviour(status=403), Behaviour(close_after_bytes=0), Behaviour(status=418)]
)
def test_sync_tells_no_secret_of_a_signed_address(
    downloads: Downloads, other_source: ModelSource, behaviour: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    data = downloads.serve()
    signed = f"{other_source.url.replace('//', '//user:PASSWORD@')}/blob?X-Signature=SECRET#FRAGMENT"
    downloads.source.behave = lambda _: _redirect(signed)
    other_source.behave = lambda r: Behaviour(body=data) if r.range == (0, 1) else behaviour
    model = downloads.model(data, source=f"{downloads.source.url}/m.gguf?token=QUERY")
    errors = downloads.sync(model)
    said = " ".join([*map(str, errors), *(r.getMessage() for r in caplog.records if r.name.startswith("nlocalmodels"))])
    assert said
    for secret in ("SECRET", "PASSWORD", "QUERY", "FRAGMENT"):
        assert secret not in said


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("/m.gguf", "redirects"),
        ("http://169.254.169.254/latest/meta-data", "link-local"),
        ("http://2852039166/latest/meta-data", "link-local"),
        ("http://[::ffff:169.254.169.254]/latest/meta-data", "link-local"),
        ("http://[fe80::1]/", "link-local"),
        ("ftp://127.0.0.1/m.gguf", "not https"),
        ("file:///etc/passwd", "not https"),
        ("http://[broken/m.gguf", "malformed"),
        ("http://127.0.0.1:99999/m.gguf", "malformed"),
        ("http://a..b/m.gguf", "not an address"),
    ],
)
def test_sync_refuses_a_redirect(downloads: Downloads, location: str, problem: str) -> None:
    downloads.source.behave = lambda _: _redirect(location)
    [error] = downloads.sync(downloads.model(b"x"))
    assert isinstance(error, RefusedError), error
    assert problem in str(error)


def test_sync_reads_no_body_of_a_redirect(downloads: Downloads) -> None:
    data = downloads.serve()
    endless = Behaviour(status=302, headers={"Location": "/real.gguf"}, body=bytes(64 * MIB))
    downloads.source.behave = lambda r: endless if r.path == "/m.gguf" else Behaviour(body=data)
    assert downloads.sync(downloads.model(data)) == []
    [redirect] = [request for request in downloads.source.requests if request.path == "/m.gguf"]
    assert redirect.sent_bytes < 32 * MIB


def test_sync_refuses_before_fetching_when_space_is_short(downloads: Downloads, small_mount: Path) -> None:
    data = downloads.serve(num_bytes=9 * MIB)
    [error] = replace(downloads, root=small_mount).sync(downloads.model(data))
    assert isinstance(error, SpaceError)
    assert f"needs {len(data)} bytes more" in str(error)
    assert [request.range for request in downloads.source.requests] == [(0, 1)]


def test_sync_keeps_what_arrived_when_the_volume_fills_meanwhile(downloads: Downloads, small_mount: Path) -> None:
    data = downloads.serve(num_bytes=6 * MIB)
    filler = small_mount / "filler"
    on_mount = replace(downloads, root=small_mount)

    def behave(request: Request) -> Behaviour:
        if request.range != (0, 1):
            filler.write_bytes(bytes(5 * MIB))
        return Behaviour()

    one = replace(on_mount, settings=replace(downloads.settings, num_connections=1))
    downloads.source.behave = behave
    [error] = one.sync(downloads.model(data))
    assert isinstance(error, SpaceError)
    assert "is full" in str(error)
    filler.unlink()
    downloads.source.behave = lambda _: Behaviour()
    downloads.source.requests.clear()
    assert one.sync(downloads.model(data)) == []
    assert one.published() == data
    assert downloads.source.sent_bytes <= len(data) - MIB


def test_sync_says_so_when_the_volume_is_read_only(downloads: Downloads, small_mount: Path) -> None:
    data = downloads.serve()
    subprocess.run(["mount", "-o", "remount,ro", str(small_mount)], check=True)
    [error] = replace(downloads, root=small_mount).sync(downloads.model(data))
    assert isinstance(error, SpaceError)
    assert "read-only" in str(error)


def test_sync_needs_no_writing_when_all_is_there(downloads: Downloads, small_mount: Path) -> None:
    data = downloads.serve()
    on_mount = replace(downloads, root=small_mount)
    assert on_mount.sync(downloads.model(data)) == []
    subprocess.run(["mount", "-o", "remount,ro", str(small_mount)], check=True)
    assert on_mount.sync(downloads.model(data)) == []


@pytest.mark.parametrize(
    "in_the_way", [".nlocalmodels", ".nlocalmodels/verified", ".nlocalmodels/sets", ".nlocalmodels/partials"]
)
def test_sync_says_so_when_a_file_is_where_a_folder_belongs(downloads: Downloads, in_the_way: str) -> None:
    data = downloads.serve()
    path = downloads.root / in_the_way
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    try:
        errors = downloads.sync(downloads.model(data))
    except DownloaderError as error:
        errors = [error]
    assert [type(error) for error in errors] == [SpaceError]


def test_sync_of_two_at_once_on_one_volume_publishes_the_file(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=6 * MIB)
    both_probed = threading.Barrier(2)

    def behave(request: Request) -> Behaviour:
        if request.range == (0, 1):
            both_probed.wait(10)
        return Behaviour()

    downloads.source.behave = behave
    results: list[list[DownloaderError]] = []
    threads = [threading.Thread(target=lambda: results.append(downloads.sync(downloads.model(data)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[], []]
    assert downloads.published() == data
    assert _replaced(downloads) == []
    downloads.source.requests.clear()
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.source.requests == []


def _losing(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None], num_times: int) -> list[Path]:
    """Lets another process act just before a partial gets its name, as one can that took this one for dead."""
    lost: list[Path] = []
    replacing = os.replace

    def replaced(source: Path, target: Path) -> None:
        if Path(source).suffix == ".data" and len(lost) < num_times:
            lost.append(Path(source))
            act(Path(source))
        replacing(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    return lost


def test_sync_takes_the_file_of_another_process_that_was_faster_by_a_moment(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = downloads.serve()

    def publish_and_take_away(partial: Path) -> None:
        (downloads.root / "m.gguf").write_bytes(data)
        Volume(downloads.root, "other").record_verified("m.gguf", Verified(sha256(data), "https://source.test/m.gguf"))
        partial.unlink()

    lost = _losing(monkeypatch, publish_and_take_away, num_times=1)
    assert downloads.sync(downloads.model(data)) == []
    assert len(lost) == 1
    assert downloads.published() == data
    assert _asked(downloads.source) == [(0, len(data))]
    assert len(_manifests(downloads)) == 1
    assert _replaced(downloads) == []


def test_sync_fetches_again_what_another_process_took_away_before_it_was_published(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = downloads.serve()
    lost = _losing(monkeypatch, Path.unlink, num_times=1)
    assert downloads.sync(downloads.model(data)) == []
    assert len(lost) == 1
    assert downloads.published() == data


def test_sync_names_the_volume_when_others_take_everything_away(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    data = downloads.serve()
    _losing(monkeypatch, Path.unlink, num_times=100)
    [failure] = downloads.sync(downloads.model(data))
    assert isinstance(failure, SpaceError)
    assert "removed by others" in str(failure)


def test_sync_closes_every_descriptor(downloads: Downloads) -> None:
    data = downloads.serve()
    bad = replace(downloads.model(data, "bad"), sha256=sha256(b"other"), source=downloads.model(data).source)
    downloads.sync(downloads.model(data), bad)

    def open_files() -> list[str]:
        targets = []
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            except FileNotFoundError:
                continue
        return [target for target in targets if target.startswith(str(downloads.root))]

    assert open_files() == []
