"""Each store: what is pushed to it is fetched from it, and its faults are said."""

import base64
import gzip
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from lengthwise.bench.launch import free_port
from lengthwise.errors import ConfigurationError, ModelError, StoreUnreachable, VerificationError
from tests.support import model_directories
from tests.support.stores import Answer, Call, Hub, Objects, Registry, StandIn, archive_of, running, versions_in
from tests.support.waiting import answers, wait_until

pytest.importorskip("obstore")
pytest.importorskip("huggingface_hub")
from lengthwise.stores import archives, cache
from lengthwise.stores.push import push

# Container registries


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    answers = Registry()
    with running(StandIn(answers)) as server:
        answers.url, answers.host = server.url, f"127.0.0.1:{server.port}"
        yield answers


def log_in(tmp_path: Path, host: str, **more: object) -> str:
    login = base64.b64encode(b"somebody:secret").decode()
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}, **more}))
    return login


@pytest.mark.long
def test_an_image_that_is_pushed_is_fetched_by_its_tag_and_by_its_digest(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    by_digest = push(models, f"oci://{registry.host}/team/vowels:1")
    for number, address in enumerate((by_digest, f"oci://{registry.host}/team/vowels:1")):
        copy = cache.fetch(address, tmp_path / f"cache-{number}")
        assert versions_in(copy) == {"vowels/1", "vowels/2"}
        assert (copy / "vowels" / "aliases.json").read_text() == '{"champion": 1}\n'


def test_an_image_is_one_for_every_processor_with_the_models_below_models(registry: Registry, models: Path) -> None:
    push(models / "vowels" / "2", f"oci://{registry.host}/team/vowels")
    index = json.loads(registry.manifests["latest"][1])
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    layers = [json.loads(registry.manifests[each["digest"]][1])["layers"] for each in index["manifests"]]
    assert layers[0] == layers[1]
    assert b"models/vowels/2/model.onnx" in registry.blobs[layers[0][1]["digest"]]
    assert b"models/README.md" in registry.blobs[layers[0][0]["digest"]]


def test_a_second_push_uploads_the_new_version_only(registry: Registry, models: Path) -> None:
    push(models, f"oci://{registry.host}/team/vowels")
    before = {*registry.blobs}
    model_directories.place(models, version=3)
    push(models, f"oci://{registry.host}/team/vowels")
    large = [digest for digest in registry.blobs.keys() - before if len(registry.blobs[digest]) > 1_000_000]
    assert len(large) == 1


def test_the_credentials_are_those_of_docker_login(registry: Registry, models: Path, tmp_path: Path) -> None:
    registry.login = log_in(tmp_path, registry.host)
    push(models, f"oci://{registry.host}/team/vowels")
    assert versions_in(cache.fetch(f"oci://{registry.host}/team/vowels", tmp_path / "cache"))


def test_the_credentials_may_come_from_a_helper_program(
    registry: Registry, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.login = log_in(tmp_path, "another", credHelpers={registry.host: "test"})
    helper = tmp_path / "docker-credential-test"
    helper.write_text("""#!/bin/sh\necho '{"Username": "somebody", "Secret": "secret"}'\n""")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    push(models, f"oci://{registry.host}/team/vowels")


@pytest.mark.parametrize("config", ["[]", '{"auths": 3}', '{"credsStore": "missing"}'])
def test_a_configuration_of_docker_that_cannot_be_used_is_said(
    registry: Registry, models: Path, tmp_path: Path, config: str
) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(config)
    with pytest.raises(ConfigurationError, match=r"the credentials for 127\.0\.0\.1:.* cannot be read"):
        push(models, f"oci://{registry.host}/team/vowels")


def test_without_credentials_the_refusal_names_docker_login(registry: Registry, models: Path, tmp_path: Path) -> None:
    registry.login = "c29tZWJvZHk6c2VjcmV0"
    with pytest.raises(ConfigurationError, match=r"answers 401 .*docker login"):
        push(models, f"oci://{registry.host}/team/vowels")


def test_a_layer_of_other_bytes_is_refused(registry: Registry, models: Path, tmp_path: Path) -> None:
    address = push(models, f"oci://{registry.host}/team/vowels")
    for digest, content in registry.blobs.items():
        registry.blobs[digest] = content[:-1] + b"?"
    with pytest.raises(VerificationError, match="gives other bytes for the blob"):
        cache.fetch(address, tmp_path / "cache")


def test_an_upload_that_leads_to_another_host_gets_no_credentials(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    registry.login = log_in(tmp_path, registry.host)
    other = Registry()
    with running(StandIn(other)) as server:
        headers = {"location": f"{server.url}/v2/team/vowels/blobs/uploads/1"}
        registry.faults["/v2/team/vowels/blobs/uploads/"] = Answer(202, headers=headers)
        address = push(models, f"oci://{registry.host}/team/vowels")
        assert address.startswith(f"oci://{registry.host}")
        assert {call.headers.get("authorization") for call in server.calls} == {None}
    assert len(other.blobs) == 5


def test_an_index_of_other_bytes_is_refused_where_the_address_has_its_digest(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    address = push(models, f"oci://{registry.host}/team/vowels")
    name = address.rpartition("@")[2]
    kind, content = registry.manifests[name]
    registry.manifests[name] = kind, content + b" "
    with pytest.raises(VerificationError, match="for the manifest sha256"):
        cache.fetch(address, tmp_path / "cache")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (b"no json", "is no image"),
        (b"[]", "is no image"),
        (b"{}", "is no image"),
        (b'{"layers": []}', "holds no model"),
        (b"[" * 100_000, "is no image"),
        (b'{"layers": [{"digest": "sha256:0", "size": "many"}]}', "is no image"),
        (b'{"layers": [{"digest": "sha256:0", "size": null}]}', "is no image"),
        (b'{"layers": [{"digest": "a\\nb", "size": 1}]}', "no answer of the registry"),
    ],
)
def test_what_is_no_image_of_models_is_said(registry: Registry, tmp_path: Path, manifest: bytes, says: str) -> None:
    registry.manifests["latest"] = "application/json", manifest
    with pytest.raises(ConfigurationError, match=says):
        cache.fetch(f"oci://{registry.host}/team/vowels", tmp_path / "cache")


@pytest.mark.parametrize("token", [b"<html>", b"[]", b"null", b"[" * 100_000, '{"token": "\u00e4"}'.encode()])
def test_a_token_that_is_none_is_said(registry: Registry, tmp_path: Path, token: bytes) -> None:
    registry.login = "secret"
    registry.faults["/token"] = Answer(body=token)
    with pytest.raises(StoreUnreachable, match="no answer of the registry"):
        cache.fetch(f"oci://{registry.host}/team/vowels", tmp_path / "cache")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("path", ["/token", "/v2/team/vowels/manifests/latest"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_that_only_logs_in_is_read_up_to_a_bound(
    registry: Registry, tmp_path: Path, path: str, packed: bool
) -> None:
    registry.login = "secret"
    content = b'{"token": "a-token"}'.ljust(2**25)
    headers = {"www-authenticate": f'Bearer realm="{registry.url}/token"'}
    registry.faults[path] = Answer(
        200 if path == "/token" else 401,
        gzip.compress(content) if packed else content,
        headers | ({"content-encoding": "gzip"} if packed else {}),
    )
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError):
            cache.fetch(f"oci://{registry.host}/team/vowels", tmp_path / "cache")
        assert tracemalloc.get_traced_memory()[1] - len(content) * (not packed) < 2**23
    finally:
        tracemalloc.stop()


def test_the_layers_of_an_image_count_together(
    registry: Registry, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(models, f"oci://{registry.host}/team/vowels:1")
    size = sum(path.stat().st_size for path in models.rglob("*") if path.is_file())
    monkeypatch.setattr(archives, "MOST_BYTES", 3 * size // 2)  # as they come, and as they are extracted
    with pytest.raises(ConfigurationError, match="which is too much for models"):
        cache.fetch(f"oci://{registry.host}/team/vowels:1", tmp_path / "cache")
    monkeypatch.setattr(archives, "MOST_BYTES", 3 * size)
    assert cache.fetch(f"oci://{registry.host}/team/vowels:1", tmp_path / "cache")


@pytest.mark.parametrize("realm", ["http://[::1", "http://a/\x01", ""])
def test_a_token_service_without_an_address_is_said(registry: Registry, tmp_path: Path, realm: str) -> None:
    headers = {"www-authenticate": f'Bearer realm="{realm}"'}
    registry.faults["/v2/team/vowels/manifests/latest"] = Answer(401, headers=headers)
    with pytest.raises(StoreUnreachable, match="no answer of the registry"):
        cache.fetch(f"oci://{registry.host}/team/vowels", tmp_path / "cache")


def test_an_upload_that_leads_nowhere_is_said(registry: Registry, models: Path) -> None:
    registry.faults["/v2/team/vowels/blobs/uploads/"] = Answer(202)
    with pytest.raises(StoreUnreachable, match="no answer of the registry"):
        push(models, f"oci://{registry.host}/team/vowels")


def test_a_registry_gets_its_credentials_however_its_host_is_written(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    host = registry.host.replace("127.0.0.1", "LOCALHOST")
    registry.login = log_in(tmp_path, host)
    push(models, f"oci://{host}/team/vowels")


def test_a_registry_that_asks_to_come_back_later_leaves_the_copy_in_use(
    registry: Registry, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(models, f"oci://{registry.host}/team/vowels:1")
    copy = cache.fetch(f"oci://{registry.host}/team/vowels:1", tmp_path / "cache")
    registry.faults["/v2/team/vowels/manifests/1"] = Answer(429, headers={"retry-after": "3600"})
    assert cache.fetch(f"oci://{registry.host}/team/vowels:1", tmp_path / "cache") == copy
    assert "the registry answers 429 Too Many Requests; the copy of" in caplog.text


def test_a_cut_layer_is_a_store_without_an_answer(registry: Registry, models: Path, tmp_path: Path) -> None:
    address = push(models, f"oci://{registry.host}/team/vowels")
    largest = max(registry.blobs, key=lambda digest: len(registry.blobs[digest]))
    registry.faults[f"/v2/team/vowels/blobs/{largest}"] = Answer(body=registry.blobs[largest], cut=1000)
    with pytest.raises(StoreUnreachable, match="no answer of the registry"):
        cache.fetch(address, tmp_path / "cache")


@pytest.mark.parametrize("part", ["manifests", "blobs"])
def test_a_registry_that_sends_a_byte_now_and_then_is_one_without_an_answer(
    registry: Registry, models: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = push(models, f"oci://{registry.host}/team/vowels")
    known = [*(registry.manifests if part == "manifests" else registry.blobs)]
    for name in known:
        registry.faults[f"/v2/team/vowels/{part}/{name}"] = Answer(body=bytes(2**22), drips=True)
    monkeypatch.setattr("lengthwise.stores.SLOW_SECONDS", 0.3)
    with pytest.raises(StoreUnreachable, match=r"too slow, .* bytes of the store in"):
        cache.fetch(address, tmp_path / "cache")


def test_an_image_is_not_pushed_to_a_digest(registry: Registry, models: Path) -> None:
    with pytest.raises(ConfigurationError, match="without a digest or a commit"):
        push(models, f"oci://{registry.host}/team/vowels@sha256:{'0' * 64}")


def test_a_registry_that_is_not_there_is_said(models: Path, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"oci://127.0.0.1:{closed.getsockname()[1]}/team/vowels"
        with pytest.raises(StoreUnreachable, match=rf"{address}: no answer of the registry \(ConnectError\)"):
            cache.fetch(address, tmp_path / "cache")


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    answers = Hub()
    with running(StandIn(answers)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        answers.server = server
        yield answers


@pytest.mark.long
def test_what_is_pushed_to_the_hub_is_fetched_from_it(hub: Hub, models: Path, tmp_path: Path) -> None:
    by_commit = push(models, "hf://team/vowels")
    assert by_commit == f"hf://team/vowels@{hub.head}"
    copy = cache.fetch("hf://team/vowels", tmp_path / "cache")
    assert versions_in(copy) == {"vowels/1", "vowels/2"}
    assert cache.fetch(by_commit, tmp_path / "cache") == copy
    hub.server.calls.clear()
    assert cache.fetch(by_commit, tmp_path / "cache") == copy
    assert hub.server.calls == []


@pytest.mark.long
def test_a_commit_that_stays_is_not_fetched_again(hub: Hub, models: Path, tmp_path: Path) -> None:
    push(models, "hf://team/vowels")
    cache.fetch("hf://team/vowels", tmp_path / "cache")
    hub.server.calls.clear()
    cache.fetch("hf://team/vowels@main", tmp_path / "cache")
    cache.fetch("hf://team/vowels", tmp_path / "cache")
    assert [path for path in hub.server.paths[-1:] if "resolve" in path] == []


def test_a_folder_of_a_repository_on_the_hub_may_be_named(hub: Hub, models: Path, tmp_path: Path) -> None:
    push(models, "hf://team/vowels/exported")
    assert versions_in(cache.fetch("hf://team/vowels/exported/vowels", tmp_path / "cache")) == {"vowels/1", "vowels/2"}
    assert versions_in(cache.fetch("hf://team/vowels/exported/vowels/2", tmp_path / "cache")) == {"vowels/2"}
    with pytest.raises(ConfigurationError, match="there is nothing at hf://team/vowels/export"):
        cache.fetch("hf://team/vowels/export", tmp_path / "cache")


def test_the_card_is_written_from_the_manifests_and_the_verification(hub: Hub, models: Path) -> None:
    push(models / "vowels" / "2", "hf://team/vowels")
    card = hub.commits[-1]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: lengthwise\n")
    for text in ("# vowels", "lengthwise serve 'hf://team/vowels'", "| missing values | refuse |", "0.981", "padding"):
        assert text in card


def test_what_was_measured_on_this_machine_is_not_pushed(hub: Hub, models: Path) -> None:
    (models / "vowels" / "2" / "costs.json").write_text("{}")
    push(models, "hf://team/vowels")
    assert not [name for name in hub.commits[-1] if name.endswith(("costs.json", "promises.json", "kernels.json"))]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://team/nothing", "the hub answers 404.*HF_TOKEN"),
        ("hf://team/vowels@nothing", "the hub answers 404"),
        (f"hf://team/vowels@{'f' * 40}", "the hub answers 404"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path, address: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        cache.fetch(address, tmp_path / "cache")


def test_a_private_repository_needs_a_token(
    hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ConfigurationError, match=r"the hub answers 401 .*HF_TOKEN"):
        cache.fetch("hf://team/vowels", tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    push(models, "hf://team/vowels")
    assert versions_in(cache.fetch("hf://team/vowels", tmp_path / "cache"))


def test_a_file_of_the_hub_that_is_cut_off_is_not_served(hub: Hub, models: Path, tmp_path: Path) -> None:
    push(models / "vowels" / "2", "hf://team/vowels")
    name = "vowels/2/golden.npz"
    hub.spoilt[name] = Answer(body=hub.commits[-1][name], cut=100)
    with pytest.raises(StoreUnreachable, match="no answer of the hub"):
        cache.fetch("hf://team/vowels", tmp_path / "cache")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("about", "says"),
    [
        (Answer(429), "answers 429 Too Many Requests"),
        (Answer(body=b'{"id": "team/vowels", "siblings": [{"rfilename": null}]}'), "no answer of the hub"),
        (Answer(body=b'{"id": "a", "siblings": [{"rfilename": "a", "size": "b"}]}'), "no answer of the hub"),
    ],
)
def test_a_hub_that_answers_nothing_of_use_leaves_the_copy_in_use(
    hub: Hub, models: Path, tmp_path: Path, about: Answer, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    push(models, "hf://team/vowels")
    copy = cache.fetch("hf://team/vowels", tmp_path / "cache")
    hub.faults[f"/api/models/{hub.name}"] = about
    assert cache.fetch("hf://team/vowels", tmp_path / "cache") == copy
    assert says in caplog.text


def test_a_file_of_the_hub_with_other_bytes_is_refused(hub: Hub, models: Path, tmp_path: Path) -> None:
    push(models / "vowels" / "2", "hf://team/vowels")
    name = "vowels/2/golden.npz"
    hub.spoilt[name] = Answer(body=hub.commits[-1][name][:-1] + b"?")
    with pytest.raises(ModelError, match=r"golden\.npz"):
        cache.fetch("hf://team/vowels", tmp_path / "cache")


def test_a_hub_that_sends_a_byte_now_and_then_is_one_without_an_answer(
    hub: Hub, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(models / "vowels" / "2", "hf://team/vowels")
    hub.spoilt["vowels/2/golden.npz"] = Answer(body=bytes(2**22), drips=True)
    monkeypatch.setattr("lengthwise.stores.SLOW_SECONDS", 0.3)
    with pytest.raises(StoreUnreachable, match=r"too slow, .* bytes of the store in"):
        cache.fetch("hf://team/vowels", tmp_path / "cache")


def test_a_file_of_the_hub_that_is_longer_than_the_hub_says_is_not_read_to_its_end(
    hub: Hub, models: Path, tmp_path: Path
) -> None:
    push(models / "vowels" / "2", "hf://team/vowels")
    name = "vowels/2/golden.npz"
    hub.spoilt[name] = Answer(body=hub.commits[-1][name] + bytes(2**26))
    with pytest.raises(ModelError, match=r"golden\.npz"):
        cache.fetch("hf://team/vowels", tmp_path / "cache")


# S3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a server with S3's interface, and a bucket `models`."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: answers(port, "/moto-api/"))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"models-{os.urandom(4).hex()}"
    for variable, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3", endpoint_url=s3, region_name="us-east-1").create_bucket(Bucket=name)
    return name


@pytest.mark.process
def test_what_is_pushed_to_a_bucket_is_fetched_from_it(bucket: str, models: Path, tmp_path: Path) -> None:
    address = push(models, f"s3://{bucket}/team")
    copy = cache.fetch(address, tmp_path / "cache")
    assert versions_in(copy) == {"vowels/1", "vowels/2"}
    assert (copy / "vowels" / "aliases.json").read_text() == '{"champion": 1}\n'
    assert versions_in(cache.fetch(f"{address}/vowels", tmp_path / "cache")) == {"vowels/1", "vowels/2"}
    assert versions_in(cache.fetch(f"{address}/vowels/2", tmp_path / "cache")) == {"vowels/2"}


@pytest.mark.process
def test_a_new_version_in_a_bucket_is_fetched(bucket: str, models: Path, tmp_path: Path) -> None:
    push(models, f"s3://{bucket}/team")
    before = cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")
    assert cache.fetch(f"s3://{bucket}/team", tmp_path / "cache") == before
    model_directories.place(models, version=3)
    push(models, f"s3://{bucket}/team")
    assert versions_in(cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")) == {"vowels/1", "vowels/2", "vowels/3"}


@pytest.mark.process
def test_empty_objects_that_stand_for_folders_are_left_out(bucket: str, models: Path, tmp_path: Path) -> None:
    import boto3

    push(models, f"s3://{bucket}/team")
    store = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for name in ("team/", "team/vowels/", "team/vowels/1/"):
        store.put_object(Bucket=bucket, Key=name, Body=b"")
    assert versions_in(cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")) == {"vowels/1", "vowels/2"}


@pytest.mark.process
def test_names_in_a_bucket_that_are_no_paths_are_said(bucket: str, models: Path, tmp_path: Path) -> None:
    import boto3

    store = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    store.put_object(Bucket=bucket, Key="team/../evil", Body=b"x")
    with pytest.raises(ConfigurationError, match="invalid path") as refused:
        cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")
    assert not isinstance(refused.value, StoreUnreachable)


@pytest.mark.process
def test_an_archive_in_a_bucket_is_fetched(bucket: str, models: Path, tmp_path: Path) -> None:
    import obstore
    from obstore.store import from_url

    obstore.put(from_url(f"s3://{bucket}"), "m.tgz", archive_of(models, tmp_path / "m.tgz", "w:gz"))
    assert versions_in(cache.fetch(f"s3://{bucket}/m.tgz", tmp_path / "cache")) == {"vowels/1", "vowels/2"}


@pytest.mark.process
def test_an_object_of_other_bytes_is_refused_and_what_was_fetched_stays(
    bucket: str, models: Path, tmp_path: Path
) -> None:
    import obstore
    from obstore.store import from_url

    push(models, f"s3://{bucket}/team")
    before = cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")
    obstore.put(from_url(f"s3://{bucket}/team"), "vowels/2/model.onnx", b"other bytes")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")
    good = model_directories.BUNDLED.joinpath("model.onnx").read_bytes()
    assert (before / "vowels" / "2" / "model.onnx").read_bytes() == good
    assert cache.fetch(f"s3://{bucket}/team", tmp_path / "cache", offline=True) == before


@pytest.mark.process
@pytest.mark.parametrize(
    ("path", "says"), [("nothing", "there is nothing at"), ("m.tar", "the store answers 404"), ("", "nothing at")]
)
def test_what_a_bucket_does_not_have_is_said(bucket: str, tmp_path: Path, path: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        cache.fetch(f"s3://{bucket}/{path}", tmp_path / "cache")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (f"s3://bucket/models#sha256={'0' * 64}", "without a digest or a commit"),
        (f"hf://team/vowels@{'0' * 40}", "without a digest or a commit"),
        ("s3://bucket/models.tar", "names an archive"),
        ("models/team", "'models/team' is no address"),
    ],
)
def test_an_address_that_models_are_not_pushed_to_is_said(models: Path, address: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        push(models, address)


@pytest.mark.process
def test_a_store_without_tls_says_which_variable_allows_it(
    bucket: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ConfigurationError, match="AWS_ALLOW_HTTP=true"):
        push(models, f"s3://{bucket}/team")
    with pytest.raises(ConfigurationError, match="AWS_ALLOW_HTTP=true"):
        cache.fetch(f"s3://{bucket}/team", tmp_path / "cache")


@pytest.mark.process
def test_an_endpoint_that_is_no_url_is_said(
    bucket: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(ConfigurationError, match="fails with the variables of the store"):
        cache.fetch(f"s3://{bucket}/m.tar", tmp_path / "cache")
    with pytest.raises(ConfigurationError, match="fails with the variables of the store"):
        push(models, f"s3://{bucket}/team")


@pytest.mark.process
def test_a_bucket_that_is_missing_is_said(bucket: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the store answers 404"):
        cache.fetch("s3://no-such-bucket/models", tmp_path / "cache")
    with pytest.raises(ConfigurationError, match="the store answers 404"):
        push(models, "s3://no-such-bucket/models")


def test_what_cannot_be_pushed_is_said(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hf, oci, s3, gs and az are the ways"):
        push(models, "https://example.com/models.tar")
    with pytest.raises(ConfigurationError, match="holds no model"):
        push(tmp_path / "nothing", "s3://bucket/models")


# Google Cloud Storage and Azure


@pytest.fixture(params=["gs", "az"])
def objects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Objects]]:
    """An address of either kind, and what answers there."""
    answers = Objects("models")
    with running(StandIn(answers)) as server:
        for variable, value in {
            "GOOGLE_BASE_URL": server.url,
            "GOOGLE_SKIP_SIGNATURE": "true",
            "GOOGLE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_ENDPOINT": server.url,
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_SKIP_SIGNATURE": "true",
            "AZURE_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(variable, value)
        yield f"{request.param}://models/team", answers


def test_the_objects_of_google_and_azure_are_fetched(
    objects: tuple[str, Objects], models: Path, tmp_path: Path
) -> None:
    address, answers = objects
    for path in models.rglob("*"):
        if path.is_file():
            answers.files[f"team/{path.relative_to(models).as_posix()}"] = path.read_bytes()
    assert versions_in(cache.fetch(address, tmp_path / "cache")) == {"vowels/1", "vowels/2"}
    answers.files["team/vowels/2/model.onnx"] = b"other bytes"
    with pytest.raises(ModelError, match=r"model\.onnx"):
        cache.fetch(address, tmp_path / "cache")


def test_an_archive_at_google_or_azure_is_fetched_in_parts(
    objects: tuple[str, Objects], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, answers = objects
    monkeypatch.setattr("lengthwise.stores.objects._PART_BYTES", 100_000)
    answers.files["team/m.tar"] = archive_of(models, tmp_path / "m.tar")
    assert versions_in(cache.fetch(f"{address}/m.tar", tmp_path / "cache")) == {"vowels/1", "vowels/2"}


@pytest.mark.long
def test_a_store_whose_list_has_no_end_is_one_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"
    calls = list[Call]()

    def pages(call: Call) -> Answer:
        calls.append(call)
        return Answer(body=f"<ListBucketResult>{page.format(len(calls))}</ListBucketResult>".encode())

    monkeypatch.setattr("lengthwise.stores.objects._ANSWER_SECONDS", 0.5)
    with running(StandIn(pages)) as server:
        for variable, value in {
            "GOOGLE_BASE_URL": server.url,
            "GOOGLE_SKIP_SIGNATURE": "true",
            "GOOGLE_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(StoreUnreachable, match="no answer of the store within"):
            cache.fetch("gs://models/team", tmp_path / "cache")
    assert calls
