"""When models cannot be fetched, the cluster says why, and correcting the values is enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.kubernetes import Kubernetes, Release
from support.source_pod import SourcePod, source_model

Values = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def well_behaved(source: SourcePod) -> Iterator[None]:
    source.reset()
    yield
    source.reset()


def described(release: Release, component: str) -> str:
    pods = release.pods(component)
    return release.kubernetes.kubectl("describe", "pod", pods[0]["metadata"]["name"], "-n", release.namespace) if pods else ""


def test_wrong_digest_is_named_in_describe_pod(release: Callable[..., Release], small: Values, kubernetes: Kubernetes) -> None:
    corrupt = release("corrupt")
    model = source_model("tiny-a.Q8_0.gguf", sha256="0" * 64)
    corrupt.apply(small({"tiny-a": model}), wait=False)
    text = kubernetes.wait(
        lambda: (d := described(corrupt, "server")) and re.search(r"Exit Code: +13", d) and d, "the init container to fail"
    )
    message = re.search(r"Message: +(.*)", text)
    assert message is not None
    assert message[1].startswith("tiny-a: ")
    assert "0" * 64 in message[1]
    # The values corrected, the same release comes up.
    corrupt.apply(small({"tiny-a": source_model("tiny-a.Q8_0.gguf")}))
    corrupt.uninstall()


def test_missing_file_fails_the_job_at_once_and_a_corrected_list_gets_a_new_one(
    release: Callable[..., Release], small: Values, kubernetes: Kubernetes, storage_class: Callable[[], str]
) -> None:
    gone = release("gone")
    storage = {"strategy": "pvc", "pvc": {"size": "1Gi", "storageClass": storage_class(), "keepOnUninstall": False}}
    right = source_model("tiny-b.F16.gguf")
    gone.apply(
        small({"tiny-b": {**right, "source": right["source"].replace("tiny-b", "no-such")}}, storage=storage), wait=False
    )

    def failed_jobs() -> list[Any]:
        return [job for job in gone.jobs() if any(c["type"] == "Failed" for c in job["status"].get("conditions", []))]

    (job,) = kubernetes.wait(failed_jobs, "the Job to fail")
    assert job["status"]["failed"] == 1, "another attempt would have said the same"
    assert "PodFailurePolicy" in str(job["status"]["conditions"])
    text = described(gone, "downloader")
    assert re.search(r"Exit Code: +11", text)
    assert re.search(r"Message: +tiny-b: .*no-such", text)
    log = kubernetes.kubectl("logs", gone.pods()[0]["metadata"]["name"], "-c", "model-wait", "-n", gone.namespace)
    assert "waiting for 1 of 1 models: no-such.F16.gguf is not there" in log
    gone.apply(small({"tiny-b": right}, storage=storage))
    (corrected,) = gone.jobs()
    assert corrected["metadata"]["name"] != job["metadata"]["name"]
    gone.uninstall()


def test_log_of_a_slow_download_shows_rate_and_time_left(
    release: Callable[..., Release], small: Values, kubernetes: Kubernetes, source: SourcePod
) -> None:
    source.behave({"/bulk-64m.gguf": {"bytes_per_second": 1_000_000}})
    slow = release("slow")
    model = source_model("bulk-64m.gguf")
    extra = [{"name": "DOWNLOAD_PROGRESS_SECONDS", "value": "1"}]
    download = {"extraEnv": extra, "connections": 2, "maxBandwidth": "2Mi", "minBandwidth": "1Mi"}
    slow.apply(small({"bulk": model}, download=download), wait=False)

    def progress() -> str:
        pods = slow.pods()
        if not pods:
            return ""
        name = pods[0]["metadata"]["name"]
        return kubernetes.run("kubectl", "logs", name, "-c", "model-downloader", "-n", slow.namespace).stdout

    line = r"bulk: [\d.]+ MiB of 64.0 MiB \(\d+ %\), [\d.]+ (KiB|MiB)/s, .* left"
    kubernetes.wait(lambda: re.search(line, progress()), "a line of progress")
    slow.uninstall()


def test_interrupted_download_goes_on_in_the_same_pod(
    release: Callable[..., Release], small: Values, kubernetes: Kubernetes, source: SourcePod
) -> None:
    """The container is stopped in the middle of a download that takes ten seconds."""
    source.behave({"/bulk-64m.gguf": {"bytes_per_second": 3_000_000}})
    broken = release("broken")
    add = {"bulk": source_model("bulk-64m.gguf"), "tiny-a": source_model("tiny-a.Q8_0.gguf")}
    values = small(add, download={"connections": 2})
    values["models"]["default"] = "tiny-a"
    broken.apply(values, wait=False)
    kubernetes.wait(lambda: source.sent_bytes("bulk-64m.gguf") > 24_000_000, "a third of the file")
    (pod,) = broken.pods()
    name = pod["metadata"]["name"]
    kubernetes.run(
        "kubectl",
        "exec",
        name,
        "-c",
        "model-downloader",
        "-n",
        broken.namespace,
        "--",
        "python",
        "-c",
        "import os; os.kill(1, 15)",
    )

    def finished() -> bool:
        (status,) = kubernetes.get("pod", broken.namespace, name)["status"]["initContainerStatuses"]
        return bool(status["restartCount"] == 1 and status["ready"])

    kubernetes.wait(finished, "the init container to be started again and to succeed")
    size_bytes = 64 * 1024 * 1024
    assert size_bytes <= source.sent_bytes("bulk-64m.gguf") <= size_bytes + 17 * 1024 * 1024
    broken.uninstall()
