"""Inputs of a merge: names, dtypes, heads and adapters as real checkpoints have them."""

import json
import os
import re
import shutil
import subprocess
import threading

import pytest
import ray
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from boom_ray import artifacts
from boom_ray.api.merging import merge
from boom_ray.errors import BoomError
from boom_ray.merge.shard_writer import ShardWriter
from boom_ray.merge.worker_pool import WorkerPool
from boom_ray.model import directory
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge
from boom_ray.recipe.execution import MergeExecution
from tests.merge.oracle import textbook
from tests.merge.test_actors import edit, refused, tensors_of, variant
from tests.merge.test_adapters import adapter

pytestmark = pytest.mark.usefixtures("ray_cluster")
WEIGHTS = Merge(space="weights", dtype="float32")
TEXTS = ["one text", "and another, a little longer"]


def read_json(path: str):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path: str, content) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


@pytest.fixture(scope="module")
def models(published_qwen3, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [variant(published_qwen3, str(root / str(seed)), seed) for seed in (1, 2)]


def causal(model: str, target: str, qwen3: str, head: bool) -> str:
    """The same weights as a causal language model: with a prefix, with or without its tied head."""
    shutil.copytree(qwen3, target)
    tensors = {f"model.{name}": tensor for name, tensor in tensors_of(model).items()}
    if head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, os.path.join(target, "model.safetensors"), {"format": "pt"})
    return target


@pytest.mark.parametrize("head", [True, False])
def test_causal_models_merge_with_their_head_stored_once(head, models, qwen3, tmp_path):
    checkpoints = [causal(model, str(tmp_path / str(i)), qwen3, head) for i, model in enumerate(models)]
    merge_models(checkpoints, str(tmp_path / "out"), qwen3, Merge(dtype="float32"))
    merge_models(models, str(tmp_path / "plain"), qwen3, Merge(dtype="float32"))
    merged, plain = tensors_of(str(tmp_path / "out")), tensors_of(str(tmp_path / "plain"))
    assert merged.keys() == {f"model.{name}" for name in plain}
    assert all(torch.equal(merged[f"model.{name}"], tensor) for name, tensor in plain.items())
    whole = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert torch.equal(whole.lm_head.weight, whole.model.embed_tokens.weight)
    vectors = [directory.load_encoder(str(tmp_path / name)).encode(TEXTS) for name in ("out", "plain")]
    assert (vectors[0] == vectors[1]).all()


def test_a_prefix_in_one_of_the_models_does_not_matter(models, published_qwen3, tmp_path):
    prefixed = str(tmp_path / "prefixed")
    shutil.copytree(models[1], prefixed, ignore=shutil.ignore_patterns("artifact.json"))
    renamed = {f"model.{name}": tensor for name, tensor in tensors_of(models[1]).items()}
    save_file(renamed, os.path.join(prefixed, "model.safetensors"))
    merge_models([models[0], prefixed], str(tmp_path / "out"), published_qwen3, Merge(dtype="float32"))
    merge_models(models, str(tmp_path / "plain"), published_qwen3, Merge(dtype="float32"))
    records = [artifacts.read_record(str(tmp_path / name)) for name in ("out", "plain")]
    assert records[0].tensors == records[1].tensors


def test_an_untied_head_that_only_one_model_has_is_refused(models, tmp_path):
    def add_head(tensors):
        tensors["lm_head.weight"] = torch.zeros(1000, 32)

    other = edit(models[1], str(tmp_path / "other"), add_head)
    path = os.path.join(other, "config.json")
    write_json(path, read_json(path) | {"tie_word_embeddings": False})
    assert "lm_head.weight: not in" in refused([models[0], other], tmp_path)


def test_mixed_dtypes_are_computed_and_written_as_declared(models, published_qwen3, tmp_path):
    half = variant(published_qwen3, str(tmp_path / "half"), 7, torch.float16)
    brain = variant(published_qwen3, str(tmp_path / "brain"), 8, torch.bfloat16)
    inputs = [models[0], half, brain]
    merge_models(inputs, str(tmp_path / "out"), published_qwen3, Merge(dtype="float32"))
    merged, tensors = tensors_of(str(tmp_path / "out")), [tensors_of(model) for model in inputs]
    base = tensors_of(published_qwen3)
    for name, tensor in merged.items():
        expected = textbook("multislerp", [model[name] for model in tensors], [1 / 3] * 3, base[name])
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-12)
    assert read_json(str(tmp_path / "out" / "config.json"))["dtype"] == "float32"


@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapters_are_merged_into_their_base_first(use_rslora, published_qwen3, tmp_path):
    adapters = [adapter(published_qwen3, str(tmp_path / f"a{i}"), i, use_rslora=use_rslora) for i in (1, 2)]
    merge_models(adapters, str(tmp_path / "out"), None, WEIGHTS)
    full = [
        PeftModel.from_pretrained(AutoModel.from_pretrained(published_qwen3), path)
        .merge_and_unload()
        .state_dict()
        for path in adapters
    ]
    for name, tensor in tensors_of(str(tmp_path / "out")).items():
        expected = textbook("multislerp", [model[name] for model in full], [0.5, 0.5], None)
        assert torch.allclose(tensor.double(), expected, rtol=1e-5, atol=1e-7), name
    assert directory.load_encoder(str(tmp_path / "out")).encode(TEXTS).shape == (2, 32)


def test_one_model_and_its_base_give_a_scaled_task_vector(models, published_qwen3, tmp_path):
    """What mergekit's files with one model mean; its distances have no pair to show."""
    options = {"method": "task_arithmetic", "dtype": "float32", "scale": 0.5, "base": published_qwen3}
    result = merge(models[:1], out=str(tmp_path / "out"), **options)
    written = result.write_distances(str(tmp_path / "report.json"))
    assert len(written) == 2 and all(os.path.getsize(path) for path in written)
    base, own = tensors_of(published_qwen3), tensors_of(models[0])
    for name, tensor in tensors_of(str(tmp_path / "out")).items():
        assert torch.allclose(tensor, (base[name] + own[name]) / 2, rtol=1e-6, atol=1e-7), name
    with pytest.raises(BoomError, match="models: got 1"):
        merge(models[:1], out=str(tmp_path / "other"))


def test_a_setting_of_a_later_peft_is_refused_unless_it_is_off(published_qwen3, tmp_path):
    paths = [adapter(published_qwen3, str(tmp_path / name), 1) for name in ("one", "other")]
    for path, value in zip(paths, (None, {"turns": 3}), strict=True):
        file = os.path.join(path, "adapter_config.json")
        write_json(file, read_json(file) | {"use_later": value})
    assert "use_later: {'turns': 3}" in refused(paths, tmp_path)


def test_code_in_a_model_directory_is_refused(models, tmp_path):
    other = edit(models[1], str(tmp_path / "other"), lambda tensors: None)
    path = os.path.join(other, "modules.json")
    modules = read_json(path)
    modules[0]["type"] = "custom_model.Transformer"
    write_json(path, modules)
    assert "custom_model.Transformer" in refused([models[0], other], tmp_path)


def test_models_of_another_base_are_refused_by_their_records(models, published_qwen3, tmp_path):
    def claim(name: str, digest: str) -> str:
        target = str(tmp_path / name)
        shutil.copytree(models[0], target)
        record = artifacts.read_record(target)
        record.parents = [artifacts.Parent(name="base", version="base", digest=digest)]
        with open(os.path.join(target, "artifact.json"), "w") as file:
            file.write(record.model_dump_json())
        return target

    message = refused([claim("one", "a" * 32), claim("two", "b" * 32)], tmp_path)
    assert re.search(r"two: .* base \(digest bbbbbbbb\).*one.* base \(digest aaaaaaaa\)", message)


def test_a_tensor_cut_over_workers_is_the_one_of_a_single_worker(tmp_path):
    """One tensor is nearly the whole model: workers sum its Gram matrix and write its slices."""
    inputs = []
    for seed in range(3):
        os.makedirs(tmp_path / str(seed))
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "large": torch.randn(24_000, 1000, generator=generator),
            "small": torch.full((7,), float(seed)),
        }
        save_file(tensors, tmp_path / str(seed) / "model.safetensors")
        (tmp_path / str(seed) / "config.json").write_text('{"model_type": "bert", "hidden_size": 1000}')
        inputs.append(str(tmp_path / str(seed)))
    alone, _ = merge_models(inputs, str(tmp_path / "alone"), None, WEIGHTS)
    three = WEIGHTS.model_copy(update={"execution": MergeExecution(num_workers=3)})
    cut, merged = merge_models(inputs, str(tmp_path / "cut"), None, three)
    assert [shard.num_slices for shard in merged.shards] == [3, 1]
    assert artifacts.verify(str(tmp_path / "cut")) == cut
    first, second = (tensors_of(str(tmp_path / name)) for name in ("alone", "cut"))
    assert torch.equal(first["small"], second["small"])
    assert torch.allclose(first["large"], second["large"], rtol=1e-6, atol=1e-9)
    assert alone.tensors["small"] == cut.tensors["small"]


def test_a_full_disk_is_one_clear_error():
    writer = ShardWriter("/dev/full", {"w": ("F32", (1 << 20,))})
    with pytest.raises(BoomError, match=r"/dev/full: storage failed: .*No space left"):
        writer.write("w", torch.zeros(1 << 20).split(1 << 18))
        writer.close()


def test_a_merge_that_fills_its_disk_leaves_nothing_and_succeeds_on_a_larger_one(models, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(BoomError, match="No space left"):
            merge_models(models, f"{disk}/out", None, Merge(space="weights"))
        assert os.listdir(disk) == []
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        merge_models(models, f"{disk}/out", None, Merge(space="weights"))
        artifacts.verify(f"{disk}/out")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_one_of_two_merges_to_the_same_output_succeeds(models, tmp_path):
    target, ends = str(tmp_path / "merged" / "out"), []

    def attempt() -> None:
        try:
            ends.append(merge_models(models, target, None, WEIGHTS)[0].digest)
        except BoomError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = artifacts.verify(target)
    assert sorted(end == record.digest for end in ends) == [False, True]
    assert any("exists already" in end for end in ends) and os.listdir(tmp_path / "merged") == ["out"]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"method": "slerp"}, "slerp merges 2 models; got 3"),
        ({"method": "ties"}, "Give base_model"),
        ({"density": [0.1, 0.2]}, "got 2 densities for 3 models"),
    ],
)
def test_settings_that_do_not_fit_the_models_are_refused(values, part, models, published_qwen3, tmp_path):
    third = variant(published_qwen3, str(tmp_path / "third"), 3)
    assert part in refused([*models, third], tmp_path, **values)


def test_the_record_has_the_settings_and_the_range_of_coefficients(models, published_qwen3, tmp_path):
    settings = Merge(method="karcher", weights=[3, 1], dtype="float32", iterations=1)
    record, merged = merge_models(models, str(tmp_path / "out"), published_qwen3, settings)
    coefficients = record.config.merge.coefficients
    assert list(record.config.merge.model_dump().items()) == [
        *{"method": "karcher", "space": "deltas", "weights": [0.75, 0.25], "dtype": "float32"}.items(),
        *{"scale": 1.0, "scale_from": None, "iterations": 1, "density": 0.5, "seed": 0}.items(),
        *{"normalize": None, "adapter_rank": None, "adapter_error": None}.items(),
        ("coefficients", coefficients),
    ]
    assert [parent.digest for parent in record.parents] == [artifacts.read_record(m).digest for m in models]
    for least, mean, most in coefficients:
        assert 0 < least <= mean <= most < 2
    assert merged.grams.keys() == record.tensors.keys()
    assert load_file(str(tmp_path / "out" / "model.safetensors")).keys() == record.tensors.keys()


def test_more_workers_than_the_cluster_has_cpus_for_still_finish(tmp_path):
    """Two workers of two CPUs each in a cluster of two: the second starts once the first is killed."""
    tasks = [(number, tmp_path / str(number)) for number in range(4)]

    @ray.remote(num_cpus=2)
    class Worker:
        def touch(self, path) -> str:
            path.touch()
            return path.name

    done: list[str] = []
    pool = WorkerPool([Worker.remote(), Worker.remote()], "died")
    for _, path in tasks:
        pool.add("touch", path, then=done.append)
    pool.run()
    assert sorted(done) == ["0", "1", "2", "3"]
