"""Adapters as peft folds them, or refused."""

import json
import os
import shutil

import pytest
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import ModelConfig
from boom_ray.errors import InputError, StorageError
from boom_ray.merge.adapter import read_adapter
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.settings import resolve_weights
from boom_ray.model import directory, files
from boom_ray.recipe import BaseModelSource, Lora, Merge
from boom_ray.train.lora import save
from tests.merge.oracle import streamed
from tests.merge.test_actors import tensors_of
from tests.merge.test_compare import edited

LINEAR = Merge(method="linear", space="weights", dtype="float32")


def adapter(base: str, target: str, seed: int = 1, **settings) -> str:
    """An adapter as peft writes it, with random values in both matrices."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]} | settings
    model = get_peft_model(AutoModel.from_pretrained(base, dtype=torch.float32), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(target)
    return target


def folded(base: str, path: str) -> dict[str, torch.Tensor]:
    """The weights of base and adapter as peft folds them."""
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=torch.float32), path)
    return model.merge_and_unload().state_dict()


def assert_folds_as_peft(base: str, path: str, target: str) -> None:
    merged, expected = streamed([path], base, LINEAR, target), folded(base, path)
    moved = [name for name, tensor in tensors_of(base).items() if not torch.equal(tensor, merged[name])]
    assert moved and all(
        torch.allclose(merged[name], expected[name], rtol=1e-5, atol=1e-6) for name in merged
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": {"q_proj": 3, r"layers.1.*.v_proj": 5}, "rank_pattern": {"v_proj": 2}},
        {
            "alpha_pattern": {"^layers.0.self_attn.q_proj": 1.5},
            "use_rslora": True,
            "rank_pattern": {"q_proj": 3},
        },
        {"layers_to_transform": [1], "layers_pattern": "layers", "lora_dropout": 0.3},
        {"target_modules": "all-linear", "init_lora_weights": "orthogonal"},
        {"target_modules": r".*\.mlp\.(up|gate)_proj", "exclude_modules": "gate_proj"},
        {"fan_in_fan_out": False, "bias": "none", "task_type": "FEATURE_EXTRACTION"},
    ],
)
def test_settings_that_are_accepted_fold_as_peft(settings, published_qwen3, tmp_path):
    path = adapter(published_qwen3, str(tmp_path / "adapter"), **settings)
    assert_folds_as_peft(published_qwen3, path, str(tmp_path))


def test_an_adapter_initialized_by_eva_is_plain(published_qwen3, tmp_path):
    path = adapter(published_qwen3, str(tmp_path / "adapter"))
    config = {"init_lora_weights": "eva", "eva_config": EvaConfig().__dict__, "alpha_pattern": {"q_proj": 6}}
    edited_path = edited(path, str(tmp_path / "eva"), adapter_config=lambda content: content | config)
    assert_folds_as_peft(published_qwen3, edited_path, str(tmp_path))


@pytest.fixture(scope="module")
def gpt2(qwen3, tmp_path_factory):
    """A tiny GPT-2, whose layers store [in, out]."""
    path = str(tmp_path_factory.mktemp("base") / "gpt2")
    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=1000, n_embd=32, n_layer=2, n_head=2)).save_pretrained(path)
    AutoTokenizer.from_pretrained(qwen3).save_pretrained(path)
    return path


@pytest.mark.parametrize("stated", [True, False])
def test_layers_that_store_in_out_get_the_transposed_update(stated, gpt2, tmp_path):
    path = adapter(gpt2, str(tmp_path / "one"), target_modules=["c_attn", "attn.c_proj", "c_fc"])
    edited(path, str(tmp_path / "adapter"), adapter_config=lambda c: c | {"fan_in_fan_out": stated})
    assert_folds_as_peft(gpt2, str(tmp_path / "adapter"), str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora'"),
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "lora_only"}, "bias: 'lora_only'"),
        ({"modules_to_save": ["norm"]}, "modules_to_save: ['norm']"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication: "),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices: "),
        ({"target_modules": ["embed_tokens"]}, "not pairs of lora_A and lora_B"),
    ],
)
def test_adapters_that_are_more_than_a_product_are_refused(settings, part, published_qwen3, tmp_path):
    path = adapter(published_qwen3, str(tmp_path / "adapter"), **settings)
    with pytest.raises(InputError) as caught:
        read_adapter(path, published_qwen3)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights: 'loftq'"),
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA'"),
        ({"lora_alpha": "much"}, "lora_alpha: got 'much'"),
        ({"lora_alpha": None}, "lora_alpha: missing"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern: got"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: "),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is for Conv1D"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path: got 3"),
    ],
)
def test_settings_of_other_kinds_and_types_are_refused(change, part, published_qwen3, tmp_path):
    path = adapter(published_qwen3, str(tmp_path / "one"))
    edited(path, str(tmp_path / "adapter"), adapter_config=lambda content: content | change)
    with pytest.raises(InputError) as caught:
        check_inputs([str(tmp_path / "adapter")], published_qwen3)
    assert part in str(caught.value)


@pytest.mark.parametrize("name", ["/gone/base", "owner/gone", None, "not a name"])
def test_adapters_whose_base_is_gone_are_named_all_at_once(name, published_qwen3, tmp_path):
    path = adapter(published_qwen3, str(tmp_path / "one"))
    change = {"adapter_config": lambda content: content | {"base_model_name_or_path": name}}
    gone = [edited(path, str(tmp_path / f"gone{number}"), **change) for number in range(2)]
    with pytest.raises(InputError) as caught:
        check_inputs([path, *gone], None)
    assert all(f"{one}: " in str(caught.value) for one in gone) and f"{path}: " not in str(caught.value)
    assert len(check_inputs([path, *gone], published_qwen3).models) == 3


def test_an_adapter_of_another_base_is_refused(published_qwen3, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(published_qwen3, other, ignore=shutil.ignore_patterns("artifact.json"))
    tensors = load_file(os.path.join(other, "model.safetensors"))
    save_file({name: t + 0.01 for name, t in tensors.items()}, os.path.join(other, "model.safetensors"))
    path = adapter(other, str(tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"adapter: is an adapter of .*other, whose .* differs"):
        check_inputs([path], published_qwen3)
    shutil.rmtree(other)
    check_inputs([path], published_qwen3)


def test_broken_weights_of_an_adapter_are_refused(published_qwen3, tmp_path):
    path = adapter(published_qwen3, str(tmp_path / "one"))
    weights = os.path.join(path, "adapter_model.safetensors")
    tensors = load_file(weights)
    first = next(name for name in tensors if "lora_B" in name)
    for change, part in (
        ({first: tensors[first][:, :2].contiguous()}, "is not a matrix product"),
        ({first: tensors[first][:3].contiguous()}, "does not fit"),
        ({first: tensors[first].flatten()}, "is not a matrix product"),
    ):
        save_file(tensors | change, weights)
        with pytest.raises(InputError, match=part):
            read_adapter(path, published_qwen3)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, weights)
    with pytest.raises(InputError, match="not pairs of lora_A and lora_B"):
        read_adapter(path, published_qwen3)
    with open(os.path.join(path, "adapter_config.json"), "wb") as file:
        file.write(json.dumps({"peft_type": "LORA"}).encode() + b"\xff")
    with pytest.raises(InputError, match=r"adapter_config\.json: not valid JSON"):
        read_adapter(path, published_qwen3)


def published(base: str, target: str, seed: int) -> str:
    """An adapter with all files of a model directory and a record, as a bag publishes it."""
    lora, names = Lora(rank=4, alpha=8), ["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"]
    weights = AutoModel.from_pretrained(base).state_dict()
    torch.manual_seed(seed)
    factors = {}
    for name in names:
        num_out, num_in = weights[f"{name}.weight"].shape
        factors[f"{name}.lora_A.default.weight"] = 0.1 * torch.randn(lora.rank, num_in)
        factors[f"{name}.lora_B.default.weight"] = 0.1 * torch.randn(num_out, lora.rank)
    encoder = directory.load_encoder(base, BaseModelSource(path=base))
    with staging.staged(target) as stage:
        save(factors, lora, base, stage.local)
        directory.save(encoder, stage.local, base, {"query": "q: "}, 64, matryoshka=[8])
        stage.commit(
            ModelRecord(name="t", version=f"bag-{seed}", fingerprint="0", config=ModelConfig(rows=seed))
        )
    return target


def as_full_model(adapter: str, base: str, target: str) -> str:
    """The same model with all weights in float32."""
    encoder = directory.load_encoder(adapter)
    directory.save(encoder, target, base, encoder.spec.prompts, 64)
    return target


def test_adapters_merge_as_the_same_models_with_all_weights(qwen3, tmp_path):
    adapters = [published(qwen3, str(tmp_path / f"bag-{seed}"), seed) for seed in (1, 2, 3)]
    full = [as_full_model(uri, qwen3, f"{uri}-full") for uri in adapters]
    for dtype in ("float32", "bfloat16"):
        settings = Merge(space="weights", dtype=dtype)  # task vectors are merged from factors: test_low_rank
        merged = [
            streamed(inputs, qwen3, settings, str(tmp_path / f"{name}-{dtype}"))
            for name, inputs in (("a", adapters), ("f", full), ("m", [adapters[0], *full[1:]]))
        ]
        for other in merged[1:]:
            assert merged[0].keys() == other.keys()
            assert all(torch.equal(tensor, other[name]) for name, tensor in merged[0].items())
    checked = check_inputs(adapters, qwen3)
    assert resolve_weights(checked.models, Merge(weights="size")) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    directory.copy_all_but_weights(checked.directory, str(tmp_path / "out"), "bfloat16")
    config = files.read_config(str(tmp_path / "out"))
    assert (config["matryoshka_dimensions"], config["dtype"]) == ([8], "bfloat16")
    assert not {"adapter_config.json", files.ADAPTED_CONFIG} & set(os.listdir(tmp_path / "out"))


def test_a_damaged_matrix_of_an_adapter_is_named(qwen3, tmp_path):
    uri = published(qwen3, str(tmp_path / "bag"), 1)
    path = os.path.join(uri, "adapter_model.safetensors")
    with open(path, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(
        StorageError, match=r"adapter_model\.safetensors: tensor .*lora_[AB]\.weight is damaged"
    ):
        streamed([uri], qwen3, LINEAR, str(tmp_path))
