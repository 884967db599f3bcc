"""Generates the kustomize files from the chart: `python deploy/kustomize/render.py`.

The chart is the source. Its default objects become `base/`. A component contains what the chart adds for some values:
new objects, and patches for changed ones. Overlays, and the patches of the older components, are written by hand; a
test compares them with what the chart renders from the same values.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

FOLDER = Path(__file__).resolve().parent
CHART = FOLDER.parent / "helm" / "lengthwise"
RELEASE = "lengthwise"
OF_HELM = ("app.kubernetes.io/managed-by:", "helm.sh/chart:")
MARK = "# Made from deploy/helm/lengthwise by `make manifests`; do not edit."
BASE = ("deployment", "networkpolicy", "poddisruptionbudget", "service", "serviceaccount")
OBJECTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "hpa": ({"autoscaling": {"kind": "hpa"}}, ("horizontalpodautoscaler",)),
    "keda": ({"autoscaling": {"kind": "keda"}}, ("scaledobject",)),
    "prometheus-operator": ({"monitoring": {"operator": True}}, ("servicemonitor", "prometheusrule")),
}
"""Components whose kustomization is written by hand: the values of the chart, and the objects rendered from them."""

MERGED_BY = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists of a pod whose entries Kubernetes merges, and by what."""


@dataclass(frozen=True)
class Component:
    """A component that is generated completely.

    Attributes:
        about: What the component adds to an overlay, and what the overlay must provide; written as comment lines.
        values: The values of the chart.
        monitored: Further values, to find what the component changes if the Prometheus operator is used.
        objects: The templates of the objects that it adds.
        after: Values of the component that must be listed before it, if there is one.
    """

    about: str
    values: dict[str, Any]
    monitored: dict[str, Any] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    after: dict[str, Any] = field(default_factory=dict)


KEYS = {"apiKeys": {"existingSecret": "lengthwise-keys"}}
TLS = {"tls": {"existingSecret": "lengthwise-tls"}}
GRPC = {"grpcPort": 8001}
COMPONENTS = {
    "api-keys": Component(
        "Callers need a key of the Secret lengthwise-keys, which is yours: its entry `keys` has one key a line.\n"
        "  kubectl create secret generic lengthwise-keys --from-file=keys\n"
        "Prometheus sends the key that is the entry `key` of the Secret lengthwise-prometheus-key.",
        KEYS,
        {"monitoring": {"bearerTokenSecret": {"name": "lengthwise-prometheus-key", "key": "key"}}},
    ),
    "tls": Component(
        "HTTPS, and gRPC over TLS, with the certificate of the Secret lengthwise-tls (kubernetes.io/tls), which is\n"
        "yours. It is read when a pod starts. Prometheus checks it by the entry ca.crt for lengthwise.default.svc:\n"
        "another namespace than default wants another serverName.",
        TLS,
    ),
    "mutual-tls": Component(
        "Clients must show a certificate of the authorities in the Secret lengthwise-client-ca (entry ca.crt), which\n"
        "is yours. Stands behind the components tls and admin-port. The probes run in the pod and show the server's\n"
        "own certificate; Prometheus shows that of the Secret lengthwise-prometheus-tls.",
        {"tls": {**TLS["tls"], "clientCaSecret": "lengthwise-client-ca"}},
        {
            "monitoring": {
                "tlsConfig": {
                    "serverName": "lengthwise.default.svc",
                    "ca": {"secret": {"name": "lengthwise-tls", "key": "ca.crt"}},
                    "cert": {"secret": {"name": "lengthwise-prometheus-tls", "key": "tls.crt"}},
                    "keySecret": {"name": "lengthwise-prometheus-tls", "key": "tls.key"},
                }
            }
        },
        after=TLS,
    ),
    "admin-port": Component(
        "A port of its own for metrics and admin calls, with a Service of its own; the namespace monitoring may call.",
        {"adminPort": 9000},
        objects=("service-admin",),
    ),
    "grpc": Component("gRPC at port 8001.", GRPC),
    "ingress": Component(
        "A host name for callers from outside; replace lengthwise.example.com by yours in an overlay.",
        {"ingress": {"enabled": True}},
        objects=("ingress",),
    ),
    "http-route": Component(
        "A route of Gateway API; replace the gateway by yours in an overlay.",
        {"httpRoute": {"enabled": True}},
        objects=("httproute",),
    ),
    "grpc-route": Component(
        "A route of Gateway API for gRPC, behind the component grpc; replace the gateway by yours in an overlay.",
        {**GRPC, "grpcRoute": {"enabled": True}},
        objects=("grpcroute",),
        after=GRPC,
    ),
}
"""Components that are made as a whole."""


def rendered(values: dict[str, Any]) -> dict[str, str]:
    """The chart's files by the name of their template, without the labels that only a Helm release has."""
    files = Chart.load(str(CHART)).render(values, name=RELEASE, namespace="default")
    return {Path(name).stem: _without_labels(text) for name, text in files.items() if name.endswith(".yaml")}


def files() -> dict[Path, str]:
    """Every file that is made of the chart."""
    made = {FOLDER / "base" / f"{name}.yaml": rendered({})[name] for name in BASE}
    wholes = {name: (component.values, component.objects) for name, component in COMPONENTS.items()}
    for name, (values, objects) in {**OBJECTS, **wholes}.items():
        of_chart = rendered(values)
        made |= {FOLDER / "components" / name / f"{kind}.yaml": of_chart[kind] for kind in objects}
    for name, component in COMPONENTS.items():
        made[FOLDER / "components" / name / "kustomization.yaml"] = kustomization(component)
    return made


def kustomization(component: Component) -> str:
    """The text of a component's kustomization.

    Raises:
        ValueError: A change of the chart cannot be written as a patch.
    """
    lines = [f"# {line}".rstrip() for line in component.about.splitlines()]
    lines += ["apiVersion: kustomize.config.k8s.io/v1alpha1", "kind: Component"]
    if component.objects:
        lines += ["resources:", *(f"  - {name}.yaml" for name in component.objects)]
    patches = list(_patches(component))
    if patches:
        lines.append("patches:")
    for kind, patch in patches:
        text = yaml.safe_dump(patch, sort_keys=False, width=1000)
        lines += ["  - target:", f"      kind: {kind}", f"      name: {RELEASE}", "    patch: |"]
        lines.append(textwrap.indent(text.rstrip(), "      "))
    return "\n".join(lines) + "\n"


def _patches(component: Component) -> Iterator[tuple[str, Any]]:
    """For each kind of object that a component changes, how."""
    operator = {"monitoring": {"operator": True}}
    merged = {**component.values, "monitoring": {**operator["monitoring"], **component.monitored.get("monitoring", {})}}
    before, after = rendered({**component.after, **operator}), rendered(merged)
    for name in (*BASE, "servicemonitor"):
        old, new = yaml.safe_load(before[name]), yaml.safe_load(after[name])
        if old == new:
            continue
        if new["kind"] == "Deployment":
            identity = {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": {"name": RELEASE}}
            yield new["kind"], {**identity, **merge(old, new)}
        else:
            yield new["kind"], list(operations(old, new, ""))


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A strategic merge patch from one object to another; several such patches may be applied to one object."""
    made: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            made[key] = value
        elif isinstance(value, dict):
            made |= {key: changed} if (changed := merge(old[key], value)) else {}
        elif key in MERGED_BY:
            by = MERGED_BY[key]
            known = {entry[by]: entry for entry in old[key]}
            entries = [
                {by: entry[by], **merge(known[entry[by]], entry)} if entry[by] in known else entry
                for entry in value
                if known.get(entry[by]) != entry
            ]
            made |= {key: entries} if entries else {}
        elif value != old[key]:
            made[key] = value
    return made


def operations(old: Any, new: Any, path: str) -> Iterator[dict[str, Any]]:
    """A JSON patch from one value to another; entries can only be added at the end of a list.

    Raises:
        ValueError: A list loses an entry.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in new:
                yield {"op": "remove", "path": place}
            elif key not in old:
                yield {"op": "add", "path": place, "value": new[key]}
            else:
                yield from operations(old[key], new[key], place)
    elif isinstance(old, list) and isinstance(new, list):
        if len(new) < len(old):
            raise ValueError(f"{path} loses an entry")
        for place, (before, after) in enumerate(zip(old, new, strict=False)):
            yield from operations(before, after, f"{path}/{place}")
        yield from ({"op": "add", "path": f"{path}/-", "value": entry} for entry in new[len(old) :])
    elif old != new:
        yield {"op": "replace", "path": path, "value": new}


def _without_labels(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.strip().startswith(OF_HELM)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the files."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{MARK}\n{text}")
        print(path.relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    sys.exit(main())
