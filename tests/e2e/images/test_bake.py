"""A person types `make bake`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import run as make_run
from support.gguf_files import write_llama
from support.image_runs import ImageArchive, Layer, Run, running
from support.model_source import ModelSource
from support.serving import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

IMAGE = "localhost/nlocalmodels/test-baked:two-models"


def bake(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(make_run.ROOT / "tools" / "bake.py"), "--model-path", str(tmp_path / "kept"), *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "NO_PROXY": "*"}
    )


def declare(tmp_path: Path, source: ModelSource) -> Path:
    """Serves two models, and declares them in an order of its own."""
    models = []
    for seed, model_id in enumerate(("second", "first")):
        data = write_llama(tmp_path / f"{model_id}.gguf", seed=seed).read_bytes()
        source.files[f"/{model_id}"] = data
        facts = {"sha256": hashlib.sha256(data).hexdigest(), "sizeBytes": len(data)}
        models.append({"id": model_id, "file": f"{model_id}.Q8_0.gguf", "source": f"{source.url}/{model_id}", **facts})
    path = tmp_path / "downloads.yaml"
    path.write_text(yaml.safe_dump({"modelPath": "/app/models", "models": models}))
    return path


def files(layer: Layer, folder: str) -> dict[str, int]:
    """Returns the files of a layer below a folder, with their modes."""
    return {member.name.removeprefix(folder): member.mode & 0o777 for member in layer.members if member.isfile()}


def printed_values(said: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(said.partition("helm install -f FILE):\n")[2])
    return values


def test_baked_server_has_a_layer_per_model_and_serves_them(tmp_path: Path) -> None:
    source = ModelSource()
    archive = tmp_path / "baked.tar"
    with source.running():
        config = declare(tmp_path, source)
        options = ["--config", str(config), "--image", IMAGE, "--archive", str(archive)]
        baked = bake(tmp_path, *options)
        assert baked.returncode == 0, baked.stdout + baked.stderr
        num_requests = len(source.requests)
        again = bake(tmp_path, *options)
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(source.requests) == num_requests
    found = ImageArchive(archive)
    assert found.names == [IMAGE]
    *_, first, second, state = found.layers()
    assert files(first, "app/models/") == {"first.Q8_0.gguf": 0o644}
    assert files(second, "app/models/") == {"second.Q8_0.gguf": 0o644}
    set_id = found.config["Labels"]["nlocalmodels.set"]
    assert files(state, "app/models/.nlocalmodels/") == {f"sets/{set_id}.json": 0o644}
    assert all(member.mode & 0o005 == 0o005 for member in state.members if member.isdir())
    manifest = json.loads(found.read(-1, f"app/models/.nlocalmodels/sets/{set_id}.json"))
    assert [model["id"] for model in manifest["models"]] == ["first", "second"]
    assert f"it holds set {set_id}: first.Q8_0.gguf, second.Q8_0.gguf" in baked.stdout
    values = printed_values(baked.stdout)
    assert values["storage"]["baked"] == {
        "image": {"repository": "localhost/nlocalmodels/test-baked", "tag": "two-models"},
        "mount": "container",
    }
    declared = {model["id"]: model for model in yaml.safe_load(config.read_text())["models"]}
    assert values["models"] == {"set": "none", "add": {name: _without_id(declared[name]) for name in ("first", "second")}}

    address = f"http://127.0.0.1:{free_port()}"
    environ = {"PORT": address.rpartition(":")[2], "DEFAULT_MODEL": "second"}
    with running(Run(IMAGE, archive, environ=environ, user=(1_000_690_000, 0)), tmp_path / "log") as container:
        container.wait_for(lambda: _answers(f"{address}/readyz"))
        served = httpx.get(f"{address}/v1/models", trust_env=False).json()["data"]
        assert [model["id"] for model in served] == ["first", "second"]
        assert container.terminate() == 0, container.log()


def test_models_alone_are_an_image_for_an_image_volume(tmp_path: Path) -> None:
    source = ModelSource()
    archive = tmp_path / "models.tar"
    image = "localhost/nlocalmodels/test-baked:models-alone"
    with source.running():
        options = ["--config", str(declare(tmp_path, source)), "--image", image, "--archive", str(archive)]
        baked = bake(tmp_path, *options, "--layout", "models")
    assert baked.returncode == 0, baked.stdout + baked.stderr
    names = [[member.name for member in layer.members if member.isfile()] for layer in ImageArchive(archive).layers()]
    assert names[:2] == [["first.Q8_0.gguf"], ["second.Q8_0.gguf"]]
    assert len(names) == 3
    assert names[2][0].startswith(".nlocalmodels/sets/")
    assert printed_values(baked.stdout)["storage"]["baked"]["mount"] == "volume"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--models", "gpt-4", "--image", "a:b"], "'gpt-4' is not in the catalogue; there are starter"),
        (["--models", "starter", "--image", "no-tag"], "IMAGE: 'no-tag' is no image name"),
        (["--models", " ", "--image", "a:b"], "MODELS: names no model"),
        (["--config", "/nowhere.yaml", "--image", "a:b"], "/nowhere.yaml: cannot be read"),
    ],
)
def test_mistake_is_named_with_its_remedy(tmp_path: Path, options: list[str], expected: str) -> None:
    ended = bake(tmp_path, *options)
    assert ended.returncode != 0
    assert expected in ended.stderr


def _without_id(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "id"}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
