"""What an upgrade says of the models: which come, go and stay, and what is to be fetched."""

from __future__ import annotations

import json

import pytest

from support.chart import GIB, KUBE_VERSION, LIVE, STRATEGIES, Values, included, merged, only, own, render

A = own()
B = own(source="https://host/b.gguf", sha256="b" * 64, sizeBytes=2 * GIB)
C = own(source="https://host/c.gguf", sha256="c" * 64, sizeBytes=3 * GIB)


def said(before: Values, after: Values) -> list[str]:
    """Returns the lines that an upgrade from one to the other prints."""
    manifests = render(before, kube_version=KUBE_VERSION)
    data = manifests.one("ConfigMap")["data"]
    volumes = manifests.one("Deployment")["spec"]["template"]["spec"]["volumes"]
    context = f'(dict "root" . "former" (fromJson `{json.dumps(data)}`) "volumes" (fromJsonArray `{json.dumps(volumes)}`))'
    text = included("nlocalmodels.changesText", after, context=context, kube_version=KUBE_VERSION)
    return [" ".join(line.split()) for line in text.splitlines()]


def with_(strategy: Values, **models: Values) -> Values:
    return merged(strategy, only(**models))


HEAD = "This upgrade changes the models:"


@pytest.mark.parametrize("strategy", [STRATEGIES["pvc"], LIVE["pvc"]], ids=["rollout", "live"])
def test_claim_gets_the_difference(strategy: Values) -> None:
    assert said(with_(strategy, a=A, b=B), with_(strategy, a=A, b={**B, "sha256": "d" * 64}, c=C)) == [
        HEAD,
        "added c 3.0 GiB",
        "replaced b 2.0 GiB",
        "unchanged a",
        "To fetch: 5.0 GiB, and what the former set still lacks.",
    ]
    assert said(with_(strategy, a=A, b=B), with_(strategy, b=B)) == [
        HEAD,
        "removed a",
        "unchanged b",
        "Nothing new is to be fetched.",
    ]


def test_file_under_another_id_is_not_fetched_again() -> None:
    pvc = STRATEGIES["pvc"]
    assert said(with_(pvc, a=A, b=B), with_(pvc, a=A, new=B)) == [
        HEAD,
        "added new 2.0 GiB",
        "removed b",
        "unchanged a",
        "Nothing new is to be fetched.",
    ]


def test_split_model_gets_the_parts_that_it_lacks() -> None:
    def split(digest: str) -> Values:
        second = {"file": "s-00002-of-00002.gguf", "source": "https://host/2", "sha256": digest * 64, "sizeBytes": GIB}
        return with_(STRATEGIES["pvc"], s=own(file="s-00001-of-00002.gguf", shards=[second]))

    assert said(split("e"), split("F")) == [
        HEAD,
        "replaced s 2.0 GiB",
        "To fetch: 1.0 GiB, and what the former set still lacks.",
    ]
    assert said(split("f"), split("F")) == ["This upgrade leaves the models as they are."]


def test_new_pods_fetch_all_and_running_ones_the_difference() -> None:
    rollout, live = STRATEGIES["emptyDir"], LIVE["emptyDir"]
    assert said(with_(rollout, a=A), with_(rollout, a=A, b=B))[-1] == "Each new pod fetches all of them: 3.0 GiB."
    assert said(with_(live, a=A), with_(live, a=A, b=B))[-1] == (
        "To fetch in each pod: 2.0 GiB, and what the former set still lacks."
    )


def test_another_volume_has_nothing_of_the_former_set() -> None:
    of_the_chart = with_(STRATEGIES["pvc"], a=A)
    existing = merged(with_(STRATEGIES["pvc"], a=A, b=B), {"storage": {"pvc": {"existingClaim": "mine"}}})
    words = "To fetch: 3.0 GiB, as the volume is another one; what is on it already is not fetched."
    assert said(of_the_chart, existing)[-1] == words
    assert said(with_(STRATEGIES["emptyDir"], a=A), with_(STRATEGIES["pvc"], a=A, b=B))[-1] == words


def test_image_brings_all() -> None:
    baked = STRATEGIES["baked"]
    assert said(with_(baked, a=A, b=B), with_(baked, b=B, c=C)) == [
        HEAD,
        "added c 3.0 GiB",
        "removed a",
        "kept b",
        "All of them come with the image; nothing is fetched.",
    ]


def test_unchanged_models_are_said_to_be() -> None:
    values = with_(STRATEGIES["pvc"], a=A)
    assert said(values, merged(values, {"replicas": 3})) == ["This upgrade leaves the models as they are."]
    # Where a file comes from is not what it is.
    elsewhere = merged(values, {"models": {"add": {"a": {"source": "https://mirror/own.Q4_K_M.gguf"}}}})
    assert said(values, elsewhere) == ["This upgrade leaves the models as they are."]


@pytest.mark.parametrize("strategy", [*STRATEGIES.values(), *LIVE.values()])
def test_nothing_is_said_where_the_cluster_is_not_asked(strategy: Values) -> None:
    """As with an installation, `helm template` and a dry run on the client."""
    assert "This upgrade" not in included("notes", strategy, kube_version=KUBE_VERSION)
    manifests = render(strategy, kube_version=KUBE_VERSION)
    assert "CHANGES" not in {entry["name"] for entry in manifests.pod("test").container("completions")["env"]}


def test_notes_of_live_pods_say_where_to_look() -> None:
    text = included("notes", LIVE["pvc"], kube_version=KUBE_VERSION)
    assert "-c server -f" in text
    assert "Running pods take up a changed list by themselves" in text
    assert "rollout restart" not in included(
        "notes", merged(LIVE["pvc"], {"storage": {"pvc": {"uploader": {"enabled": True}}}})
    )
    assert "Running pods" not in included("notes", STRATEGIES["pvc"], kube_version=KUBE_VERSION)


def test_notes_of_live_pods_say_when_a_model_cannot_be_loaded_beside_itself() -> None:
    def limited(memory: str) -> str:
        stated = {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": memory}}}
        return included("notes", merged(LIVE["pvc"], only(m=own()), stated))

    # 1 GiB of weights with 1 GiB of caches, 400 MiB and 256 MiB for the server; and 1.1 GiB and 1.5 GiB for the second process.
    assert "no room for the largest model twice, which takes 5367Mi" in limited("5366Mi")
    assert "no room" not in limited("5367Mi")


def test_test_waits_until_live_pods_serve_the_set() -> None:
    def told(values: Values) -> dict[str, str]:
        container = render(values, kube_version=KUBE_VERSION).pod("test").container("completions")
        return {entry["name"]: entry["value"] for entry in container["env"]}

    assert told(LIVE["pvc"])["SET"] == included("nlocalmodels.setId", LIVE["pvc"])
    assert "SET" not in told(STRATEGIES["pvc"])
