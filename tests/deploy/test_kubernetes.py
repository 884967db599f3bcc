"""The chart and the plain manifest: valid, restricted, and consistent with how the service ends."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lengthwise.settings import Settings
from tests.deploy import tools
from tests.deploy.tools import CHART, DEPLOY, ROOT, RULES, chart_engine, loaded, objects, run

KSERVE = DEPLOY / "kserve"
VALUES_FILES = ("cpu", "gpu", "dev")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute", "GRPCRoute"}
ARCHIVE = {"source": "archive", "url": "https://models.example.org/models.tar.gz", "sha256": "0" * 64}
ADDRESS = {"source": "address", "address": "s3://models/team"}
KEYS = {"apiKeys": {"existingSecret": "lengthwise-keys"}}
TLS = {"tls": {"existingSecret": "lengthwise-tls"}}
MUTUAL = {"tls": {"existingSecret": "lengthwise-tls", "clientCaSecret": "lengthwise-client-ca"}}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
MOUNT = [{"name": "mine", "mountPath": "/mine"}]
OPERATOR = {
    "operator": True,
    "bearerTokenSecret": {"name": "lengthwise-prometheus-key", "key": "key"},
    "labels": {"release": "prometheus"},
}
EVERYTHING: dict[str, Any] = {
    **KEYS,
    "tls": {**MUTUAL["tls"], "probeSecret": "lengthwise-probe"},
    "adminPort": 9000,
    "grpcPort": 8001,
    "models": {"source": "volume", "claim": "models"},
    "monitoring": {**OPERATOR, "tlsConfig": {"insecureSkipVerify": True}},
    "ingress": {"enabled": True, "className": "nginx", "tls": [{"secretName": "s", "hosts": ["a.example.com"]}]},
    "httpRoute": {"enabled": True, "hostnames": ["a.example.com"]},
    "grpcRoute": {"enabled": True},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "loadBalancerSourceRanges": ["10.0.0.0/8"]},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"of": "pod"},
    "podLabels": {"team": "ours"},
    "deploymentAnnotations": {"reloader.stakater.com/auto": "true"},
    "priorityClassName": "high",
    "runtimeClassName": "gvisor",
    "nodeSelector": {"pool": "cpu"},
    "tolerations": [{"key": "pool", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "ours"}],
    "extraEnvFrom": [{"secretRef": {"name": "environment"}}],
    "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "networkPolicy": {"extraEgress": [{"ports": [{"port": 4318, "protocol": "TCP"}]}]},
}
"""A value of every kind that operators set."""

ALL_WISHES: dict[str, Any] = {
    "default": {},
    "everything": EVERYTHING,
    "keys and TLS": {**KEYS, **TLS, "monitoring": OPERATOR, "ingress": {"enabled": True}},
    "one port": {"adminPort": 0, "monitoring": {"operator": True}},
    "operator": {"monitoring": {"operator": True, "runbookUrl": "https://docs.example.com/runbook"}},
    "keda": {"autoscaling": {"kind": "keda"}},
    "volume": {"models": {"source": "volume", "claim": "models"}},
    "archive": {"models": ARCHIVE},
    "address": {"models": ADDRESS},
    **{name: yaml.safe_load((DEPLOY / "helm" / f"values-{name}.yaml").read_text()) for name in VALUES_FILES},
}

Objects = dict[tuple[str, str], dict[str, Any]]


def _by_name(made: list[dict[str, Any]]) -> Objects:
    return {(one["kind"], one["metadata"]["name"]): one for one in made}


def _of_chart(values: dict[str, Any], *, hooks: bool = False) -> Objects:
    files = chart_engine().Chart.load(str(CHART)).render(values, name="lengthwise", namespace="default")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    made = [one for text in texts for one in objects(text)]
    return _by_name([one for one in made if hooks or "helm.sh/hook" not in one["metadata"].get("annotations", {})])


def _pods(made: Objects) -> Iterator[dict[str, Any]]:
    for one in made.values():
        if one["kind"] == "Pod":
            yield one["spec"]
        elif "template" in one.get("spec", {}):
            yield one["spec"]["template"]["spec"]


def _pod(values: dict[str, Any]) -> dict[str, Any]:
    """Of the Deployment."""
    (pod,) = _pods({key: one for key, one in _of_chart(values).items() if key[0] == "Deployment"})
    return pod


def _container(values: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = _pod(values)["containers"][0]
    return container


def _everything() -> Objects:
    """Every object in every form, under names of their own."""
    return {
        (kind, f"{wish}/{name}"): one
        for wish, values in ALL_WISHES.items()
        for (kind, name), one in _of_chart(values, hooks=True).items()
    }


def test_the_plain_manifest_is_what_the_chart_makes_by_default() -> None:
    chart_engine()
    manifest = loaded(DEPLOY / "helm" / "manifest.py")
    assert manifest.FILE.read_text() == manifest.text(), "make manifests"
    made = _by_name(objects(manifest.text()))
    assert set(made) == set(_of_chart({}))
    for key, one in _of_chart({}).items():
        assert made[key].get("spec") == one.get("spec")


def test_the_schema_of_the_values_has_the_options_that_the_service_has() -> None:
    schema = loaded(DEPLOY / "helm" / "schema.py")
    assert schema.FILE.read_text() == schema.text(), "make manifests"
    options = set(schema.options()["properties"])
    assert options == set(Settings.model_fields) - {"host", "port", "models", "drain_seconds"}


def test_every_value_is_known_to_the_schema_and_every_part_of_it_is_strict() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = loaded(DEPLOY / "helm" / "schema.py")
    properties = json.loads(schema.FILE.read_text())["properties"]
    assert set(properties) == {*values, "global"}
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in properties[name] and name != "settings":
            assert set(properties[name]["properties"]) >= set(value), name
            assert properties[name]["additionalProperties"] is False, name


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
        *(({"replica": 3}, "replica"), ({"autoscaling": {"kind": "vpa"}}, "kind")),
        ({"settings": {"drain_seconds": 5}}, "drain_seconds"),
        ({"settings": {"max_batch_row": 32}}, "max_batch_row"),
        ({"settings": {"max_batch_rows": 0}}, "max_batch_rows"),
        ({"settings": {"max_batch_rows": "many"}}, "max_batch_rows"),
        *(({"settings": {"access_log": "often"}}, "access_log"), ({"settings": {"console": "maybe"}}, "console")),
        *(({"settings": {"versions": 3}}, "versions"), ({"settings": {"provider": "gpu"}}, "provider")),
        *(({"apiKeys": {"secret": "a"}}, "secret"), ({"tls": {"existingSecret": "Not A Name"}}, "existingSecret")),
        *(({"adminPort": 70000}, "adminPort"), ({"extraEnv": [{"value": "a"}]}, "extraEnv")),
        *(({"podAnnotations": {"a": 1}}, "podAnnotations"), ({"ingress": {"hosts": [{"host": "a"}]}}, "paths")),
        ({"models": {"source": "archive", "url": "https://a", "sha256": "beef"}}, "sha256"),
        ({"models": {"source": "address", "address": "models/team"}}, "address"),
        ({"models": {"source": "address", "address": "https://a/m.tar?X-Amz-Signature=secret"}}, "address"),
    ],
)
def test_the_values_schema_refuses_what_the_chart_does_not_know(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        chart_engine().Chart.load(str(CHART)).render(values, name="lengthwise", namespace="default")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**KEYS, "settings": {"api_keys_file": "/mine/a"}, "extraVolumeMounts": MOUNT}, "settings.api_keys_file"),
        ({"settings": {"admin_port": 9001}}, "settings.admin_port"),
        ({"models": {**ARCHIVE, "sha256": ""}}, "models.sha256"),
        ({"models": {"source": "address"}}, "models.address"),
        ({"tls": {"clientCaSecret": "a"}}, "tls.existingSecret"),
        ({"grpcRoute": {"enabled": True}}, "grpcPort"),
        ({**KEYS, "monitoring": {"operator": True}}, "monitoring.bearerTokenSecret"),
        ({**MUTUAL, "monitoring": {"operator": True}}, "monitoring.tlsConfig"),
        ({"autoscaling": {"kind": "hpa", "minReplicas": 20}}, "autoscaling.minReplicas"),
        *(
            ({"settings": {name: "/mine/file"}, "extraVolumeMounts": [{"name": "a", "mountPath": "/min"}]}, name)
            for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file", "api_keys_file", "record")
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said)):
        _of_chart(values)


RECORDS = {"extraVolumeMounts": [{"name": "records", "mountPath": "/records"}]}
SHARES = sorted(name for name, field in Settings.model_fields.items() if "off, or 0 to 1" in (field.description or ""))


def test_the_shares_are_options_of_the_chart() -> None:
    assert SHARES == ["access_log", "record_share", "verify_share"]


@pytest.mark.parametrize("name", SHARES)
def test_a_share_is_off_or_0_to_1_as_in_the_command(name: str) -> None:
    variable = f"LENGTHWISE_{name.upper()}"
    for value, share in [(False, 0), ("off", 0), (0, 0), (0.25, 0.25), ("0.25", 0.25), (1, 1), ("1", 1)]:
        values = {**RECORDS, "settings": {"record": "/records", name: value}}  # a share of records needs their folder
        (told,) = [one["value"] for one in _container(values)["env"] if one["name"] == variable]
        settings = Settings.model_validate({"record": "/records", name: told})
        assert getattr(settings, name) == share, value
    bare = yaml.safe_load(f"settings: {{{name}: off}}")  # as a file of values has it
    assert variable in [one["name"] for one in _container(bare)["env"]]
    for wrong in (2, -0.5, "2", "1.5", True, "on", "true", "-1", ""):
        with pytest.raises(Exception, match=name):
            _container({"settings": {name: wrong}})


def test_a_release_may_have_no_settings_at_all() -> None:
    named = [entry["name"] for entry in _container({"settings": None})["env"]]
    assert named == ["LENGTHWISE_DRAIN_SECONDS", "LENGTHWISE_ADMIN_PORT"]


@pytest.mark.parametrize("claim", ["", "copies"])
def test_a_pod_of_models_at_an_address_has_a_cache_and_time_to_fetch(claim: str) -> None:
    values = {"models": {**ADDRESS, "claim": claim}}
    pod, container = _pod(values), _container(values)
    assert {one["name"]: one.get("value") for one in container["env"]}["LENGTHWISE_MODELS"] == "s3://models/team"
    (mount,) = container["volumeMounts"]
    cache = re.search(r"LENGTHWISE_CACHE=(\S+)", (ROOT / "Dockerfile").read_text())
    assert cache is not None
    assert (mount["mountPath"], mount.get("readOnly", False)) == (cache[1], False)
    (volume,) = pod["volumes"]
    assert volume == {"name": mount["name"]} | (
        {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    )
    assert container["startupProbe"]["failureThreshold"] > _container({})["startupProbe"]["failureThreshold"]
    (policy,) = (one for key, one in _of_chart(values).items() if key[0] == "NetworkPolicy")
    assert {(one["port"], one["protocol"]) for one in policy["spec"]["egress"][0]["ports"]} >= {
        (53, "UDP"),
        (443, "TCP"),
        (80, "TCP"),
    }


def test_replicas_do_not_choose_kernels_each_for_itself() -> None:
    chosen = [one["value"] for one in _container({})["env"] if one["name"] == "LENGTHWISE_RECURRENT_KERNELS"]
    assert chosen == ["true"]
    measured = {"settings": {"recurrent_kernels": None}}
    assert "LENGTHWISE_RECURRENT_KERNELS" not in {one["name"] for one in _container(measured)["env"]}


def test_alerts_name_the_address_of_the_runbook_where_it_has_one() -> None:
    (spec,) = [one["spec"] for key, one in _of_chart(ALL_WISHES["operator"]).items() if key[0] == "PrometheusRule"]
    alerts = [rule for group in spec["groups"] for rule in group["rules"] if "alert" in rule]
    assert {rule["annotations"]["runbook_url"] for rule in alerts} == {
        f"https://docs.example.com/runbook#{rule['alert'].lower()}" for rule in alerts
    }
    assert not [rule for rule in alerts if "runbook" in rule["annotations"]]


def test_where_its_metrics_cannot_be_asked_an_autoscaler_asks_for_the_processor() -> None:
    (hpa,) = [one for key, one in _of_chart(ALL_WISHES["cpu"]).items() if key[0] == "HorizontalPodAutoscaler"]
    (scaled,) = [one for key, one in _of_chart(ALL_WISHES["keda"]).items() if key[0] == "ScaledObject"]
    (by_cpu,) = [one["resource"] for one in hpa["spec"]["metrics"] if one["type"] == "Resource"]
    assert by_cpu["target"] == {"type": "Utilization", "averageUtilization": 160}
    assert [one["metadata"] for one in scaled["spec"]["triggers"] if one["type"] == "cpu"] == [{"value": "160"}]


def test_settings_reach_the_service_as_it_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    wished = {"max_queue_cost_steps": 2_000_000, "max_wait_ms": 0.5, "log_format": "json"}
    for entry in _container({"settings": wished})["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])
    settings = Settings.load()
    assert {name: getattr(settings, name) for name in wished} == wished
    assert settings.drain_seconds == 30


def test_core_objects_are_valid_and_no_kind_is_unknown(tmp_path: Path) -> None:
    validate = tools.program("kubernetes-validate", tools.PIP)
    core = [one for (kind, _), one in _everything().items() if kind not in CUSTOM]
    kinds = {one["kind"] for one in core}
    assert kinds >= {"Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"}
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(core))
    assert "Couldn't find schema" not in run([validate, "--strict", "-k", "1.32", file])
    core[0]["spec"] = {**core[0].get("spec", {}), "misspelt": 1}
    file.write_text(yaml.safe_dump_all(core))
    run([validate, "--strict", "-k", "1.32", file], good=(1,))


RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
}
CUSTOM_FIELDS = {
    "ServiceMonitor": {"selector", "endpoints"},
    "HTTPRoute": {"parentRefs", "hostnames", "rules"},
    "GRPCRoute": {"parentRefs", "rules"},
    "PrometheusRule": {"groups"},
    "ScaledObject": {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "triggers"),
    },
}


@pytest.mark.long
def test_custom_objects_are_what_their_operators_read() -> None:
    node = tools.node_packages()
    custom = [one for (kind, _), one in _everything().items() if kind in CUSTOM]
    assert {one["kind"] for one in custom} == CUSTOM
    for one in custom:
        assert set(one["spec"]) == CUSTOM_FIELDS[one["kind"]]  # the schemas let unknown keys pass
    script = f"""
import {{ ServiceMonitor, PrometheusRule }} from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import {{ ScaledObject }} from "@kubernetes-models/keda/keda.sh/v1alpha1";
import {{ HTTPRoute, GRPCRoute }} from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
const known = {{ ServiceMonitor, PrometheusRule, ScaledObject, HTTPRoute, GRPCRoute }};
for (const one of {tools.as_literal(custom)}) new known[one.kind](one).validate();
"""
    run([node, "--input-type=module", "-"], input=script, cwd=ROOT / ".venv" / "npm")


def test_every_pod_is_restricted() -> None:
    # The rules of the Pod Security Standard "restricted", https://kubernetes.io/docs/concepts/security/pod-security-standards/
    pods = [*_pods(_everything()), _kserve("cluster-serving-runtime")["spec"]]
    assert len(pods) == 2 * len(ALL_WISHES) + 1
    for pod in pods:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert {kind for volume in pod.get("volumes", []) for kind in volume} <= RESTRICTED_VOLUMES | {"name"}
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
        pod = _pod(values)
        container = pod["containers"][0]
        drain = float({entry["name"]: entry["value"] for entry in container["env"]}["LENGTHWISE_DRAIN_SECONDS"])
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        ready = container["readinessProbe"]
        assert pod["terminationGracePeriodSeconds"] > pre_stop + drain
        assert pre_stop > ready["periodSeconds"] * ready["failureThreshold"]


def test_probes_ask_what_they_should() -> None:
    assert [_container({})[name]["httpGet"]["path"] for name in PROBES] == ["/livez", "/livez", "/readyz"]


@pytest.mark.parametrize(
    ("values", "port", "scheme"),
    [
        ({}, "admin", None),
        (TLS, "admin", "HTTPS"),
        ({"adminPort": 0}, "http", None),
        ({**TLS, "adminPort": 0, "settings": {"admin_port": 9000}}, "admin", "HTTPS"),
        ({"settings": {"tls_cert_file": "/mine/tls.crt"}, "extraVolumeMounts": MOUNT}, "admin", "HTTPS"),
    ],
)
def test_probes_go_where_the_service_answers_them(values: dict[str, Any], port: str, scheme: str | None) -> None:
    container = _container(values)
    assert {(container[name]["httpGet"]["port"], container[name]["httpGet"].get("scheme")) for name in PROBES} == {
        (port, scheme)
    }
    assert port in {one["name"] for one in container["ports"]}


def test_where_clients_need_a_certificate_probes_show_one_from_within_the_pod() -> None:
    for values, shown in (
        (MUTUAL, []),
        (EVERYTHING, ["/etc/lengthwise/probe/tls.crt", "/etc/lengthwise/probe/tls.key"]),
    ):
        container = _container(values)
        for name in PROBES:
            assert "httpGet" not in container[name]
            command = container[name]["exec"]["command"]
            assert command[:3] == ["python", "-S", "/opt/lengthwise/healthcheck.py"]
            assert [word for word in command if word.startswith("/etc/")] == shown
            assert container[name]["timeoutSeconds"] > 2  # the health check's own patience


def test_what_a_secret_holds_is_mounted_where_the_option_names_it() -> None:
    container = _container(EVERYTHING)
    secrets = {one["name"]: one["secret"]["secretName"] for one in _pod(EVERYTHING)["volumes"] if "secret" in one}
    folders = {one["mountPath"]: secrets.get(one["name"]) for one in container["volumeMounts"]}
    named = {one["name"]: one.get("value", "") for one in container["env"]}
    held = {"API_KEYS": "keys", "TLS_CERT": "tls", "TLS_KEY": "tls", "TLS_CLIENT_CA": "client-ca"}
    for option, secret in held.items():
        folder, _, _ = named[f"LENGTHWISE_{option}_FILE"].rpartition("/")
        assert folders[folder] == f"lengthwise-{secret}"
    # A mount of one file of a Secret never changes; a mount of the whole does, which is how new keys arrive.
    assert not [one for one in container["volumeMounts"] if "subPath" in one]
    assert all(one["readOnly"] for one in container["volumeMounts"] if one["name"] in secrets)


def test_metrics_and_the_network_policy_follow_the_admin_port() -> None:
    made = _of_chart(ALL_WISHES["operator"])
    (endpoint,) = made["ServiceMonitor", "lengthwise"]["spec"]["endpoints"]
    (port,) = made["Service", "lengthwise-admin"]["spec"]["ports"]
    assert endpoint["port"] == port["name"] == "admin"
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "lengthwise"}]
    assert [one["name"] for one in made["Service", "lengthwise"]["spec"]["ports"]] == ["http"]
    callers, admins = made["NetworkPolicy", "lengthwise"]["spec"]["ingress"]
    assert [one["port"] for one in callers["ports"]] == ["http"]
    assert [one["port"] for one in admins["ports"]] == ["admin"]
    assert admins["from"] != callers["from"]
    annotations = made["Deployment", "lengthwise"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9000"


def test_the_test_of_a_release_does_not_need_what_it_has_not() -> None:
    # The load has no key and speaks no TLS; with either, readiness is asked, which needs no key.
    for values, asks in (({}, "bench"), (KEYS, "/readyz"), (TLS, "/readyz"), (EVERYTHING, "/readyz")):
        pod = _of_chart(values, hooks=True)["Pod", "lengthwise-answers"]["spec"]
        (container,) = pod["containers"]
        assert asks in [*container.get("command", []), *container.get("args", [])]
        assert "lengthwise-keys" not in {one.get("secret", {}).get("secretName") for one in pod.get("volumes", [])}


def _notes(values: dict[str, Any]) -> str:
    files = chart_engine().Chart.load(str(CHART)).render(values, name="lengthwise", namespace="default")
    text: str = files["lengthwise/templates/NOTES.txt"]
    return text


def test_the_notes_say_what_was_made_and_what_is_dangerous() -> None:
    plain, full = _notes({}), _notes({**EVERYTHING, "image": {"repository": "registry.example.com/lengthwise"}})
    assert "WARNING: the image has no registry" in plain
    assert "none: whoever reaches the service may call" in plain
    for said in ("of the Secret lengthwise-keys", "of the Secret lengthwise-tls", "rollout restart"):
        assert said in full
        assert said not in plain
    assert "WARNING" not in full
    assert "lengthwise-admin" in plain
    assert "lengthwise-admin" not in _notes({"adminPort": 0})
    assert "WARNING: the service may be reached from outside" in _notes({"ingress": {"enabled": True}})


def test_no_service_can_turn_into_an_option() -> None:
    # A Service named lengthwise would set LENGTHWISE_PORT=tcp://10.0.0.1:8000, which the service refuses to read.
    assert all(pod["enableServiceLinks"] is False for pod in _pods(_everything()))


def test_autoscalers_own_the_replicas() -> None:
    for wish, values in ALL_WISHES.items():
        made = _of_chart(values)
        scaled = {kind for kind, _ in made} & {"HorizontalPodAutoscaler", "ScaledObject"}
        assert ("replicas" in made["Deployment", "lengthwise"]["spec"]) is not bool(scaled), wish


def test_the_values_for_gpus_ask_for_a_gpu() -> None:
    pod = _pod(ALL_WISHES["gpu"])
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
    documented = {"annotations", "supportedModelFormats", "protocolVersions", "multiModel", "containers"}
    assert set(runtime["spec"]) <= documented
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
    annotations = _kserve("cluster-serving-runtime")["spec"]["annotations"]
    assert container["args"][container["args"].index("--admin-port") + 1] == annotations["prometheus.kserve.io/port"]


def test_a_packed_chart_holds_the_rules_that_prometheus_reads(tmp_path: Path) -> None:
    helm = chart_engine()
    packed = helm.Chart.load_archive(Path(helm.package(str(CHART), destination=str(tmp_path))).read_bytes())
    made = packed.render(ALL_WISHES["cpu"], name="lengthwise", namespace="default")
    (rule,) = objects(made["lengthwise/templates/prometheusrule.yaml"])
    files = [RULES / name for name in ("recording.yml", "alerts.yml")]
    assert rule["spec"]["groups"] == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
