from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader import s3_client
from nlocalmodels_downloader.errors import DeniedError, ExhaustedError, GoneError, RefusedError
from nlocalmodels_downloader.http_client import HttpClient
from nlocalmodels_downloader.sources import parse_source
from support.downloads import MIB, Downloads, delay_first_stream
from support.gguf_files import bulk_gguf
from support.s3_store import ACCESS_KEY, SECRET_KEY, S3Store, running_store

BUCKET = "team.models"
KEY = "a folder/100% m+1.gguf"
DATA = bulk_gguf(5 * MIB + 17, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with running_store(tmp_path_factory.mktemp("s3")) as running:
        running.put(BUCKET, KEY, DATA)
        yield running


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's, and nobody else's."""
    for name in (
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_SESSION_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture
def s3_downloads(downloads: Downloads, store: S3Store) -> Downloads:
    return replace(downloads, settings=replace(downloads.settings, s3_endpoint=store.url))


def _everything_written(root: Path) -> bytes:
    """Returns all that a run left on the volume but the models themselves."""
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".gguf")


def test_object_is_fetched_verified_and_published(s3_downloads: Downloads, caplog: pytest.LogCaptureFixture) -> None:
    assert s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}")) == []
    assert s3_downloads.published() == DATA
    written = _everything_written(s3_downloads.root)
    for secret in (SECRET_KEY, ACCESS_KEY, "X-Amz-Signature"):
        assert secret not in caplog.text
        assert secret.encode() not in written


def test_object_whose_signature_has_ended_is_signed_anew(
    s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(s3_client, "_EXPIRES_SECONDS", 2)
    delay_first_stream(monkeypatch, s3_client.S3Client, seconds=3.0)
    assert s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}")) == []
    assert s3_downloads.published() == DATA
    assert "is refused (403)" in caplog.text
    assert "X-Amz-Signature" not in caplog.text


def test_object_other_than_declared_is_not_published(s3_downloads: Downloads) -> None:
    other = bulk_gguf(len(DATA), 2)
    (error,) = s3_downloads.sync(s3_downloads.model(other, source=f"s3://{BUCKET}/{KEY}"))
    assert not isinstance(error, ExhaustedError)
    assert s3_downloads.published() is None


def test_object_without_a_digest_is_refused(s3_downloads: Downloads) -> None:
    """An S3 ETag is no digest of the content."""
    (error,) = s3_downloads.sync(s3_downloads.model(None, source=f"s3://{BUCKET}/{KEY}"))
    assert isinstance(error, RefusedError)
    assert "declare sha256" in str(error)


def test_wrong_secret_is_denied_and_told_to_nobody(
    s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    (error,) = s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}"))
    assert isinstance(error, DeniedError)
    assert f"s3://{BUCKET}/{KEY}" in str(error)
    assert "check credentials" in str(error)
    for text in (str(error), caplog.text):
        assert "wrong-secret" not in text
        assert "X-Amz" not in text


def test_without_credentials_the_address_is_not_signed(
    s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (error,) = s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}"))
    assert isinstance(error, DeniedError)
    assert "only public objects can be read" in caplog.text


def test_public_object_is_fetched_without_credentials(s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain HTTP source of the other tests stands for a public bucket: it asks for no signature."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    data = s3_downloads.serve("bucket/m")
    public = replace(s3_downloads, settings=replace(s3_downloads.settings, s3_endpoint=s3_downloads.source.url))
    assert public.sync(public.model(data, source="s3://bucket/m.gguf")) == []
    assert public.published() == data


@pytest.mark.parametrize("source", [f"s3://{BUCKET}/no.gguf", "s3://no-such-bucket/m.gguf"])
def test_object_that_is_not_there_is_named(s3_downloads: Downloads, source: str) -> None:
    (error,) = s3_downloads.sync(s3_downloads.model(DATA, source=source))
    assert isinstance(error, GoneError)
    assert source in str(error)


def test_mirror_is_asked_where_botocore_is_missing(
    s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    data = s3_downloads.serve()
    (error,) = s3_downloads.sync(s3_downloads.model(data, source="s3://bucket/m.gguf"))
    assert isinstance(error, RefusedError)
    assert "take the image downloader-s3" in str(error)
    assert "region" not in str(error)
    mirrored = replace(
        s3_downloads.model(data, source="s3://bucket/m.gguf"),
        mirrors=(parse_source(f"{s3_downloads.source.url}/m.gguf"),),
    )
    assert s3_downloads.sync(mirrored) == []
    assert s3_downloads.published() == data


def test_settings_that_botocore_refuses_are_named(s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    (error,) = s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}"))
    assert isinstance(error, RefusedError)
    assert "nobody" in str(error)


def _take_a_web_identity(monkeypatch: pytest.MonkeyPatch, folder: Path, endpoint: str) -> None:
    """As a pod whose service account stands for a role."""
    token = folder / "token"
    token.write_text("identity-0123456789")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/models")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


class _RefusingHandler(http.server.BaseHTTPRequestHandler):
    """Answers as Amazon's STS does to who may not assume a role."""

    def do_POST(self) -> None:
        body = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_refused_role_is_denied(s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _RefusingHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _take_a_web_identity(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
        (error,) = s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}"))
        server.shutdown()
        thread.join()
    assert isinstance(error, DeniedError)
    assert "refused (AccessDenied); check the role" in str(error)


@pytest.mark.parametrize("answers", [False, True], ids=["nobody answers", "something else answers"])
def test_credentials_that_cannot_be_had_are_tried_for_again(
    s3_downloads: Downloads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: bool
) -> None:
    _take_a_web_identity(monkeypatch, tmp_path, s3_downloads.source.url if answers else "http://127.0.0.1:1")
    (error,) = s3_downloads.sync(s3_downloads.model(DATA, source=f"s3://{BUCKET}/{KEY}"))
    assert isinstance(error, ExhaustedError)
    assert "no credentials for" in str(error)
    assert "identity-0123456789" not in caplog.text


@pytest.mark.parametrize(
    ("bucket", "address"),
    [
        ("my-models", "https://my-models.s3.eu-central-1.amazonaws.com/a/m.gguf?"),
        # Amazon's certificates are for one name below its own.
        ("my.models", "https://s3.eu-central-1.amazonaws.com/my.models/a/m.gguf?"),
    ],
)
def test_address_at_amazon_is_one_that_its_certificates_are_for(bucket: str, address: str) -> None:
    client = s3_client.S3Client(HttpClient(5.0, 5.0), None, "eu-central-1")
    assert client._sign(bucket, "a/m.gguf").startswith(f"{address}X-Amz-Algorithm=AWS4-HMAC-SHA256")
