"""Writes the chart's objects as the files that kustomize starts from: `python deploy/kustomize/render.py`.

The chart is the one truth. Its default objects become `base/`, its optional ones a component each; overlays and the
components' patches are written by hand, and a test holds them to what the chart makes of the same wishes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from helm_python import Chart

FOLDER = Path(__file__).resolve().parent
CHART = FOLDER.parent / "helm" / "lengthwise"
RELEASE = "lengthwise"
OF_HELM = ("app.kubernetes.io/managed-by:", "helm.sh/chart:")
BASE = ("deployment", "networkpolicy", "poddisruptionbudget", "service", "serviceaccount")
COMPONENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "hpa": ({"autoscaling": {"kind": "hpa"}}, ("horizontalpodautoscaler",)),
    "keda": ({"autoscaling": {"kind": "keda"}}, ("scaledobject",)),
    "prometheus-operator": ({"monitoring": {"operator": True}}, ("servicemonitor", "prometheusrule")),
}


def rendered(values: dict[str, Any]) -> dict[str, str]:
    """The chart's files by the name of their template, without the labels that only a Helm release has."""
    files = Chart.load(str(CHART)).render(values, name=RELEASE, namespace="default")
    return {Path(name).stem: _without_labels(text) for name, text in files.items() if name.endswith(".yaml")}


def files() -> dict[Path, str]:
    """Every file that is made of the chart."""
    made = {FOLDER / "base" / f"{name}.yaml": rendered({})[name] for name in BASE}
    for component, (values, names) in COMPONENTS.items():
        of_chart = rendered(values)
        made |= {FOLDER / "components" / component / f"{name}.yaml": of_chart[name] for name in names}
    return made


def _without_labels(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.strip().startswith(OF_HELM)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the files."""
    for path, text in files().items():
        path.write_text(f"# Made from deploy/helm/lengthwise by `make manifests`; do not edit.\n{text}")
        print(path.relative_to(FOLDER.parents[1]))


if __name__ == "__main__":
    sys.exit(main())
