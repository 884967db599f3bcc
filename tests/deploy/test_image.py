"""The image, built and run: what is in it, what it costs, how it starts, how it ends, what limits do to it."""

import asyncio
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx2
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from lengthwise.bench.launch import free_port
from lengthwise.grpc.infer import SERVICE
from lengthwise.runtime import recurrent_kernels
from lengthwise.stores.push import push
from tests.deploy.container import BASE, HARDENED, LIMITS, Engine, engine
from tests.deploy.live import started, until
from tests.deploy.tools import CHART, DEPLOY, ROOT, chart_engine, objects
from tests.support.numpy_models import samples
from tests.support.stores import Answer, Call, Hub, Objects, Registry, StandIn, Web, archive_of, running
from tests.support.waiting import answers

pytestmark = pytest.mark.deploy

IMAGE = "localhost/lengthwise:tested"
MOST_MEGABYTES = 160  # of which models by address are 21
BODY = (ROOT / "examples" / "japanese-vowels.json").read_bytes()


@pytest.fixture(scope="module")
def built() -> Engine:
    """The engine, with the image of this checkout."""
    made = engine()
    made.build("cpu", IMAGE)
    return made


@contextmanager
def _served(built: Engine, *options: str) -> Iterator[tuple[str, int]]:
    """A hardened container that is ready; its name and its port."""
    port = free_port()
    with built.container(IMAGE, "--env", f"LENGTHWISE_PORT={port}", *options) as name:
        until("the container is ready", 60, lambda: answers(port, "/readyz"), lambda: built.run("logs", name))
        yield name, port


def _megabytes(built: Engine) -> float:
    return (int(built.inspected(IMAGE, "{{.Size}}")) - int(built.inspected(BASE, "{{.Size}}"))) / 1e6


def test_the_image_adds_little_to_its_base(built: Engine) -> None:
    added = _megabytes(built)
    print(f"{added:.1f} MB over its base")
    assert added <= MOST_MEGABYTES


def test_the_image_holds_what_the_lock_says_and_no_installer_or_exporter(built: Engine) -> None:
    with built.files(IMAGE) as root:
        folders = [str(root / "opt/lengthwise" / name) for name in ("packages", "program")]
        held = {found.name.lower().replace("_", "-") for found in importlib.metadata.distributions(path=folders)}
        locked = {
            line.partition("==")[0]
            for line in (DEPLOY / "image" / "runtime.lock").read_text().splitlines()
            if "==" in line and not line.startswith((" ", "#"))
        }
        assert held == locked | {"lengthwise"}
        assert not (root / "opt/lengthwise/program/lengthwise_export").exists()
        assert not list(root.glob("opt/lengthwise/*/onnx"))  # deeper, a room of this project has that name
        unwanted = ("pip", "setuptools", "torch", "gcc", "cc", "curl", "wget", "ensurepip")
        found = [path for name in unwanted for place in ("usr", "opt") for path in (root / place).rglob(name)]
        assert [path for path in found if "doc" not in path.parts and "share" not in path.parts] == []


def test_the_image_says_what_it_is_and_whom_it_runs_as(built: Engine) -> None:
    labels = json.loads(built.inspected(IMAGE, "{{json .Labels}}"))
    wanted = {
        f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses", "version", "revision")
    }
    assert wanted <= set(labels)
    assert built.inspected(IMAGE, "{{.Config.User}}") == "10001:10001"
    assert "healthcheck.py" in built.inspected(IMAGE, "{{json .HealthCheck}}")


def test_the_same_input_gives_the_same_layers(built: Engine) -> None:
    first = built.inspected(IMAGE, "{{.RootFS.Layers}}")
    built.build("cpu", "localhost/lengthwise:again", "--no-cache")
    assert built.inspected("localhost/lengthwise:again", "{{.RootFS.Layers}}") == first


def test_the_bill_of_materials_lists_what_is_locked(built: Engine, tmp_path: Path) -> None:
    built.build("sbom", "localhost/lengthwise:sbom", "--output", f"type=local,dest={tmp_path}")
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "lengthwise"
    locked = (DEPLOY / "image" / "runtime.lock").read_text()
    for component in bill["components"]:
        assert f"{component['name']}=={component['version']} " in locked
        assert component["purl"].startswith("pkg:pypi/")
    assert len(bill["components"]) == locked.count("==")


def test_it_answers_as_its_user_on_a_read_only_root_without_capabilities(built: Engine) -> None:
    started = time.monotonic()
    with _served(built) as (name, port):
        print(f"ready {time.monotonic() - started:.2f} s after the start")
        answer = httpx2.post(f"http://127.0.0.1:{port}/predict", content=BODY)
        assert answer.status_code == 200
        assert [one["label"] for one in answer.json()["predictions"]] == ["1", "3", "6"]
        status = built.run("exec", name, "python", "-c", "print(open('/proc/1/status').read())")
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        written = built.run("exec", name, "python", "-c", "open('/models/x', 'w')", good=(1,))
        assert "Read-only file system" in written
        built.run("healthcheck", "run", name)
        assert "pip" not in built.run("exec", name, "python", "-c", "import sys; print(*sys.modules)")
        built.run("exec", name, "python", "-c", "import pip", good=(1,))


def test_it_is_found_healthy_behind_tls_with_keys_and_certificates_of_clients(built: Engine, tmp_path: Path) -> None:
    # What the chart mounts for these, and what its probes run.
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    files = {
        "tls.crt": b"".join(blob.bytes() for blob in made.cert_chain_pems),
        "tls.key": made.private_key_pem.bytes(),
        "ca.crt": authority.cert_pem.bytes(),
        "keys": b"a-key-of-sixteen-or-more\n",
    }
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    at, ports = "/etc/lengthwise", (free_port(), free_port())
    options = {"PORT": ports[0], "ADMIN_PORT": ports[1], "API_KEYS_FILE": f"{at}/keys"}
    options |= {"TLS_CERT_FILE": f"{at}/tls.crt", "TLS_KEY_FILE": f"{at}/tls.key", "TLS_CLIENT_CA_FILE": f"{at}/ca.crt"}
    variables = [word for name, value in options.items() for word in ("--env", f"LENGTHWISE_{name}={value}")]
    probe = ["python", "-S", "/opt/lengthwise/healthcheck.py"]
    with built.container(IMAGE, *variables, "--volume", f"{folder}:{at}:ro") as name:
        until(
            "a probe finds it ready",
            60,
            lambda: (
                "READY" in built.run("exec", name, "sh", "-c", f"{' '.join(probe)} /readyz && echo READY", good=(0, 1))
            ),
        )
        built.run("healthcheck", "run", name)
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        with httpx2.Client(base_url=f"https://localhost:{ports[0]}", verify=context) as client:
            assert client.post("/predict", content=BODY).status_code == 401
            key = {"authorization": "Bearer a-key-of-sixteen-or-more"}
            assert client.post("/predict", content=BODY, headers=key).status_code == 200


def _repository(folder: Path) -> Path:
    """A model repository with a good version and, beside it, one that cannot pass its proof."""
    shutil.copytree(ROOT / "service" / "lengthwise" / "models", folder)
    shutil.copytree(folder / "japanese-vowels" / "1", folder / "japanese-vowels" / "2")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_a_volume_takes_the_bundled_models_place(built: Engine, tmp_path: Path) -> None:
    models = _repository(tmp_path / "models")
    with _served(built, "--volume", f"{models}:/models:ro") as (_, port):
        health = httpx2.get(f"http://127.0.0.1:{port}/healthz").json()
        assert [(one["model"], one["version"]) for one in health["models"]] == [("japanese-vowels", "1")]
        assert [one["model"] for one in health["refused"]] == ["japanese-vowels/2"]
        page = samples(httpx2.get(f"http://127.0.0.1:{port}/metrics").text)
        assert page["lengthwise_refused_models"] == 1


def test_the_arguments_of_the_kserve_runtime_serve_what_kserve_mounts(built: Engine, tmp_path: Path) -> None:
    models, port, admin = _repository(tmp_path / "models"), free_port(), free_port()
    (runtime,) = objects((DEPLOY / "kserve" / "cluster-serving-runtime.yaml").read_text())
    words = [
        word.replace("8080", str(port)).replace("9000", str(admin)) for word in runtime["spec"]["containers"][0]["args"]
    ]
    with built.container(IMAGE, "--volume", f"{models}:/mnt/models:ro", command=words):
        until("the container is ready", 60, lambda: answers(port, "/readyz"))
        assert httpx2.get(f"http://127.0.0.1:{admin}/healthz").json()["refused"]


@pytest.fixture(params=["https", "s3", "gs", "hf", "oci"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An address of models in a store of each kind on this machine, and the variables that lead there."""
    models = _repository(tmp_path / "models")
    files = {path.relative_to(models).as_posix(): path.read_bytes() for path in models.rglob("*") if path.is_file()}
    web, hub, registry, bucket = Web(), Hub(), Registry(), Objects("bucket")
    web.files["models.tar"] = archive_of(models, tmp_path / "models.tar")
    hub.commits.append(files)
    bucket.files = {f"models/{name}": content for name, content in files.items()}
    kinds: dict[str, Callable[[Call], Answer]] = {"https": web, "hf": hub, "oci": registry}
    with running(StandIn(kinds.get(request.param, bucket))) as server:
        registry.url = server.url
        host = f"127.0.0.1:{server.port}"
        if request.param == "oci":
            push(models, f"oci://{host}/team/vowels")
        amazon = {"AWS_ENDPOINT_URL": server.url, "AWS_ALLOW_HTTP": "true", "AWS_SKIP_SIGNATURE": "true"}
        google = {"GOOGLE_BASE_URL": server.url, "GOOGLE_ALLOW_HTTP": "true", "GOOGLE_SKIP_SIGNATURE": "true"}
        yield {
            "https": (f"{server.url}/models.tar", {}),
            "s3": ("s3://bucket/models", amazon),
            "gs": ("gs://bucket/models", google),
            "hf": ("hf://team/vowels", {"HF_ENDPOINT": server.url}),
            "oci": (f"oci://{host}/team/vowels", {}),
        }[request.param]


def test_it_serves_models_at_an_address_from_a_cache_that_a_volume_keeps(
    built: Engine, store: tuple[str, dict[str, str]]
) -> None:
    address, variables = store
    volume = f"lengthwise-{os.getpid()}"
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    options += ["--env", f"LENGTHWISE_MODELS={address}", "--volume", f"{volume}:/cache"]
    try:
        with _served(built, *options) as (_, port):
            assert httpx2.post(f"http://127.0.0.1:{port}/predict", content=BODY).status_code == 200
        with _served(built, *options, "--env", "LENGTHWISE_OFFLINE=true") as (_, port):
            assert httpx2.get(f"http://127.0.0.1:{port}/healthz").json()["models"]
    finally:
        built.run("volume", "rm", "--force", volume)


def test_without_a_cache_that_may_be_written_it_says_so(built: Engine) -> None:
    with built.container(IMAGE, "--env", "LENGTHWISE_MODELS=http://127.0.0.1:1/models.tar") as name:
        until("it ended", 60, lambda: built.inspected(name, "{{.State.Running}}", "container") == "false")
        assert "cannot be stored in the cache /cache: Read-only file system" in built.run("logs", name)


def test_an_init_container_fetches_an_archive_of_the_right_digest(built: Engine, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "models"), "gztar", _repository(tmp_path / "models"))
    digest = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    empty, port = tmp_path / "empty", free_port()  # an emptyDir: the pod's group may write to it
    empty.mkdir()
    os.chown(empty, 10001, 10001)
    serve_files = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", tmp_path]
    (init,) = _init_containers()
    url = f"http://127.0.0.1:{port}/models.tar.gz"
    program, *arguments = [*init["command"], url, digest, "/models"]
    options = ["--rm", "--network", "host", "--health-interval", "disable", *LIMITS, *HARDENED]
    options += ["--entrypoint", program, "--volume", f"{empty}:/models", IMAGE]
    with started(serve_files, tmp_path / "files.log"):
        until("the archive is served", 20, lambda: answers(port, "/models.tar.gz"))
        assert "fetched japanese-vowels" in built.run("run", *options, *arguments)
        arguments[-2] = "0" * 64
        assert "nothing was unpacked" in built.run("run", *options, *arguments, good=(1,))
    with _served(built, "--volume", f"{empty}:/models:ro") as (_, port):
        assert httpx2.post(f"http://127.0.0.1:{port}/predict", content=BODY).status_code == 200


def _init_containers() -> list[dict[str, list[str]]]:
    models = {"source": "archive", "url": "https://models.example.org/models.tar.gz", "sha256": "0" * 64}
    files = chart_engine().Chart.load(str(CHART)).render({"models": models}, name="lengthwise", namespace="default")
    (deployment,) = objects(files["lengthwise/templates/deployment.yaml"])
    found: list[dict[str, list[str]]] = deployment["spec"]["template"]["spec"]["initContainers"]
    return found


async def _stopped_under_load(built: Engine, name: str, port: int) -> Counter[int]:
    """The statuses of all calls that were answered before and while a container was told to stop."""
    statuses: Counter[int] = Counter()
    limits = httpx2.Limits(max_connections=32)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30) as client:

        async def calls() -> None:
            while True:
                try:
                    statuses[(await client.post("/predict", content=BODY)).status_code] += 1
                except httpx2.TransportError:
                    return  # not accepted: the connection was closed while it was idle, or never taken

        tasks = [asyncio.create_task(calls()) for _ in range(32)]
        while statuses.total() < 500:
            await asyncio.wait(tasks, timeout=0.05)
        await asyncio.to_thread(built.run, "stop", "--time", "40", name)
        await asyncio.gather(*tasks)
    return statuses


def test_a_stop_under_load_answers_every_accepted_request_and_exits_with_zero(built: Engine) -> None:
    with _served(built, "--env", "LENGTHWISE_ACCESS_LOG=1", "--env", "LENGTHWISE_LOG_FORMAT=json") as (name, port):
        received = asyncio.run(_stopped_under_load(built, name, port))
        log = built.run("logs", name)
        answered = Counter(int(code) for code in re.findall(r'"status": (\d{3})', log))
        print(f"answered {dict(answered)}, received {dict(received)}")
        assert received == answered
        assert set(answered) <= {200, 503}
        assert "not answered within" not in log
        assert built.inspected(name, "{{.State.ExitCode}}", "container") == "0"


@pytest.mark.parametrize(("cpus", "runners"), [("1", 1), ("0.5", 1), ("2", 2)])
def test_the_runners_follow_the_cpu_quota(built: Engine, cpus: str, runners: int) -> None:
    with _served(built, "--cpus", cpus) as (_, port):
        page = samples(httpx2.get(f"http://127.0.0.1:{port}/metrics").text)
        assert page["lengthwise_runners"] == runners


def test_it_stays_within_its_memory_limit_under_load(built: Engine) -> None:
    with _served(built, "--memory", "256m", "--pids-limit", "64") as (name, port):
        bench = ["python", "-P", "-m", "lengthwise", "bench", f"http://127.0.0.1:{port}", "--duration-seconds", "5"]
        built.run("exec", name, *bench, seconds=120)
        status = built.run("exec", name, "python", "-c", "print(open('/proc/1/status').read())")
        peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        print(f"peak {peak:.0f} MiB of 256")
        assert answers(port, "/readyz")
        assert peak < 256


class _Collector(BaseHTTPRequestHandler):
    """Takes the traces of a service."""

    came = threading.Event()

    def do_POST(self) -> None:
        if self.path == "/v1/traces" and self.rfile.read(int(self.headers["content-length"])):
            self.came.set()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_grpc_its_reflection_and_traces_have_all_that_they_need(built: Engine) -> None:
    # What is trimmed from the image is no part of these; serving imports them only where an option asks for them.
    port = free_port()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as collector:
        threading.Thread(target=collector.serve_forever).start()
        traces = f"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{collector.server_port}"
        with _served(built, "--env", f"LENGTHWISE_GRPC_PORT={port}", "--env", traces) as (_, http):
            assert httpx2.post(f"http://127.0.0.1:{http}/predict", content=BODY).status_code == 200
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
                assert health.status == health_pb2.HealthCheckResponse.SERVING
                assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
            assert _Collector.came.wait(20)
        collector.shutdown()


def test_its_modules_in_c_run_on_this_processor(built: Engine) -> None:
    asked = (
        "from lengthwise.decoding import fast_json; from lengthwise.runtime import recurrent_kernels; "
        "print(fast_json.COMPILED, *recurrent_kernels.INSTRUCTION_SETS)"
    )
    with _served(built) as (name, _):
        said = built.run("exec", name, "python", "-c", asked).split()[-1 - len(recurrent_kernels.INSTRUCTION_SETS) :]
    assert said == ["True", *recurrent_kernels.INSTRUCTION_SETS]


def test_past_its_memory_limit_it_is_killed(built: Engine) -> None:
    with built.container(IMAGE, "--memory", "32m", "--env", f"LENGTHWISE_PORT={free_port()}") as name:
        until("it was killed", 60, lambda: built.inspected(name, "{{.State.Running}}", "container") == "false")
        assert built.inspected(name, "{{.State.ExitCode}}", "container") == "137"


@pytest.fixture
def cuda(built: Engine) -> str:
    """The image for GPUs, where it was built."""
    if not built.exists("localhost/lengthwise:cuda"):
        pytest.skip("the cuda image is 2.7 GB; `make image-cuda` or the command in deploy/README.md builds it first")
    return "localhost/lengthwise:cuda"


def test_every_library_of_the_cuda_image_is_found_but_the_drivers(built: Engine, cuda: str) -> None:
    libraries = "/opt/lengthwise/packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
    options = ["--rm", "--network", "none", "--health-interval", "disable", "--entrypoint", "ldd"]
    said = built.run("run", *options, *LIMITS, cuda, libraries)
    assert [line.split()[0] for line in said.splitlines() if "not found" in line] == ["libcuda.so.1"]


def test_the_cuda_image_serves_on_the_cpu_where_there_is_no_gpu(built: Engine, cuda: str) -> None:
    port = free_port()
    with built.container(cuda, "--env", f"LENGTHWISE_PORT={port}"):
        until("the container is ready", 60, lambda: answers(port, "/readyz"))
        assert httpx2.post(f"http://127.0.0.1:{port}/predict", content=BODY).status_code == 200
