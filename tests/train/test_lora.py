"""Adapters: what is saved is the trained encoder, wherever it is loaded."""

import os
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, GPT2Config, GPT2Model

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.model import adapter, directory
from boom_ray.model.encoder import Encoder
from boom_ray.recipe import Lora, Recipe
from boom_ray.train.export import save_model
from boom_ray.train.lora import attach
from tests import texts


def trained_adapter(base: str, recipe: Recipe, target: str) -> Encoder:
    """Save an adapter with random values in both matrices; returns the encoder as it is trained."""
    lora = recipe.train.lora
    assert lora is not None
    encoder = directory.load_encoder(base, recipe.base_model)
    attach(encoder.transformer, lora)
    torch.manual_seed(1)
    factors = {name: p.data.normal_(std=0.1) for name, p in encoder.named_parameters() if ".lora_" in name}
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} >= factors.keys()
    trained = {name.removeprefix("transformer."): factor for name, factor in factors.items()}
    save_model(recipe, encoder, trained, target)
    return encoder


@pytest.mark.parametrize(
    ("base", "targets"),
    [("qwen3", Lora().targets), ("qwen3", ["q_proj", "down_proj"]), ("bert", ["all-linear"])],
)
def test_an_adapter_is_the_trained_encoder_for_us_sentence_transformers_and_peft(
    base, targets, request, make_recipe, tmp_path
):
    base, target = request.getfixturevalue(base), str(tmp_path / "adapter")
    recipe = make_recipe(base, train={"lora": {"rank": 4, "alpha": 12, "targets": targets}})
    encoder = trained_adapter(base, recipe, target)
    assert sum(info.size for info in storage.list_files(target).values()) < os.path.getsize(
        f"{base}/model.safetensors"
    )
    pieces = [text for pair in texts.functions("email") for text in pair][:8]
    expected = encoder.encode(pieces)
    ours = directory.load_encoder(target)
    assert np.abs(ours.encode(pieces) - expected).max() < 1e-5
    assert np.abs(SentenceTransformer(target, device="cpu").encode(pieces) - expected).max() < 1e-5
    untrained = directory.load_encoder(base, recipe.base_model)
    assert np.abs(untrained.encode(pieces) - expected).max() > 1e-3
    assert (ours.spec.pooling, ours.dimension) == (encoder.spec.pooling, encoder.dimension)

    theirs = PeftModel.from_pretrained(untrained.transformer, target).merge_and_unload().state_dict()
    folded = ours.transformer.state_dict()
    assert folded.keys() == theirs.keys()
    assert all(torch.allclose(folded[name], theirs[name], atol=1e-6) for name in folded)
    halved = directory.load_encoder(target, dtype=torch.bfloat16).transformer.state_dict()
    assert all(torch.equal(halved[name], folded[name].bfloat16()) for name in folded), "rounded once"


def test_a_base_model_that_moved_is_named_with_a_remedy(qwen3, make_recipe, tmp_path):
    base, target = str(tmp_path / "base"), str(tmp_path / "adapter")
    shutil.copytree(qwen3, base)
    trained_adapter(base, make_recipe(base, train={"lora": {"rank": 2}}), target)
    os.rename(base, f"{base}.moved")
    with pytest.raises(InputError, match=rf"its base model {base} does not exist. Put it there"):
        directory.load_encoder(target)
    assert directory.read_spec(target).pooling == "lasttoken", "all else is in the adapter's directory"


def test_a_base_model_on_the_hub_is_named_as_peft_names_it(tmp_path):
    adapter.write_config(str(tmp_path), Lora(), ["layers.0.q_proj"], "hf://owner/name@v2")
    config = LoraConfig.from_pretrained(str(tmp_path))
    assert (config.base_model_name_or_path, config.revision) == ("owner/name", "v2")
    assert (config.r, config.lora_alpha, config.target_modules) == (32, 32, {"layers.0.q_proj"})


def test_targets_that_the_model_lacks_are_an_error_with_the_allowed_ones(minilm):
    with pytest.raises(InputError, match=r"train\.lora\.targets: .*q_proj.*dense, key, query, value"):
        attach(AutoModel.from_pretrained(minilm), Lora())
    with pytest.raises(InputError, match=r"targets: qury is not in the model;"):
        attach(AutoModel.from_pretrained(minilm), Lora(targets=["query", "qury"]))


def test_layers_that_are_not_linear_are_refused(bert):
    with pytest.raises(InputError, match=r"word_embeddings is of type Embedding; allowed: .*dense"):
        attach(AutoModel.from_pretrained(bert), Lora(targets=["word_embeddings"]))
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    for target in ("attn.c_proj", "c_attn", "all-linear"):
        with pytest.raises(InputError, match=r"train\.lora: the model has no linear layer"):
            attach(GPT2Model(config), Lora(targets=[target]))


def test_all_linear_layers_but_the_pooler(bert):
    model = AutoModel.from_pretrained(bert)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert "pooler.dense" in linear
    attach(model, Lora(rank=2, targets=["all-linear"]))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == linear - {"pooler.dense"}
