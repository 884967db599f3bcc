"""From a checkout to what a cluster pulls: built, pushed to a registry, pulled by its digest, and answering."""

from pathlib import Path

import httpx2
import pytest
import yaml

from lengthwise.bench.launch import free_port
from tests.deploy.container import engine
from tests.deploy.live import started, until
from tests.deploy.tools import CHART, ROOT, chart_engine, objects, program, run
from tests.support.waiting import answers

pytestmark = pytest.mark.deploy

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


INDEX = "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json"


def test_a_pushed_image_is_pulled_by_the_digest_of_the_chart_and_answers(tmp_path: Path) -> None:
    registry = program("docker-registry", "apt-get install docker-registry")
    made, helm, port, served = engine(), chart_engine(), free_port(), free_port()
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    made.make_image()
    place = f"127.0.0.1:{port}/team"
    stored, listens = f"{{rootdirectory: {tmp_path / 'blobs'}}}", f"{{addr: '127.0.0.1:{port}'}}"
    (tmp_path / "config.yml").write_text(f"version: 0.1\nstorage: {{filesystem: {stored}}}\nhttp: {listens}\n")
    (tmp_path / "registries.conf").write_text(f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n')
    plain = {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf")}  # without TLS, on loopback
    with started([registry, "serve", tmp_path / "config.yml"], tmp_path / "registry.log"):
        until("the registry answers", 30, lambda: answers(port, "/v2/"))
        run(["make", "push", f"REGISTRY={place}", f"ENGINE={' '.join(made.podman)}"], seconds=300, env=plain)
        about = httpx2.head(
            f"http://127.0.0.1:{port}/v2/team/lengthwise/manifests/{version}", headers={"accept": MANIFEST}
        )
        digest = about.headers["docker-content-digest"]
        values = {"image": {"repository": f"{place}/lengthwise", "digest": digest}}
        files = helm.Chart.load(str(CHART)).render(values, name="lengthwise", namespace="default")
        (deployment,) = objects(files["lengthwise/templates/deployment.yaml"])
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        image = container["image"]
        assert image == f"{place}/lengthwise@{digest}"
        made.run("rmi", f"{place}/lengthwise:{version}")
        # Both processors under one tag; the one that is not here is the image with another name of its processor.
        build, other = ["REGISTRY=" + place, f"ENGINE={' '.join(made.buildah)}"], f"{place}/lengthwise:{version}-arm64"
        run(["make", "push", "ARCH=-amd64", *build], seconds=300, env=plain)
        name = run([*made.buildah, "from", "--pull-never", f"{place}/lengthwise:{version}-amd64"]).split()[-1]
        run([*made.buildah, "config", "--arch", "arm64", name])
        run([*made.buildah, "commit", "--rm", name, other], seconds=300)
        run([*made.buildah, "push", other], seconds=300, env=plain)
        run(["make", "image-index", "PUSH_OPTIONS=--tls-verify=false", *build], seconds=300, env=plain)
        index = httpx2.get(
            f"http://127.0.0.1:{port}/v2/team/lengthwise/manifests/{version}", headers={"accept": INDEX}
        ).json()
        assert {one["platform"]["architecture"] for one in index["manifests"]} == {"amd64", "arm64"}
        run([*made.podman, "pull", image], seconds=300, env=plain)
        with made.container(image, "--env", f"LENGTHWISE_PORT={served}") as name:
            until("the container is ready", 60, lambda: answers(served, "/readyz"), lambda: made.run("logs", name))
            body = (ROOT / "examples" / "japanese-vowels.json").read_bytes()
            answer = httpx2.post(f"http://127.0.0.1:{served}/predict", content=body)
            assert [one["label"] for one in answer.json()["predictions"]] == ["1", "3", "6"]
            assert httpx2.get(f"http://127.0.0.1:{served}/docs/swagger-ui.js").status_code == 200
        made.run("rmi", image)


def test_a_push_without_a_registry_says_what_it_wants() -> None:
    assert "REGISTRY=" in run(["make", "push"], good=(2,))
