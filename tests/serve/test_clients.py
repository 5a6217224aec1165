"""Client libraries from their packages get the vectors of sentence-transformers."""

import json
import os
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from ray import serve
from sentence_transformers import SentenceTransformer

from boom_ray.serve.app import serve_models
from tests.serve import client_programs
from tests.serve.test_serve import KEY, cosines, free_port

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
TEXTS = ["how do I sort a list?", "a text", "ünïcödé ✓ 漢字", *(f"number {number}" for number in range(40))]


@pytest.fixture(scope="module")
def url(ray_cluster: None, published_minilm: str) -> Iterator[str]:
    """An endpoint with a key."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOOM_RAY_API_KEY", KEY)
        serve_models([published_minilm], port=port, blocking=False)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def expected(published_minilm: str) -> np.ndarray:
    return SentenceTransformer(published_minilm, device="cpu").encode(TEXTS)


@pytest.mark.parametrize("client", [client.__name__ for client in client_programs.CLIENTS])
def test_a_client_gets_the_vectors_of_the_model(url, expected, client):
    python = os.environ.get("BOOM_RAY_CLIENTS_PYTHON")
    if python is None:
        pytest.skip("BOOM_RAY_CLIENTS_PYTHON names no Python with the clients; tests/run.sh --slow makes one")
    command = [python, client_programs.__file__, client, url, KEY]
    done = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    vectors = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert vectors.shape == expected.shape
    assert cosines(vectors, expected).min() >= 0.99999
