"""models.reload=live: a changed set changes nothing of a pod, so that none restarts; and what that takes is stated."""

from __future__ import annotations

from typing import Any

import pytest

from support.chart import KUBE_VERSION, LIVE, STRATEGIES, Document, Pod, Values, included, merged, only, own, problems, render

WATCH = ["watch", "--config", "/etc/nlocalmodels/downloads.yaml"]
WHY = "auto would restart the pods whenever models.reload=live changes the set"
SMALL = only(m=own())


def template(values: Values) -> Document:
    found: Document = render(values).one("Deployment")["spec"]["template"]
    return found


def changed(*layers: Values) -> list[Values]:
    """Returns values that differ in their models only."""
    more: dict[str, Values] = {
        "added": {"models": {"add": {"qwen3-4b": {}}}},
        "removed": {"models": {"remove": ["gemma-2-2b-it"]}},
        "replaced": {"models": {"add": {"gemma-2-2b-it": {"source": "https://host/x.gguf", "sha256": "b" * 64}}}},
        "other default": {"models": {"default": "gemma-2-2b-it"}},
        "other context": {"models": {"add": {"gemma-2-2b-it": {"context": 1024}}}},
        "without a digest": {"models": {"allowUnverified": True, "add": {"m": own(sha256="")}}},
        "much larger": {"models": {"set": "enterprise"}},
    }
    return [merged(*layers, values) for values in more.values()]


@pytest.mark.parametrize("strategy", LIVE)
def test_a_changed_set_leaves_the_pods_as_they_are(strategy: str) -> None:
    before = template(LIVE[strategy])
    for values in changed(LIVE[strategy]):
        assert template(values) == before, values
        # The Deployment says which set is meant.
        assert render(values).one("Deployment")["metadata"]["annotations"]["nlocalmodels.io/set"] == included(
            "nlocalmodels.setId", values
        )


@pytest.mark.parametrize("strategy", ["emptyDir", "pvc"])
def test_a_changed_set_changes_the_pods_of_a_rollout(strategy: str) -> None:
    before = template(STRATEGIES[strategy])
    changes = changed(STRATEGIES[strategy])
    assert [values for values in changes if template(values) == before] == []
    assert "annotations" not in render(STRATEGIES[strategy]).one("Deployment")["metadata"]


def test_a_changed_server_setting_is_taken_up_as_well() -> None:
    told = merged(LIVE["pvc"], {"server": {"numSlots": 4, "readyWhen": "all"}})
    assert template(told) == template(LIVE["pvc"])
    assert render(told).config("server.yaml")["numSlots"] == 4


def test_a_sidecar_watches_the_list_beside_the_server() -> None:
    pod = render(LIVE["emptyDir"]).pod("server")
    assert [container["name"] for container in pod.containers] == ["model-downloader", "model-watcher", "server"]
    first, watcher = pod.spec["initContainers"]
    assert (watcher["args"], watcher["restartPolicy"]) == (WATCH, "Always")
    assert "restartPolicy" not in first
    same = {key: value for key, value in first.items() if key not in ("name", "args")}
    assert {key: value for key, value in watcher.items() if key not in ("name", "args", "restartPolicy")} == same


def test_pods_of_a_claim_have_no_sidecar_and_a_job_fetches() -> None:
    manifests = render(LIVE["pvc"])
    assert [container["name"] for container in manifests.pod("server").containers] == ["model-wait", "server"]
    assert manifests.one("Job")


def test_what_the_sidecar_needs_is_allowed_by_the_network_policy() -> None:
    def policies(values: Values) -> list[Document]:
        return render(values).all("NetworkPolicy")

    # As it is for the init container, whose pod it shares.
    assert policies(LIVE["emptyDir"]) == policies({})


def test_volume_of_a_pod_keeps_as_many_sets_as_told() -> None:
    assert render(LIVE["emptyDir"]).config("downloads.yaml")["prune"] == {"keepSets": 2}
    told = merged(LIVE["emptyDir"], {"storage": {"emptyDir": {"keepSets": 1}}})
    assert render(told).config("downloads.yaml")["prune"] == {"keepSets": 1}
    # Without live, a volume never sees a second set.
    assert "prune" not in render().config("downloads.yaml")


def names(pod: Pod) -> list[str]:
    return [entry["name"] for entry in pod.container("server")["env"]]


@pytest.mark.parametrize("strategy", LIVE)
def test_server_is_told_in_its_file_what_may_change(strategy: str) -> None:
    manifests = render(LIVE[strategy])
    config = manifests.config("server.yaml")
    assert (config["reload"], config["defaultModel"]) == ("live", "llama-2-7b-chat")
    assert config["set"] == included("nlocalmodels.setId", LIVE[strategy])
    assert names(manifests.pod("server")) == ["MODEL_PATH", "SERVER_CONFIG"]
    assert "reload" not in render(STRATEGIES[strategy]).config("server.yaml")
    assert names(render(STRATEGIES[strategy]).pod("server")) == ["MODEL_PATH", "DEFAULT_MODEL", "SERVER_CONFIG"]


@pytest.mark.parametrize(
    "values",
    [
        merged(LIVE["pvc"], {"models": {"set": "none"}}),
        merged(LIVE["pvc"], {"models": {"allowUnverified": True, "add": {"m": own(sha256="")}}}),
    ],
)
def test_server_is_told_no_set_whose_id_only_the_download_can_tell(values: Values) -> None:
    assert "set" not in render(values).config("server.yaml")


def test_a_start_has_an_hour_whatever_the_models_are() -> None:
    probe = render(LIVE["pvc"]).pod("server").container("server")["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == 3600
    slow = merged(LIVE["pvc"], {"server": {"minReadBandwidth": "1Mi"}})
    assert problems(slow) == [
        "server.minReadBandwidth: at 1Mi a second, reading the models takes 94 min, and with models.reload=live a start has "
        "60 min; raise it, or set models.reload to rollout."
    ]


def test_what_is_computed_from_the_set_is_refused_with_the_figures() -> None:
    assert problems(merged(SMALL, {"models": {"reload": "live"}})) == [
        *(
            sentence
            for kind in ("requests", "limits")
            for sentence in (
                f"resources.{kind}.memory: {WHY}; state what the largest set needs and its largest model once more, since both "
                "are in memory while one is replaced. This set needs 2704Mi.",
                f"resources.{kind}.ephemeral-storage: {WHY}; state what the sets that storage.emptyDir.keepSets keeps need, "
                "and 1Gi. This set needs 1127Mi.",
            )
        ),
        f"storage.emptyDir.sizeLimit: {WHY}; state what the sets that storage.emptyDir.keepSets keeps need. This set needs "
        "1127Mi.",
    ]
    on_claim: dict[str, Any] = {"models": {"reload": "live"}, "storage": {"strategy": "pvc"}}
    assert [line.partition(":")[0] for line in problems(merged(SMALL, on_claim))] == [
        "resources.requests.memory",
        "resources.limits.memory",
    ]


def test_values_that_cannot_go_with_it_are_refused() -> None:
    baked = merged(LIVE["pvc"], STRATEGIES["baked"])
    assert problems(baked) == [
        "models.reload: 'live' has nothing to take up with storage.strategy=baked, whose models change with the image; set it "
        "to rollout."
    ]
    assert problems(LIVE["emptyDir"], kube_version="1.28.9") == [
        "models.reload: 'live' with emptyDir needs sidecar containers, which Kubernetes has from 1.29 on, and this is v1.28.9; "
        "set it to rollout, or use storage.strategy=pvc."
    ]
    assert render(LIVE["pvc"], kube_version="1.28.9")
    assert problems({"models": {"reload": "hot"}}) == ["models.reload: 'hot' is not known; set it to rollout or live."]
    keep = merged(LIVE["emptyDir"], {"storage": {"emptyDir": {"keepSets": 101}}})
    assert problems(keep) == ["storage.emptyDir.keepSets: 101 is out of range; set it from 1 to 100."]
    assert render(LIVE["emptyDir"], kube_version=KUBE_VERSION)
