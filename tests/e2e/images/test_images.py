"""The images of the server and the downloader: what is in them, and that they run as a restricted pod would run them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest
import yaml

import images
from support.gguf_files import bulk_gguf, write_llama
from support.image_runs import ImageArchive, Run, run_to_end, running
from support.model_source import Behaviour, ModelSource
from support.serving import free_port

# The first use on a machine makes the base and the images.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MB = 1_000_000
MIB = 1024 * 1024
# Everybody's least user, and one that OpenShift draws.
USERS = [(65534, 65534), (1_000_690_000, 0)]


@pytest.mark.parametrize(("name", "limit_bytes"), [("downloader", 40 * MB), ("downloader-s3", 40 * MB), ("server", 200 * MB)])
def test_image_adds_little_to_its_base(archives: dict[str, Path], name: str, limit_bytes: int) -> None:
    layers = ImageArchive(archives[name]).layers()
    first = next(index for index, layer in enumerate(layers) if "/opt/venv" in layer.created_by)
    added = layers[first:]
    print({layer.created_by[:60]: layer.size_bytes for layer in added})
    assert 1 * MB < sum(layer.size_bytes for layer in added) <= limit_bytes
    names = [member.name for layer in added for member in layer.members]
    assert not [path for path in names if "/site-packages/pip/" in path or "/setuptools/" in path or path.endswith(".whl")]
    assert not [path for path in names if "/site-packages/" in path and "/tests/" in path]
    # Code is a small layer of its own, after the dependencies.
    assert any(path.startswith("opt/nlocalmodels/") for path in [member.name for member in added[-1].members])
    assert added[-1].size_bytes < 2 * MB


@pytest.mark.parametrize("name", ["downloader", "server"])
def test_image_says_what_it_is_and_runs_without_rights(archives: dict[str, Path], name: str) -> None:
    config = ImageArchive(archives[name]).config
    assert config["User"] == "65534:65534"
    assert config["Entrypoint"] == ["python", "-m", f"nlocalmodels_{name}"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["licenses"] == "Apache-2.0"
    assert labels["title"] == f"nLocalModels {name}"
    assert {"description", "source", "version", "revision"} <= set(labels)
    if name == "server":
        assert "MODEL_PATH=/app/models" in config["Env"]
        assert list(config["ExposedPorts"]) == ["11434/tcp"]


@pytest.mark.parametrize("name", ["downloader", "server"])
def test_image_can_install_nothing_and_has_what_kubectl_cp_needs(archives: dict[str, Path], name: str, tmp_path: Path) -> None:
    script = (
        "tar --version && ! python -m pip --version && ! touch /touched && umask && python -c 'import os; print(os.getuid())'"
    )
    run = Run(images.IMAGES[name].name, archives[name], entrypoint=["sh", "-c", script])
    code, said = run_to_end(run, tmp_path / "log")
    assert code == 0, said
    assert "GNU tar" in said
    assert said.splitlines()[-1] == "65534"


@pytest.mark.parametrize("user", USERS)
def test_server_serves_from_a_read_only_root_and_ends_with_0(
    archives: dict[str, Path], user: tuple[int, int], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    write_llama(models / "tiny.gguf", seed=1)
    address = f"http://127.0.0.1:{free_port()}"
    environ = {"PORT": address.rpartition(":")[2], "HOST": "127.0.0.1"}
    run = Run(images.IMAGES["server"].name, archives["server"], environ=environ, mounts={"/app/models:ro": models}, user=user)
    with running(run, tmp_path / "log") as container:
        container.wait_for(lambda: answers(f"{address}/readyz"))
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60, trust_env=False).json()
        assert answer["usage"]["completion_tokens"] == 8
        assert container.terminate() == 0, container.log()


@pytest.mark.parametrize("user", USERS)
def test_downloader_stops_with_143_and_goes_on_where_it_was(
    archives: dict[str, Path], user: tuple[int, int], tmp_path: Path
) -> None:
    data = bulk_gguf(24 * MIB, seed=3)
    volume, config = tmp_path / "volume", tmp_path / "config"
    for folder in (volume, config):
        folder.mkdir()
    # As a volume of a pod: writable for its user, whoever that is.
    volume.chmod(0o777)
    source = ModelSource()
    source.files["/m.gguf"] = data
    with source.running():
        digest = hashlib.sha256(data).hexdigest()
        model = {"id": "m", "file": "m.gguf", "source": f"{source.url}/m.gguf", "sha256": digest, "sizeBytes": len(data)}
        (config / "downloads.yaml").write_text(yaml.safe_dump({"modelPath": "/app/models", "models": [model]}))
        run = Run(
            images.IMAGES["downloader"].name,
            archives["downloader"],
            arguments=["sync", "--config", "/config/downloads.yaml"],
            environ={"NO_PROXY": "*", "POD_UID": "pod"},
            mounts={"/app/models": volume, "/config:ro": config},
            user=user,
        )
        source.behave = lambda request: Behaviour(stall_after_bytes=512 * 1024 if request.range != (0, 1) else None)
        with running(run, tmp_path / "log") as container:
            container.wait_for(lambda: source.sent_bytes > MIB)
            assert container.terminate() == 143, container.log()
        source.release()
        source.behave = lambda _: Behaviour()
        code, said = run_to_end(run, tmp_path / "log-2")
    assert code == 0, said
    assert (volume / "m.gguf").read_bytes() == data
    assert source.sent_bytes < len(data) + 2 * MIB


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_nothing_is_built_twice(archives: dict[str, Path]) -> None:
    before = {name: path.stat().st_mtime_ns for name, path in archives.items()}
    assert {name: path.stat().st_mtime_ns for name, path in images.ensure_images(list(archives)).items()} == before
