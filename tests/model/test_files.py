"""Damaged and unusual files of a model: errors in sentences, and values as the libraries read them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import DistilBertConfig, DistilBertModel, XLMConfig

from boom_ray.errors import InputError
from boom_ray.merge.adapter import read_adapter
from boom_ray.model import directory, files
from boom_ray.recipe import BaseModelSource

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8}
SBERT, POOLING, PROMPTS = (
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
)
TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLED = {"type": "sentence_transformers.models.Pooling", "path": "pooled"}
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}


@pytest.fixture
def copied(bert, tmp_path) -> Path:
    """A model whose files a test may damage."""
    return Path(shutil.copytree(bert, tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b'{"model_type": "bert"', r"config\.json: not valid JSON"),
        ("config.json", b"[]", r"config\.json: got a list"),
        ("config.json", b'{"hidden_size": 8}', r"config\.json with a model_type"),
        ("config.json", b'{"model_type": 7}', r"config\.json with a model_type"),
        (
            "config.json",
            b'{"model_type": "bert", "max_position_embeddings": "many"}',
            "max_position_embeddings: got 'many'",
        ),
        ("config.json", b'{"model_type": "b\xe9rt"}', r"config\.json: not valid JSON"),
        ("modules.json", b"{}", r"modules\.json: modules: got {}"),
        ("modules.json", b'[{"path": ""}]', r"modules\.json: modules\.0\.type: missing"),
        (SBERT, b'{"max_seq_length": "long"}', r"max_seq_length: got 'long'"),
        (SBERT, b'{"max_seq_length": -1}', r"max_seq_length: got -1"),
        (SBERT, b'{"modality_config": {"message": {}}}', "modality_config"),
        (SBERT, b'{"query_length": 32}', "query_length: got 32"),
        (SBERT, b'{"transformer_task": "fill-mask"}', "transformer_task: got fill-mask"),
        (POOLING, b'{"pooling_mode": ["mean", "max"]}', "pooling mean, max; allowed: one of cls, mean"),
        (POOLING, b'{"pooling_mode": 3}', "pooling 3; allowed"),
        (POOLING, b'{"pooling_mode_weightedmean_tokens": true}', "pooling weightedmean; allowed"),
        (POOLING, b'{"pooling_mode": "mean", "include_prompt": "perhaps"}', "include_prompt: got 'perhaps'"),
        (PROMPTS, b'{"prompts": ["query"]}', r"prompts: got \['query'\]"),
        (PROMPTS, b'{"prompts": {"query": 3}}', r"prompts\.query: got 3"),
        (PROMPTS, b'{"prompts": {"query": "q: "}, "default_prompt_name": "search"}', "default_prompt_name"),
        (PROMPTS, b'{"truncate_dim": 64}', "truncate_dim: got 64"),
        ("tokenizer_config.json", b'{"model_max_length": "512 tokens"}', "model_max_length"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(copied, name, content, words):
    (copied / SBERT).unlink()  # a length there comes before that of the tokenizer
    (copied / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        directory.read_spec(str(copied))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([TRANSFORMER, POOLED, DENSE], r"modules\.json contains sentence_transformers\.models\.Dense"),
        ([POOLED, TRANSFORMER], "got Pooling, Transformer; allowed"),
        ([TRANSFORMER, POOLED, POOLED], "got Transformer, Pooling, Pooling; allowed"),
        ([{**TRANSFORMER, "path": "0_Transformer"}, POOLED], "the transformer is in 0_Transformer/"),
        *(
            ([{"type": f"sentence_transformers.models.{name}"}], f"models.{name}; allowed")
            for name in ("CLIPModel", "Router", "LSTM", "WordEmbeddings", "Asym", "StaticEmbedding", "BoW")
        ),
    ],
)
def test_modules_that_are_not_computed_are_refused_by_name(copied, modules, words):
    (copied / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=words):
        directory.read_spec(str(copied))


def test_the_pooling_is_read_where_the_modules_say(copied):
    shutil.rmtree(copied / "1_Pooling")
    (copied / "pooled").mkdir()
    (copied / "pooled" / "config.json").write_text('{"pooling_mode": "cls", "embedding_dimension": 32}')
    (copied / "modules.json").write_text(json.dumps([TRANSFORMER, POOLED]))
    assert directory.read_spec(str(copied)).pooling == "cls"


def test_null_in_a_file_is_as_good_as_nothing(copied):
    (copied / PROMPTS).write_text('{"prompts": {"query": null}, "default_prompt_name": null}')
    (copied / SBERT).write_text('{"max_seq_length": null, "do_lower_case": null}')
    spec = directory.read_spec(str(copied))
    assert (spec.prompts, spec.max_length, spec.lowercase) == ({"query": ""}, 512, False)


@pytest.mark.parametrize("damage", [b"{", b"", b'{"version": "1.0", "model": {"type": "None"}}', b"\xff\xfe"])
def test_a_damaged_tokenizer_is_named(copied, damage):
    (copied / "tokenizer.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"its tokenizer cannot be loaded.*tokenizer\.json"):
        directory.load_encoder(str(copied))


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        (b"---\nlicense: mit\n---\n# A model", "mit"),
        (b"---\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: mit\nauthor: José\n---\n".encode("latin-1"), "mit"),
        (b"---\nlicense: [mit\n---\n", None),
        (b"---\nlicense: 2024-13-45\n---\n", None),
        (b"---\njust words\n---\n", None),
        (b"# A model", None),
        (b"---\nlicense: mit", None),
    ],
)
def test_the_license_is_read_from_any_card(tmp_path, card, stated):
    (tmp_path / "README.md").write_bytes(card)
    assert directory.license_of(str(tmp_path)) == stated


def test_sizes_are_found_by_the_names_of_their_architecture(tmp_path):
    """DistilBERT calls its width `dim`, XLM `emb_dim`."""
    config = DistilBertConfig(dim=16, hidden_dim=16, n_layers=1, n_heads=2, vocab_size=30522)
    DistilBertModel(config).save_pretrained(tmp_path / "distilbert")
    XLMConfig(emb_dim=48).save_pretrained(tmp_path / "xlm")
    assert directory.dimension_of(str(tmp_path / "distilbert")) == 16
    assert directory.dimension_of(str(tmp_path / "xlm")) == 48


def test_a_distilbert_is_embedded_and_published(minilm, tmp_path):
    base, target = tmp_path / "base", tmp_path / "published"
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        os.makedirs(base, exist_ok=True)
        shutil.copy(os.path.join(minilm, name), base)
    config = DistilBertConfig(dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    DistilBertModel(config).save_pretrained(base)
    encoder = directory.load_encoder(str(base), BaseModelSource(path=str(base), pooling="mean"))
    directory.save(encoder, str(target), str(base), {}, 32)
    assert encoder.encode(["a"]).shape == (1, 16)
    assert files.read_object(str(target), POOLING)["word_embedding_dimension"] == 16


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"base_model_name_or_path": "/gone/model"}, "its base model /gone/model does not exist"),
        ({"base_model_name_or_path": "no-such-owner/no-such-model"}, "no-such-model cannot be read"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({}, "names no base model"),
    ],
)
def test_an_adapter_whose_base_is_missing_says_so(tmp_path, config, words):
    adapter = {"peft_type": "LORA", "lora_alpha": 8, **config}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(InputError, match=re.escape(words)):
        read_adapter(str(tmp_path), None)


def test_an_adapter_without_its_scale_says_so(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": "eight"}')
    with pytest.raises(InputError, match="lora_alpha: got 'eight'"):
        read_adapter(str(tmp_path), None)
