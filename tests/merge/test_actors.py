"""The merge on Ray: model directories in, and one model directory out, or none."""

import json
import os
import shutil
import threading
import time

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from boom_ray import artifacts
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelConfig
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge
from boom_ray.recipe.execution import MergeExecution
from tests.merge.oracle import FLOOR, textbook

pytestmark = pytest.mark.usefixtures("ray_cluster")


def merge(models: list[str], target: str, base: str | None, settings: Merge) -> artifacts.Record:
    return merge_models(models, target, base, settings)[0]


def variant(source: str, target: str, seed: int, dtype: torch.dtype = torch.float32, rows: int = 10) -> str:
    """A model directory with a little noise added to every tensor, and its own record."""
    generator = torch.Generator().manual_seed(seed)
    with staging.staged(target) as stage:
        directory.copy_all_but_weights(source, stage.local, str(dtype).removeprefix("torch."))
        moved = {
            name: (tensor + 0.02 * torch.randn(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in load_file(os.path.join(source, "model.safetensors")).items()
        }
        save_file(moved, os.path.join(stage.local, "model.safetensors"), {"format": "pt"})
        config = ModelConfig(rows=rows)
        record = ModelRecord(name="m", version=str(seed), fingerprint="f", config=config)
        stage.commit(record)
    return target


@pytest.fixture(scope="module")
def models(published_qwen3, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [variant(published_qwen3, str(root / str(seed)), seed, rows=10 * seed) for seed in (1, 2, 3)]


def two_workers(max_shard_bytes: int) -> MergeExecution:
    return MergeExecution(num_workers=2, max_shard_bytes=max_shard_bytes)


def tensors_of(path: str) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(os.listdir(path))
        if file.endswith(".safetensors")
        for name, tensor in load_file(os.path.join(path, file)).items()
    }


@pytest.mark.parametrize(
    ("method", "space", "dtype"),
    [
        ("multislerp", "deltas", "float32"),
        ("multislerp", "weights", "bfloat16"),
        ("linear", "deltas", "bfloat16"),
    ],
)
def test_merged_tensors_equal_the_textbook_result(method, space, dtype, models, qwen3, tmp_path):
    base = qwen3 if space == "deltas" else None
    settings = Merge(method=method, space=space, weights=[1, 2, 3], dtype=dtype)
    record = merge(models, str(tmp_path / "out"), base, settings)
    assert record == artifacts.verify(str(tmp_path / "out")) and record.config.merge.weights == pytest.approx(
        [1 / 6, 1 / 3, 1 / 2]
    )
    inputs, merged = [tensors_of(model) for model in models], tensors_of(str(tmp_path / "out"))
    origin = (
        {name.removeprefix("model."): tensor for name, tensor in tensors_of(qwen3).items()} if base else {}
    )
    assert merged.keys() == inputs[0].keys()
    for name, tensor in merged.items():
        weights = [1 / 6, 1 / 3, 1 / 2]
        expected = textbook(method, [x[name] for x in inputs], weights, origin.get(name))
        error = (tensor.double() - expected).abs()
        slack = 1e-6 if tensor.dtype == torch.bfloat16 else 1e-12  # of float32 sums
        assert (error <= FLOOR[tensor.dtype] * expected.abs() + slack).all(), name
    AutoModel.from_pretrained(str(tmp_path / "out"))


def test_equal_models_come_back_bit_for_bit(published_minilm, tmp_path):
    for space, base in (("weights", None), ("deltas", published_minilm)):
        target = str(tmp_path / space)
        merge([published_minilm] * 3, target, base, Merge(space=space, dtype="float32"))
        assert artifacts.read_record(target).tensors == artifacts.read_record(published_minilm).tensors


def test_many_workers_and_files_give_the_same_tensors_as_one(models, qwen3, tmp_path):
    one, many = str(tmp_path / "one"), str(tmp_path / "many")
    merge(models, one, qwen3, Merge(dtype="float32"))
    merge(models, many, qwen3, Merge(dtype="float32", execution=two_workers(60_000)))
    assert len([name for name in os.listdir(many) if name.endswith(".safetensors")]) > 2
    assert artifacts.read_record(one).tensors == artifacts.read_record(many).tensors
    texts = ["one text", "and another, a little longer"]
    assert (directory.load_encoder(one).encode(texts) == directory.load_encoder(many).encode(texts)).all()
    again = str(tmp_path / "again")
    merge([many, one], again, None, Merge(space="weights", dtype="float32"))
    assert artifacts.read_record(again).tensors == artifacts.read_record(one).tensors


def test_weights_by_size_are_the_rows_behind_each_model(models, tmp_path):
    record = merge(models, str(tmp_path / "out"), None, Merge(space="weights", weights="size"))
    assert record.config.merge.weights == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def edit(model: str, target: str, change) -> str:
    """A copy without a record, with its tensors changed."""
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("artifact.json"))
    tensors = load_file(os.path.join(target, "model.safetensors"))
    change(tensors)
    save_file(tensors, os.path.join(target, "model.safetensors"))
    return target


def refused(models, tmp_path, base: str | None = None, **values) -> str:
    """The error of a merge that is refused and leaves nothing behind."""
    target = tmp_path / "merged" / "out"
    with pytest.raises(BoomError) as caught:
        merge(models, str(target), base, Merge(**{"space": "weights"} | values))
    assert os.listdir(tmp_path / "merged") == []
    assert "Traceback" not in str(caught.value) and "ray::" not in str(caught.value)
    return str(caught.value)


def test_all_differences_are_listed_at_once(models, tmp_path):
    def change(tensors):
        del tensors["norm.weight"]
        tensors["extra"] = torch.zeros(1)
        tensors["embed_tokens.weight"] = torch.zeros(2, 2)

    other = edit(models[1], str(tmp_path / "other"), change)
    with open(os.path.join(other, "tokenizer.json")) as file:
        tokenizer = json.load(file)
    tokenizer["normalizer"] = {"type": "Lowercase"}
    with open(os.path.join(other, "tokenizer.json"), "w") as file:
        json.dump(tokenizer, file)
    message = refused([models[0], other], tmp_path)
    for part in (
        "norm.weight: missing",
        "extra: not in",
        "embed_tokens.weight: shape [2, 2]",
        "tokenizer: normalizer: ",
    ):
        assert part in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("space", ["weights", "deltas"])
def test_an_input_that_is_not_finite_is_named(bad, space, models, qwen3, tmp_path):
    other = edit(models[1], str(tmp_path / "other"), lambda tensors: tensors["norm.weight"].fill_(bad))
    message = refused([models[0], other], tmp_path, space=space, base=qwen3)
    assert other in message and "norm.weight" in message and models[0] not in message


def test_a_flipped_bit_is_found_while_streaming(models, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(models[1], other)
    with open(os.path.join(other, "model.safetensors"), "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte[0] ^ 4]))
    message = refused([models[0], other], tmp_path)
    assert f"{other}/model.safetensors: tensor " in message and "damaged" in message


def test_a_truncated_shard_is_named(models, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(models[1], other)
    os.truncate(os.path.join(other, "model.safetensors"), 50_000)
    message = refused([models[0], other], tmp_path)
    assert "model.safetensors" in message and "truncated" in message and "50000 bytes, recorded" in message


def test_opposite_models_are_refused_by_tensor(models, qwen3, tmp_path):
    opposite = edit(
        models[0], str(tmp_path / "opposite"), lambda tensors: [tensor.neg_() for tensor in tensors.values()]
    )
    message = refused([models[0], opposite], tmp_path)
    assert "cancel" in message and "tensor " in message


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"weights": [1, -1]}, "sum to 0"),
        ({"weights": [1, 2, 3]}, "got 3 weights for 2 models"),
        ({"space": "deltas"}, "needs the base model"),
    ],
)
def test_settings_that_do_not_fit_the_models_are_refused(values, part, models, tmp_path):
    assert part in refused(models[:2], tmp_path, **values)


def test_another_base_is_refused(models, published_minilm, tmp_path):
    assert f"{published_minilm}: is not the base model" in refused(
        models[:2], tmp_path, space="deltas", base=published_minilm
    )


def test_a_refused_merge_frees_its_cpus_while_its_error_is_kept(models, published_minilm, tmp_path):
    settings = Merge(space="deltas", execution=two_workers(60_000))
    with pytest.raises(BoomError, match="is not the base model") as caught:
        merge(models[:2], str(tmp_path / "out"), published_minilm, settings)
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the workers of the refused merge still hold the CPUs"
        time.sleep(0.2)
    assert caught.tb is not None


def test_an_existing_target_is_kept(models, tmp_path):
    target = str(tmp_path / "out")
    before = merge(models, target, None, Merge(space="weights"))
    with pytest.raises(BoomError, match="exists already"):
        merge(models[:2], target, None, Merge(space="weights"))
    assert artifacts.verify(target) == before


def runs(part: str, process: psutil.Process) -> bool:
    """Whether a process runs a task or an actor with `part` in its name."""
    try:
        return part in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.parametrize("part", ["MergeWorker.merge", "MergeCoordinator"])
def test_a_killed_process_is_restarted_and_the_merge_succeeds(published_minilm, tmp_path, part):
    inputs = [variant(published_minilm, str(tmp_path / str(seed)), seed) for seed in (1, 2, 3)]
    settings = Merge(dtype="float32", execution=two_workers(10 << 20))
    clean = merge(inputs, str(tmp_path / "clean"), published_minilm, settings)
    killed = []

    def kill_one() -> None:
        """Wait until the running merge has written something, and kill a process of it."""
        while not killed:
            stages = [name for name in os.listdir(tmp_path) if name.startswith(".out.stage")]
            written = any(
                f.endswith(".safetensors") for stage in stages for f in os.listdir(tmp_path / stage)
            )
            found = [process for process in psutil.Process().children(recursive=True) if runs(part, process)]
            if written and found:
                found[0].kill()
                killed.append(found[0].pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    disturbed = merge(inputs, str(tmp_path / "out"), published_minilm, settings)
    killer.join(60)
    assert killed and disturbed.digest == clean.digest and disturbed.tensors == clean.tensors
