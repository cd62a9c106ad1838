from __future__ import annotations

import json

import pytest

from nlocalmodels_downloader.errors import DownloaderError
from nlocalmodels_downloader.oci_auth import Challenge, parse_challenge, token_of
from nlocalmodels_downloader.oci_manifest import Layer, model_layer

SHA256 = "a" * 64
LAYER = {"digest": f"sha256:{SHA256}", "size": 3, "mediaType": "application/vnd.docker.ai.gguf.v3"}
ODD: list[object] = [None, 1, True, "x", [], {}, [1], [[]], {"a": 1}, -1]


def test_layer_of_modelpack_is_named_by_its_file_path() -> None:
    annotations = {"org.cncf.model.filepath": "m.gguf"}
    layer = {**LAYER, "mediaType": "application/vnd.cncf.model.weight.v1.raw", "annotations": annotations}
    found = model_layer(json.dumps({"layers": [{**LAYER, "mediaType": "text/plain"}, layer]}).encode(), "a", None)
    assert found == Layer(SHA256, 3, "application/vnd.cncf.model.weight.v1.raw", "m.gguf")


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("key", ["", "manifests", "layers", "layer", "digest", "size"])
def test_manifest_of_another_shape_is_refused_as_one(key: str, odd: object) -> None:
    if key == "size" and odd == 1:
        odd = "1"
    manifest = {
        "": odd,
        "manifests": {"manifests": odd},
        "layers": {"layers": odd},
        "layer": {"layers": [odd]},
    }.get(key, {"layers": [{**LAYER, key: odd}]})
    with pytest.raises(DownloaderError):
        model_layer(json.dumps(manifest).encode(), "a", None)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"<html>", b"[" * 100_000, b"1" * 5000], ids=lambda body: str(body[:6]))
def test_answer_that_is_no_json_is_neither_manifest_nor_token(body: bytes) -> None:
    with pytest.raises(DownloaderError):
        model_layer(body, "a", None)
    assert token_of(body) is None


@pytest.mark.parametrize("odd", [*ODD, "two words", "", "line\n", "\u00e9"], ids=repr)
def test_token_is_what_fits_into_a_header(odd: object) -> None:
    assert token_of(json.dumps(odd).encode()) is None
    assert token_of(json.dumps({"token": odd}).encode()) == (odd if odd == "x" else None)
    assert token_of(b'{"access_token": "abc.def_1"}') == "abc.def_1"


def test_challenge_is_read_in_whatever_case() -> None:
    header = 'bearer REALM="https://auth.example/token?x=1",service="registry",scope="repository:a/b:pull"'
    challenge = parse_challenge(header)
    assert challenge == Challenge("bearer", "https://auth.example/token?x=1", "registry", "repository:a/b:pull")
    assert challenge.token_url("unused") == ("https://auth.example/token?x=1&service=registry&scope=repository%3Aa%2Fb%3Apull")
    assert Challenge("bearer", "https://auth.example", "", "").token_url("a:b") == "https://auth.example?scope=a%3Ab"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer realm=x", "Negotiate", 'Digest realm="x"'])
def test_challenge_of_another_kind_is_none(header: str) -> None:
    assert parse_challenge(header) is None
