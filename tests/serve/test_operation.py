"""The endpoint in operation: other clients, limits, keys, failed encoders, new versions, metrics."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import aiohttp
import numpy as np
import psutil
import pytest
import ray
import yaml
from pydantic import ValidationError
from ray import serve
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from boom_ray.errors import ClusterError, ConflictError, InputError
from boom_ray.model import directory
from boom_ray.serve import build
from boom_ray.serve.app import serve_models
from boom_ray.serve.limits import Limits
from boom_ray.serve.serve_settings import ServeSettings
from tests.base_models import publish
from tests.serve.test_serve import call, cosines, free_port

pytestmark = pytest.mark.usefixtures("ray_cluster")
KEYS = ["one of the keys", "another key"]
ONE_ENCODER = ServeSettings(pass_tokens=512)
ODD_NAME = "my-model 模型 1%2F:a"  # of a directory


@pytest.fixture(scope="module")
def versions(qwen3, tmp_path_factory) -> dict[str, str]:
    """Two versions of one model; the name of the second has a dash, as the bags of a run have."""
    root = tmp_path_factory.mktemp("versions")
    return {name: publish(qwen3, str(root / name), version=name) for name in ("v0001", "bag-2")}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("\n".join(KEYS) + "\n")
    return path


@pytest.fixture(scope="module")
def url(versions, keys_file) -> Iterator[str]:
    """An endpoint with two encoders and two keys."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOOM_RAY_API_KEYS_FILE", str(keys_file))
        settings = ServeSettings(pass_tokens=512, min_replicas=2, max_replicas=2)
        serve_models([versions["v0001"]], port=port, settings=settings, blocking=False)
        yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def post(url: str, body: dict, key: str = KEYS[1]):
    return call(url, json.dumps(body).encode(), key)


def load(url: str, until: threading.Event, clients: int = 4) -> Counter:
    """How many requests had which status and version.

    Clients pause so briefly that requests are always in flight, and long enough to leave replicas the CPU.
    """
    seen: Counter = Counter()

    def client(number: int) -> None:
        while not until.is_set():
            status, headers, body = post(f"{url}/v1/embeddings", {"input": [f"client {number}", "text"]})
            seen[status, headers["x-model-version"]] += 1
            assert status != 200 or len(body["data"]) == 2
            time.sleep(0.02)

    with ThreadPoolExecutor(clients) as threads:
        for done in [threads.submit(client, number) for number in range(clients)]:
            done.result()
    return seen


def under_load(url: str, act) -> Counter:
    """The same while `act` runs, and for a second before and after."""
    until = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        seen = threads.submit(load, url, until)
        time.sleep(1)
        try:
            act()
        finally:
            time.sleep(1)
            until.set()
        return seen.result()


def test_the_routes_of_text_embeddings_inference(url, versions):
    encoder = directory.load_encoder(versions["v0001"])
    status, headers, vectors = post(f"{url}/embed", {"inputs": ["a text", "another"]})
    assert status == 200 and headers["x-model-version"] == "v0001"
    assert cosines(np.array(vectors), encoder.encode(["a text", "another"])).min() >= 0.99999
    status, _, tokens = post(f"{url}/tokenize", {"inputs": "a text"})
    assert [token["id"] for token in tokens[0]] == encoder.tokenize(["a text"]).ids.tolist()
    assert "a text"[tokens[0][0]["start"] : tokens[0][0]["stop"]] == "a"
    status, _, info = call(f"{url}/info", key=KEYS[0])
    assert (status, info["model_id"], info["max_input_length"]) == (200, "test", 128)
    assert post(f"{url}/embed", {"inputs": ""})[0] == 422


def test_a_request_with_curl(url):
    command = ["curl", "-s", f"{url}/v1/embeddings", "-H", "Content-Type: application/json",
               "-H", f"Authorization: Bearer {KEYS[0]}", "-d", '{"input": "a text"}']  # fmt: skip
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(answer["data"][0]["embedding"]) == 32


def test_input_type_selects_the_prompt_and_is_echoed(url, versions):
    encoder = directory.load_encoder(versions["v0001"])
    _, _, body = post(f"{url}/v1/embeddings", {"input": "sort", "input_type": "query"})
    assert body["prompt_name"] == "query"
    expected = encoder.encode([encoder.spec.prompts["query"] + "sort"])
    assert cosines(np.array([body["data"][0]["embedding"]]), expected).min() >= 0.99999
    status, _, body = post(
        f"{url}/v1/embeddings", {"input": "a", "input_type": "query", "prompt_name": "document"}
    )
    assert (status, body["error"]["code"]) == (422, "two_prompts")


def test_every_route_but_health_needs_one_of_the_keys(url):
    assert call(f"{url}/health", key=None)[0] == call(f"{url}/ready", key=None)[0] == 200
    for path, body in (("/v1/models", None), ("/embed", b"{}"), ("/info", None), ("/tokenize", b"{}")):
        assert call(url + path, body, "wrong")[0] == 401
    assert [call(f"{url}/v1/models", key=key)[0] for key in KEYS] == [200, 200]


def test_responses_have_the_id_of_the_request(url):
    request = urllib.request.Request(f"{url}/health", headers={"x-request-id": "mine"})
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["x-request-id"] == "mine"
    ids = {call(f"{url}/v1/models", key=None)[1]["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_a_body_that_is_too_large_is_refused_while_it_arrives(url):
    limit = Limits(512, 128, 2).body_bytes
    host = url.removeprefix("http://")
    declared = http.client.HTTPConnection(host)
    declared.request("POST", "/v1/embeddings", headers={
        "Content-Length": str(limit + 1), "Authorization": f"Bearer {KEYS[0]}"
    })  # fmt: skip
    answer = declared.getresponse()
    assert (answer.status, json.load(answer)["error"]["code"]) == (413, "body_too_large")

    sent = 0

    def pieces():
        nonlocal sent
        while sent < 50 * limit:
            sent += 1 << 16
            yield b" " * (1 << 16)

    chunked = http.client.HTTPConnection(host)
    try:
        chunked.request("POST", "/v1/embeddings", pieces(), {"Authorization": f"Bearer {KEYS[0]}"})
        answer = chunked.getresponse()
        assert (answer.status, json.load(answer)["error"]["code"]) == (413, "body_too_large")
    except (BrokenPipeError, ConnectionResetError):
        assert sent < 50 * limit


def test_excess_load_is_refused_at_once_and_the_rest_is_answered(url):
    body = {"input": ["many words " * 40] * 20, "truncate": True}

    async def send(session: aiohttp.ClientSession) -> tuple[int, str | None]:
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        async with session.post(f"{url}/v1/embeddings", json=body, headers=headers) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Retry-After")

    async def crowd() -> list[tuple[int, str | None]]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            return await asyncio.gather(*(send(session) for _ in range(40)))

    answers = asyncio.run(crowd())
    assert {status for status, _ in answers} == {200, 429}
    assert all(int(after) >= 1 for status, after in answers if status == 429)
    assert post(f"{url}/v1/embeddings", {"input": "afterwards"})[0] == 200


def test_a_client_that_disconnects_frees_its_capacity(url):
    host = url.removeprefix("http://")
    body = json.dumps({"input": ["many words " * 40] * 200, "truncate": True})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEYS[0]}"}
    for _ in range(5):
        client = http.client.HTTPConnection(host)
        client.request("POST", "/v1/embeddings", body, headers)
        time.sleep(0.05)
        client.close()
    deadline = time.monotonic() + 30
    while post(f"{url}/v1/embeddings", {"input": ["many words " * 40] * 3, "truncate": True})[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_metrics_of_the_dashboard_exist_and_contain_no_text(url):
    with open(os.path.join(os.path.dirname(__file__), "../../cluster/grafana/serving.json")) as file:
        wanted = set(re.findall(r"ray_boom_ray_serve_[a-z_]+", file.read()))
    wanted.remove("ray_boom_ray_serve_retries_total")  # exists after the first retry
    assert len(wanted) == 7
    assert post(f"{url}/v1/embeddings", {"input": "unmistakable"})[0] == 200
    addresses = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    deadline = time.monotonic() + 30
    while True:
        text = "".join(urllib.request.urlopen(one).read().decode() for one in addresses)
        if all(f"{name}{{" in text for name in wanted) or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert [name for name in wanted if f"{name}{{" not in text] == []
    assert "unmistakable" not in text and KEYS[0] not in text


def test_a_killed_encoder_fails_no_request(url):
    def kill() -> None:
        below = psutil.Process().children(recursive=True)
        found = [process for process in below if ":encoder" in " ".join(process.cmdline())]
        assert len(found) == 2
        os.kill(found[0].pid, signal.SIGKILL)
        time.sleep(3)

    seen = under_load(url, kill)
    assert set(seen) == {(200, "v0001")}


@pytest.mark.slow
def test_a_corrupt_version_is_never_served(url, versions, tmp_path):
    damaged, different = str(tmp_path / "damaged"), str(tmp_path / "different")
    shutil.copytree(versions["bag-2"], damaged)
    weights = next(name for name in os.listdir(damaged) if name.endswith(".safetensors"))
    with open(os.path.join(damaged, weights), "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\1\2\3")
    shutil.copytree(versions["bag-2"], different)
    with open(os.path.join(different, "artifact.json")) as file:
        record = json.load(file)
    record["self_test"].reverse()
    with open(os.path.join(different, "artifact.json"), "w") as file:
        json.dump(record, file)
    reasons = []

    def deploy() -> None:
        for bad in (damaged, different):
            with pytest.raises(InputError) as refusal:
                serve_models([bad], settings=ONE_ENCODER, blocking=False)
            reasons.append(str(refusal.value))

    seen = under_load(url, deploy)
    assert weights in reasons[0] and "cosine" in reasons[1]
    assert set(seen) == {(200, "v0001")}
    assert len(serve.status().applications) == 2


def test_a_version_for_which_there_is_no_gpu_says_so_and_changes_nothing(url, versions, caplog):
    settings = ServeSettings(512, min_replicas=3, max_replicas=3, device="cuda", gpus_per_replica=0.5)
    caplog.set_level("INFO", "boom_ray.runtime.demand")
    required = r"3 workers of \{'CPU': 1, 'GPU': 0\.5\}"
    with pytest.raises(ClusterError, match=rf"after 3 s: .*{required}, .*'GPU': 0.*per-replica 0\.5"):
        serve_models([versions["bag-2"]], settings=settings, blocking=False, start_timeout_s=3)
    assert re.search(rf"of at most 3 s: capacity for 0 of {required}", caplog.text)
    assert call(f"{url}/health", key=None)[2]["version"] == "v0001"
    assert len(serve.status().applications) == 2


@pytest.mark.parametrize("gpus", [0, -0.5, 2])
def test_a_replica_runs_on_a_gpu_or_on_a_part_of_it(gpus):
    with pytest.raises(InputError, match="gpus_per_replica"):
        ServeSettings(gpus_per_replica=gpus)


@pytest.mark.parametrize("key", ["max_replica", "pass_token"])
def test_a_misspelled_setting_in_a_config_file_is_refused(key):
    with pytest.raises(ValidationError, match=key):
        build.IngressArguments.model_validate({"models": ["a"], "settings": {key: 2}})


def test_a_new_version_takes_over_under_load(url, versions):
    seen = under_load(url, lambda: serve_models([versions["bag-2"]], settings=ONE_ENCODER, blocking=False))
    assert set(seen) == {(200, "v0001"), (200, "bag-2")}
    assert call(f"{url}/health", key=None)[2]["version"] == "bag-2"
    assert len(serve.status().applications) == 2


def test_other_keys_open_the_endpoint_and_its_connections_stay(url, versions, keys_file):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def status(key: str) -> int:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert [status(key) for key in (KEYS[0], KEYS[1], "a new one")] == [200, 200, 401]
    port = connection.sock.getsockname()
    before = keys_file.read_text()
    keys_file.write_text(f"{KEYS[1]}\na new one\n")
    switch = partial(serve_models, [versions["bag-2"]], settings=ONE_ENCODER, blocking=False)
    assert set(under_load(url, switch)) == {(200, "bag-2")}
    assert [status(key) for key in (KEYS[0], KEYS[1], "a new one")] == [401, 200, 200]
    keys_file.write_text(before)
    switch()
    assert status(KEYS[0]) == 200 and connection.sock.getsockname() == port


def test_serving_another_model_does_not_end_a_served_one(url, published_minilm, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(published_minilm, other, ignore=shutil.ignore_patterns("artifact.json"))
    with pytest.raises(ConflictError, match="serves test,"):
        serve_models([other], blocking=False)
    assert call(f"{url}/health", key=None)[2]["model"] == "test"


@pytest.mark.slow
def test_two_models_are_served_by_their_names(url, versions, published_minilm, tmp_path, monkeypatch):
    monkeypatch.delenv("BOOM_RAY_API_KEYS_FILE")
    other = str(tmp_path / ODD_NAME)
    shutil.copytree(published_minilm, other, ignore=shutil.ignore_patterns("artifact.json"))
    serve_models([versions["bag-2"], other], settings=ONE_ENCODER, blocking=False)
    sizes = {
        name: len(post(f"{url}/v1/embeddings", {"input": "a", "model": name})[2]["data"][0]["embedding"])
        for name in ("test", ODD_NAME)
    }
    assert sizes == {"test": 32, ODD_NAME: 384}
    assert call(f"{url}/v1/models", key=None)[0] == 401
    assert [one["id"] for one in call(f"{url}/v1/models", key=KEYS[0])[2]["data"]] == ["test", ODD_NAME]
    serve_models([versions["v0001"], other], settings=ONE_ENCODER, blocking=False)
    assert post(f"{url}/v1/embeddings", {"input": "a"}, KEYS[0])[1]["x-model-version"] == "v0001"


def test_the_config_file_is_valid_for_serve_deploy(versions, tmp_path):
    path = str(tmp_path / "serve.yaml")
    settings = ServeSettings(device="cuda", gpus_per_replica=0.25)
    build.write_config([versions["v0001"]], settings, "127.0.0.1", 8000, path)
    with open(path, encoding="utf-8") as file:
        schema = ServeDeploySchema.model_validate(yaml.safe_load(file))
    encoder, ingress = schema.applications
    assert (ingress.name, ingress.route_prefix, encoder.route_prefix) == ("boom-ray", "/", None)
    assert build.EncoderArguments.model_validate(encoder.args).model == versions["v0001"]
    assert build.IngressArguments.model_validate(ingress.args).settings == settings


@pytest.mark.slow
def test_the_config_file_deploys_an_endpoint_behind_the_proxies_of_ray_serve(versions, tmp_path):
    path, port = str(tmp_path / "serve.yaml"), free_port()
    build.write_config([versions["v0001"]], ServeSettings(), "127.0.0.1", port, path)
    with open(path, encoding="utf-8") as file:
        config = ServeDeploySchema.model_validate(yaml.safe_load(file))
    serve.shutdown()
    serve.start(http_options={"port": port})
    try:
        for one in config.applications:
            builder = call_user_app_builder_with_args_if_necessary(import_attr(one.import_path), one.args)
            serve.run(builder, name=one.name, route_prefix=one.route_prefix)
        status, headers, body = post(f"http://127.0.0.1:{port}/v1/embeddings", {"input": ["a", "b"]})
        assert (status, headers["x-model-version"], len(body["data"])) == (200, "v0001", 2)
    finally:
        serve.shutdown()
