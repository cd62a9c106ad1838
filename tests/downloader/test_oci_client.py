from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import CorruptError, DeniedError, GoneError, RefusedError
from nlocalmodels_downloader.oci_client import OciClient
from nlocalmodels_downloader.sources import parse_artifact, parse_source
from support.downloads import MIB, Downloads, delay_first_stream, sha256
from support.gguf_files import bulk_gguf
from support.model_source import Behaviour
from support.oci_registry import BASIC, GGUF_TYPE, PASSWORD, USER, OciRegistry, TokenAuthority, running_registry

REPOSITORY = "team/models/small"
DATA = bulk_gguf(5 * MIB + 17, 1)
OTHER = bulk_gguf(MIB, 2)


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    with running_registry(tmp_path_factory.mktemp("open")) as running:
        yield running


@pytest.fixture(scope="module")
def token_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    with running_registry(tmp_path_factory.mktemp("tokens"), with_tokens=True) as running:
        running.push(REPOSITORY, "v1", {"m.gguf": DATA})
        yield running


@pytest.fixture
def authority(token_registry: OciRegistry) -> TokenAuthority:
    assert token_registry.authority is not None
    token_registry.authority.seconds = 60
    token_registry.authority.scopes.clear()
    return token_registry.authority


def _towards(downloads: Downloads, registry: OciRegistry, docker_config: Path | None = None) -> Downloads:
    settings = replace(downloads.settings, plain_http_registries=frozenset({registry.host}), docker_config=docker_config)
    return replace(downloads, settings=settings)


def _docker_config(folder: Path, registry: OciRegistry, password: str = PASSWORD) -> Path:
    path = folder / "config.json"
    entry = {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}
    path.write_text(json.dumps({"auths": {registry.host: entry}}))
    return path


def test_artifact_of_a_pinned_manifest_needs_no_other_digest(downloads: Downloads, open_registry: OciRegistry) -> None:
    digest = open_registry.push(REPOSITORY, "pinned", {"m.gguf": DATA})
    towards = _towards(downloads, open_registry)
    assert towards.sync(towards.model(None, source=f"oci://{open_registry.host}/{REPOSITORY}@{digest}")) == []
    assert towards.published() == DATA


def test_artifact_of_a_tag_is_held_to_the_declared_digest(downloads: Downloads, open_registry: OciRegistry) -> None:
    digest = open_registry.push(REPOSITORY, "moving", {"m.gguf": DATA})
    towards = _towards(downloads, open_registry)
    source = f"oci://{open_registry.host}/{REPOSITORY}:moving"
    (error,) = towards.sync(towards.model(None, source=source))
    assert isinstance(error, RefusedError)
    assert f"name the manifest @{digest}" in str(error)
    # Another content is found out before its bytes are fetched.
    (error,) = towards.sync(towards.model(OTHER, source=source))
    assert isinstance(error, CorruptError)
    assert sha256(DATA) in str(error)
    assert towards.sync(towards.model(DATA, source=source)) == []
    assert towards.published() == DATA


@pytest.mark.parametrize(
    ("media_type", "named"), [(GGUF_TYPE, False), ("application/octet-stream", True)], ids=["by its type", "by its name"]
)
def test_model_is_found_among_other_files(
    downloads: Downloads, open_registry: OciRegistry, media_type: str, named: bool
) -> None:
    files = {"m.gguf": DATA} | ({"LICENSE": b"free"} if named else {})
    digest = open_registry.push(REPOSITORY, "found", files, media_type, named)
    towards = _towards(downloads, open_registry)
    assert towards.sync(towards.model(None, source=f"oci://{open_registry.host}/{REPOSITORY}@{digest}")) == []
    assert towards.published() == DATA


def test_one_of_several_files_is_chosen_by_name(downloads: Downloads, open_registry: OciRegistry) -> None:
    digest = open_registry.push(REPOSITORY, "several", {"big model.gguf": DATA, "small.gguf": OTHER})
    towards = _towards(downloads, open_registry)
    source = f"oci://{open_registry.host}/{REPOSITORY}@{digest}"
    (error,) = towards.sync(towards.model(None, source=source))
    assert isinstance(error, RefusedError)
    assert "big model.gguf, small.gguf; add #FILE" in str(error)
    (error,) = towards.sync(towards.model(None, source=f"{source}#no.gguf"))
    assert isinstance(error, GoneError)
    assert "does not hold 'no.gguf', but big model.gguf, small.gguf" in str(error)
    assert towards.sync(towards.model(None, source=f"{source}#big model.gguf")) == []
    assert towards.published() == DATA


def test_artifact_without_a_model_is_named(downloads: Downloads, open_registry: OciRegistry) -> None:
    digest = open_registry.push(REPOSITORY, "text", {"README.md": b"words"}, "text/markdown")
    towards = _towards(downloads, open_registry)
    (error,) = towards.sync(towards.model(None, source=f"oci://{open_registry.host}/{REPOSITORY}@{digest}"))
    assert isinstance(error, GoneError)
    assert "README.md" in str(error)


def test_index_is_refused_with_what_it_lists(downloads: Downloads, open_registry: OciRegistry) -> None:
    digest = open_registry.push(REPOSITORY, "entry", {"m.gguf": DATA})
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    open_registry.put_manifest(REPOSITORY, "index", index)
    towards = _towards(downloads, open_registry)
    (error,) = towards.sync(towards.model(DATA, source=f"oci://{open_registry.host}/{REPOSITORY}:index"))
    assert isinstance(error, RefusedError)
    assert digest in str(error)


@pytest.mark.parametrize("name", [f"{REPOSITORY}:no", f"nobody/nothing@sha256:{'0' * 64}"])
def test_artifact_that_is_not_there_is_gone(downloads: Downloads, open_registry: OciRegistry, name: str) -> None:
    towards = _towards(downloads, open_registry)
    (error,) = towards.sync(towards.model(DATA, source=f"oci://{open_registry.host}/{name}"))
    assert isinstance(error, GoneError)


def test_registry_that_lies_about_a_manifest_is_found_out(downloads: Downloads) -> None:
    host = downloads.source.url.removeprefix("http://")
    pinned = f"sha256:{'1' * 64}"
    downloads.source.files[f"/v2/{REPOSITORY}/manifests/{pinned}"] = b'{"layers": []}'
    settings = replace(downloads.settings, plain_http_registries=frozenset({host}))
    (error,) = replace(downloads, settings=settings).sync(downloads.model(None, source=f"oci://{host}/{REPOSITORY}@{pinned}"))
    assert isinstance(error, CorruptError)
    assert "sent a manifest of digest" in str(error)


@pytest.mark.parametrize("realm", ["x", "https://[::1", "https://host:99999/token", "file:///etc/passwd"])
def test_sign_in_at_no_address_is_refused(downloads: Downloads, realm: str) -> None:
    host = downloads.source.url.removeprefix("http://")
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
    downloads.source.behave = lambda _: Behaviour(status=401, headers=challenge)
    settings = replace(downloads.settings, plain_http_registries=frozenset({host}))
    (error,) = replace(downloads, settings=settings).sync(downloads.model(DATA, source=f"oci://{host}/{REPOSITORY}:v1"))
    assert isinstance(error, RefusedError)
    assert "to sign in" in str(error)


def test_token_is_asked_for_with_the_user_and_told_to_nobody(
    downloads: Downloads,
    token_registry: OciRegistry,
    authority: TokenAuthority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    towards = _towards(downloads, token_registry, _docker_config(tmp_path, token_registry))
    assert towards.sync(towards.model(DATA, source=f"oci://{token_registry.host}/{REPOSITORY}:v1")) == []
    assert towards.published() == DATA
    assert authority.scopes == [(f"repository:{REPOSITORY}:pull", f"Basic {BASIC}")]
    written = b"".join(path.read_bytes() for path in towards.root.rglob("*") if path.is_file() and path.suffix != ".gguf")
    for secret in (PASSWORD, BASIC, "Bearer"):
        assert secret not in caplog.text
        assert secret.encode() not in written


def test_token_that_has_ended_is_renewed(
    downloads: Downloads,
    token_registry: OciRegistry,
    authority: TokenAuthority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority.seconds = 2
    delay_first_stream(monkeypatch, OciClient, seconds=3.0)
    towards = _towards(downloads, token_registry, _docker_config(tmp_path, token_registry))
    assert towards.sync(towards.model(DATA, source=f"oci://{token_registry.host}/{REPOSITORY}:v1")) == []
    assert towards.published() == DATA
    assert len(authority.scopes) > 1
    assert "is refused (401)" in caplog.text


def test_wrong_password_is_denied_and_told_to_nobody(
    downloads: Downloads,
    token_registry: OciRegistry,
    authority: TokenAuthority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    towards = _towards(downloads, token_registry, _docker_config(tmp_path, token_registry, "wrong-password"))
    (error,) = towards.sync(towards.model(DATA, source=f"oci://{token_registry.host}/{REPOSITORY}:v1"))
    assert isinstance(error, DeniedError)
    assert authority.scopes
    assert "wrong-password" not in f"{error} {caplog.text}"


def test_nobody_is_denied_where_a_user_is_wanted(
    downloads: Downloads, token_registry: OciRegistry, authority: TokenAuthority
) -> None:
    towards = _towards(downloads, token_registry)
    (error,) = towards.sync(towards.model(DATA, source=f"oci://{token_registry.host}/{REPOSITORY}:v1"))
    assert isinstance(error, DeniedError)
    assert authority.scopes == [(f"repository:{REPOSITORY}:pull", None)]


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"auths": {"HOST": {"auth": "no base64"}}}'])
def test_unusable_config_is_named_without_its_content(
    downloads: Downloads, token_registry: OciRegistry, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content.replace("HOST", token_registry.host))
    towards = _towards(downloads, token_registry, path)
    (error,) = towards.sync(towards.model(DATA, source=f"oci://{token_registry.host}/{REPOSITORY}:v1"))
    assert isinstance(error, RefusedError)
    assert str(path) in str(error)
    assert "no base64" not in str(error)


def test_mirror_is_asked_when_the_registry_has_nothing(downloads: Downloads, open_registry: OciRegistry) -> None:
    data = downloads.serve()
    towards = _towards(downloads, open_registry)
    model = towards.model(data, source=f"oci://{open_registry.host}/{REPOSITORY}:no")
    assert towards.sync(replace(model, mirrors=(parse_source(f"{downloads.source.url}/m.gguf"),))) == []
    assert towards.published() == data


def test_registry_is_asked_over_tls_unless_named_otherwise() -> None:
    client = OciClient(lambda *_: None, None, frozenset())  # type: ignore[arg-type]
    assert client._base(parse_artifact("oci://docker.io/ai/smollm2:latest")) == "https://registry-1.docker.io/v2/ai/smollm2"
