"""The model directory: the files that servers read, and the directories that are rejected."""

import json
import os
import re
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from boom_ray import artifacts
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.recipe import BaseModelSource


def test_the_tokenizer_of_a_decoder_appends_its_end_token_after_truncation_too(published_qwen3):
    tokenizer = AutoTokenizer.from_pretrained(published_qwen3)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for ids in tokenizer(["a", "word " * 1000], truncation=True, max_length=16)["input_ids"]:
        assert ids[-1] == end and ids.count(end) == 1 and len(ids) <= 16


def test_a_published_directory_has_the_settings_that_servers_read(published_qwen3):
    def read(name):
        with open(os.path.join(published_qwen3, name)) as file:
            return json.load(file)

    artifacts.verify(published_qwen3)
    pooling = read("1_Pooling/config.json")
    assert [flag for flag, on in pooling.items() if on is True and flag.startswith("pooling_mode")] == [
        "pooling_mode_lasttoken"
    ]
    assert [m["type"] for m in read("modules.json")] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")
    ]
    assert read("sentence_bert_config.json") == {"max_seq_length": 128, "do_lower_case": False}
    assert read("config.json")["architectures"] == ["Qwen3ForCausalLM"]
    assert read("tokenizer.json")["truncation"] is None and read("tokenizer.json")["padding"] is None


def write(path, **files):
    for name, content in files.items():
        target = path / f"{name.replace('__', '/')}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
    return str(path)


BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "config.json"),
        ({"config": BERT}, "base_model.pooling"),
        ({"config": BERT, "modules": [{"type": "evil.Module", "path": ""}]}, "evil.Module"),
        (
            {"config": BERT, "modules": [{"type": "sentence_transformers.models.Dense", "path": ""}]},
            "sentence_transformers.models.Dense; allowed: Transformer",
        ),
        ({"config": BERT, "1_Pooling__config": {"pooling_mode_max_tokens": True}}, "pooling max; allowed"),
    ],
)
def test_a_directory_that_is_not_a_supported_model_is_rejected(tmp_path, files, message):
    with pytest.raises(InputError, match=re.escape(message)):
        directory.read_spec(write(tmp_path, **files))


def test_the_recipe_can_define_the_pooling(tmp_path):
    path = write(tmp_path, config=BERT)
    assert directory.read_spec(path, BaseModelSource(path=path, pooling="cls")).pooling == "cls"


def test_pickled_weights_are_never_loaded(tmp_path, minilm):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(minilm, name), tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        directory.load_encoder(str(tmp_path), BaseModelSource(path=str(tmp_path), pooling="mean"))


def test_an_attention_that_is_not_installed_is_an_input_error(published_qwen3):
    with pytest.raises(InputError, match=r"train\.execution\.attention: got flash_attention_2: .*[Ff]lash"):
        directory.load_encoder(published_qwen3, attention="flash_attention_2")
