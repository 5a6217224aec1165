"""Models and requests are data: no code from them runs. No public port opens without a key."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from ray import serve

from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.serve import build
from boom_ray.serve.serve_settings import ServeSettings
from tests.serve.test_serve import free_port

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "boom_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
UNSAFE_CALLS = {
    *("eval", "exec", "torch.load", "pickle.load", "pickle.loads", "joblib.load", "dill.load", "dill.loads"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "numpy.load", "np.load"),
}


def test_no_library_is_called_with_remote_code_enabled() -> None:
    assert len(SOURCES) > 80
    for path in SOURCES:
        text = path.read_text()
        assert "trust_remote_code" not in text, path
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            assert ast.unparse(call.func) not in UNSAFE_CALLS, f"{path}:{call.lineno}"
            if ast.unparse(call.func).endswith(("Model.from_pretrained", "SentenceTransformer")):
                assert "use_safetensors" in ast.unparse(call), f"{path}:{call.lineno}"


class Trap:
    """Creates a directory when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_pickled_weights_are_not_loaded(qwen3: str, tmp_path: Path) -> None:
    model, executed = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(qwen3, model)
    os.remove(model / "model.safetensors")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(str(executed))))
    with pytest.raises(BoomError, match=r"cannot be loaded as a model: .*safetensors"):
        directory.load_encoder(str(model))
    assert not executed.exists()


def test_code_in_a_model_directory_is_not_run(qwen3: str, tmp_path: Path) -> None:
    model, executed = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(qwen3, model)
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (model / "own.py").write_text(f"import os\nos.mkdir({str(executed)!r})\n")
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    with pytest.raises(BoomError, match="cannot be loaded as a model"):
        directory.load_encoder(str(model))
    (model / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    assert type(directory.load_encoder(str(model)).transformer).__name__ == "Qwen3Model"
    assert not executed.exists()


def test_custom_modules_of_a_model_are_refused(qwen3: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(qwen3, model)
    (model / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Module"}])
    )
    with pytest.raises(BoomError, match=r"modules\.json.* own\.Module"):
        directory.read_spec(str(model))


def test_a_public_endpoint_does_not_start_without_a_key(
    ray_cluster: None, published_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOOM_RAY_API_KEY", raising=False)
    arguments = build.IngressArguments(settings=ServeSettings(), models=[published_qwen3])
    serve.start(http_options={"host": "0.0.0.0", "port": free_port()})
    try:
        with pytest.raises(BoomError, match=r"host 0\.0\.0\.0 .*no key"):
            build.ingress(arguments)
        monkeypatch.setenv("BOOM_RAY_API_KEY", "a key")
        assert build.ingress(arguments) is not None
    finally:
        serve.shutdown()
