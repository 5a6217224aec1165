"""Lengths and dimensions beyond those of a model are refused."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    MPNetConfig,
    MPNetModel,
    Qwen3Config,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.model.limits import limits_of
from boom_ray.recipe import BaseModelSource
from boom_ray.runs.identity import claim

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "bert": (BertConfig, BertModel, {}),
    "mpnet": (MPNetConfig, MPNetModel, {}),
    "roberta": (RobertaConfig, RobertaModel, {}),
    "roberta-pad-0": (RobertaConfig, RobertaModel, {"pad_token_id": 0}),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_exactly_as_many_positions_as_are_found(name):
    make_config, make_model, options = MODELS[name]
    config = make_config(vocab_size=50, max_position_embeddings=24, **SMALL, **options)
    positions = limits_of(config.to_dict()).positions
    model = make_model(config).eval()
    model(input_ids=torch.full((1, positions), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, positions + 1), 7))


@pytest.mark.parametrize(
    ("config", "dimension"), [(DistilBertConfig(dim=48), 48), (GPT2Config(n_embd=24), 24)]
)
def test_a_dimension_is_found_by_each_of_its_names(config, dimension, tmp_path):
    config.save_pretrained(tmp_path)
    assert directory.dimension_of(str(tmp_path)) == dimension


def test_a_configuration_without_a_dimension_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="hidden_size"):
        directory.dimension_of(str(tmp_path))


def test_settings_beyond_the_base_model_are_refused_before_the_run_has_a_name(make_recipe, bert, tmp_path):
    for sections, words in (
        ({"train": {"matryoshka": [16, 64]}}, r"train\.matryoshka: got 64;.* 32 dimensions"),
        ({"train": {"passage_max_length": 600}}, r"train\.passage_max_length: got 600;.* 512 tokens"),
        ({"base_model": {"path": bert, "max_length": 513}}, r"base_model\.max_length: got 513;.* 512 tokens"),
    ):
        with pytest.raises(InputError, match=words):
            claim(make_recipe(bert, **sections))
    assert not (tmp_path / "runs").exists()


def test_the_length_that_a_model_declares_is_at_most_its_positions(tmp_path):
    RobertaConfig(vocab_size=50, max_position_embeddings=514, **SMALL).save_pretrained(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 514}')
    source = BaseModelSource(path=str(tmp_path), pooling="mean")
    assert directory.read_spec(str(tmp_path), source).max_length == 512


def test_positions_that_are_computed_are_no_limit_for_a_declared_length(tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    Qwen3Config(vocab_size=50, max_position_embeddings=64, rope_scaling=yarn).save_pretrained(tmp_path)
    source = BaseModelSource(path=str(tmp_path), pooling="lasttoken")
    assert directory.read_spec(str(tmp_path), source).max_length == 64
    assert directory.read_spec(str(tmp_path), source.model_copy(update={"max_length": 256})).max_length == 256
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert directory.read_spec(str(tmp_path), source).max_length == 128
