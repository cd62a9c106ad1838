from __future__ import annotations

import pytest

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.sources import Artifact, origin, parse_artifact, parse_source, redact, split_s3
from support.downloads import HUB_COMMIT


def test_source_of_the_hub_resolves_against_its_endpoint() -> None:
    source = parse_source(f"hf://org/repo/sub dir/m.gguf@{HUB_COMMIT}")
    assert source.url("https://hub.example") == f"https://hub.example/org/repo/resolve/{HUB_COMMIT}/sub%20dir/m.gguf"
    assert source.is_pinned


def test_source_of_the_hub_keeps_a_revision_with_a_slash_together() -> None:
    source = parse_source("hf://org/repo/m.gguf@refs/pr/1")
    assert source.url("https://hub.example") == "https://hub.example/org/repo/resolve/refs%2Fpr%2F1/m.gguf"
    assert not source.is_pinned


def test_source_over_http_is_its_own_address() -> None:
    source = parse_source("https://example.org:8443/m.gguf?x=1")
    assert source.url("https://hub.example") == "https://example.org:8443/m.gguf?x=1"
    assert not source.is_pinned
    assert str(source) == "https://example.org:8443/m.gguf"


def test_source_in_a_registry_is_pinned_by_its_manifest_alone() -> None:
    digest = f"sha256:{'a' * 64}"
    pinned = parse_source(f"oci://ghcr.io:5000/org/m:v1@{digest}#a file.gguf")
    assert pinned.is_oci
    assert pinned.is_pinned
    assert parse_artifact(pinned.text) == Artifact("ghcr.io:5000", "org/m", "v1", digest, "a file.gguf")
    assert not parse_source("oci://ghcr.io/org/m:v1").is_pinned


def test_source_in_an_object_store_is_a_bucket_and_a_literal_key() -> None:
    source = parse_source("s3://my.bucket-1/a folder/100%/m+1.gguf")
    assert source.is_s3
    assert not source.is_pinned
    assert split_s3(source.text) == ("my.bucket-1", "a folder/100%/m+1.gguf")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m.gguf",
        "ftp://h/x",
        "https://",
        "https://h:99999/x",
        "https://h:0/x",
        "https://[::1/x",
        "oci://ghcr.io/org/m",
        "oci://ghcr.io/org/m@sha1:00",
        "oci://ghcr.io/Org/m:v1",
        "oci://user:secret@ghcr.io/org/m:v1",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket//m.gguf",
        "s3://bucket/folder/",
        "s3://b/m.gguf",
        "s3://user:secret@bucket/m.gguf",
        "s3://bucket/m.gguf?versionId=1",
        "hf://org/m.gguf@main",
        "hf://org/repo/m.gguf",
        "hf://org/repo/../x/m.gguf@main",
        "hf://org/repo/m.gguf@",
    ],
)
def test_source_is_refused_when_malformed(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_source(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:pass@h:1/p/q?sig=s#f", "https://h:1/p/q"),
        ("https://h/p", "https://h/p"),
        ("https://[broken/p?sig=s", "(a malformed URL)"),
    ],
)
def test_redact_leaves_no_secret(url: str, expected: str) -> None:
    assert redact(url) == expected


def test_origin_is_scheme_host_and_port() -> None:
    assert origin("https://Hub.Example/a") == origin("https://hub.example:443/b")
    assert origin("https://hub.example") != origin("http://hub.example")
    assert origin("https://hub.example") != origin("https://hub.example:8443")
    assert origin("https://hub.example") != origin("https://hub.example.evil.org")
