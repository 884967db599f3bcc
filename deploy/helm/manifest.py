"""Writes the chart's default objects as one plain file, for `kubectl apply`: `python deploy/helm/manifest.py`.

The chart is the source. Who needs more than these objects uses it, or its output: `helm template`.
"""

from __future__ import annotations

from pathlib import Path

from helm_python import Chart

CHART = Path(__file__).resolve().parent / "lengthwise"
FILE = CHART.parents[1] / "kubernetes" / "lengthwise.yaml"
OBJECTS = ("serviceaccount", "service", "service-admin", "networkpolicy", "poddisruptionbudget", "deployment")
OF_HELM = ("app.kubernetes.io/managed-by:", "helm.sh/chart:")
ABOUT = """\
# The chart's objects with its default values; made by `make manifests`, do not edit.
# Set `image` to where `make push` put yours, then: kubectl apply -f deploy/kubernetes/lengthwise.yaml
"""


def text() -> str:
    """The file's text, without the labels that only a Helm release has."""
    files = Chart.load(str(CHART)).render({}, name="lengthwise", namespace="default")
    made = [_plain(files[f"lengthwise/templates/{name}.yaml"]) for name in OBJECTS]
    return ABOUT + "".join(f"---\n{one}\n" for one in made)


def _plain(rendered: str) -> str:
    return "\n".join(line for line in rendered.strip().splitlines() if not line.strip().startswith(OF_HELM))


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    print(FILE)
