"""The encoder and its published directory: the same vectors as every other loader of it gives."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from boom_ray import artifacts
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.model.encoder import chunk_by_tokens, pool
from boom_ray.recipe import BaseModelSource
from tests import texts

FAMILIES = ["published_minilm", "published_qwen3"]


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """50 texts from one word to longer than the model takes."""
    pieces = [text for pair in texts.functions("email") for text in pair][:45]
    return ["a", "two words", "x " * 500, "ünïcödé ✓ 漢字", pieces[0] * 9, *pieces]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_sentence_transformers_gives_the_same_vectors(family, batch_size, mixed, request):
    path = request.getfixturevalue(family)
    theirs = SentenceTransformer(path, device="cpu").encode(mixed, batch_size=batch_size)
    ours = directory.load_encoder(path).encode(mixed)
    assert cosines(ours, theirs).min() >= 0.99999
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_query_prompt_is_the_one_sentence_transformers_applies(family, mixed, request):
    path = request.getfixturevalue(family)
    theirs = SentenceTransformer(path, device="cpu").encode(mixed[:8], prompt_name="query")
    encoder = directory.load_encoder(path)
    assert cosines(encoder.encode(mixed[:8], encoder.spec.prompts["query"]), theirs).min() >= 0.99999


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_transformers_alone_with_our_pooling_gives_the_same_vectors(family, batch_size, mixed, request):
    path = request.getfixturevalue(family)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    spec, found = directory.read_spec(path), []
    for start in range(0, len(mixed), batch_size):
        texts_now = mixed[start : start + batch_size]
        encoded = tokenizer(texts_now, padding=True, padding_side="right", truncation=True,
                            max_length=spec.max_length, return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            states = model(**encoded).last_hidden_state
        vectors = pool(states, encoded["attention_mask"].sum(1), spec.pooling)
        found.append(torch.nn.functional.normalize(vectors, dim=-1))
    assert cosines(directory.load_encoder(path).encode(mixed), torch.cat(found).numpy()).min() >= 0.99999


def test_a_decoder_ends_every_text_with_its_end_token_also_after_truncation(published_qwen3):
    tokenizer = AutoTokenizer.from_pretrained(published_qwen3)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for ids in tokenizer(["a", "word " * 1000], truncation=True, max_length=16)["input_ids"]:
        assert ids[-1] == end and ids.count(end) == 1 and len(ids) <= 16


def test_the_published_directory_holds_what_every_server_reads(published_qwen3):
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


def test_padding_and_batch_composition_do_not_change_a_vector(published_qwen3, mixed):
    encoder = directory.load_encoder(published_qwen3)
    alone = np.concatenate([encoder.encode([text]) for text in mixed[:10]])
    assert np.abs(encoder.encode(mixed)[:10] - alone).max() < 1e-5


@pytest.mark.parametrize("model", ["published_minilm", "published_qwen3"])
def test_packed_weights_give_the_same_vectors(model, mixed, request):
    path = request.getfixturevalue(model)
    packed = directory.load_encoder(path).for_inference()
    assert np.abs(packed.encode(mixed) - directory.load_encoder(path).encode(mixed)).max() < 1e-5
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert not any(type(module) is torch.nn.Linear for module in packed.modules())


MANY_SHAPES = """
import ctypes
import psutil
import torch
from boom_ray.model import packed
layers = torch.nn.Sequential(torch.nn.Linear(384, 1536), torch.nn.Linear(1536, 384))
packed.pack(layers)
with torch.inference_mode():
    for count in range(1, 401):
        layers(torch.zeros(count, 384))
        if count in (200, 400):
            ctypes.CDLL(None).malloc_trim(0)
            print(psutil.Process().memory_info().rss >> 20)
"""


def test_passes_of_ever_new_shapes_take_no_more_memory():
    made = subprocess.run([sys.executable, "-c", MANY_SHAPES], capture_output=True, text=True, check=True)
    before, after = map(int, made.stdout.split())
    assert after - before < 30  # MiB; some 100 if all were kept


def test_chunks_pad_no_text_by_more_than_an_eighth_once_they_are_long_enough():
    lengths = np.random.default_rng(0).integers(1, 512, 1000)
    chunks = chunk_by_tokens(lengths, 10**6)
    for chunk in chunks:
        longest, shortest = lengths[chunk].max(), lengths[chunk].min()
        assert shortest * 8 >= longest * 7 or (len(chunk) - 1) * longest < 512
    assert sum(len(chunk) * lengths[chunk].max() for chunk in chunks) < 1.1 * lengths.sum()


@pytest.mark.parametrize("budget", [1, 64, 10**6])
def test_chunks_hold_every_text_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 60, 100)
    chunks = chunk_by_tokens(lengths, budget)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(100))
    assert all(len(chunk) == 1 or len(chunk) * lengths[chunk].max() <= budget for chunk in chunks)


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
        ({}, "has no config.json"),
        ({"config": BERT}, "does not say how it pools"),
        ({"config": BERT, "modules": [{"type": "evil.Module", "path": ""}]}, "never run"),
        (
            {"config": BERT, "modules": [{"type": "sentence_transformers.models.Dense", "path": ""}]},
            "allowed: Tr",
        ),
        ({"config": BERT, "1_Pooling__config": {"pooling_mode_max_tokens": True}}, "pooling max; allowed"),
    ],
)
def test_a_directory_that_is_no_model_of_ours_is_refused(tmp_path, files, message):
    with pytest.raises(BoomError) as caught:
        directory.read_spec(write(tmp_path, **files))
    assert message in str(caught.value)


def test_the_recipe_can_say_the_pooling(tmp_path):
    path = write(tmp_path, config=BERT)
    assert directory.read_spec(path, BaseModelSource(path=path, pooling="cls")).pooling == "cls"


def test_pickled_weights_are_never_loaded(tmp_path, minilm):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(minilm, name), tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BoomError, match="cannot be loaded"):
        directory.load_encoder(str(tmp_path), BaseModelSource(path=str(tmp_path), pooling="mean"))


def test_a_packed_batch_gives_the_vectors_of_a_padded_one(published_qwen3, mixed):
    encoder = directory.load_encoder(published_qwen3)
    padded = encoder.encode(mixed, chunk_tokens=400)
    encoder.packed = True
    assert np.abs(encoder.encode(mixed, chunk_tokens=400) - padded).max() < 1e-5
    assert np.abs(encoder.encode(mixed[:1]) - padded[:1]).max() < 1e-5


def test_an_attention_that_is_not_installed_is_one_clear_error(published_qwen3):
    with pytest.raises(BoomError, match=r"cannot be loaded as a model: .*[Ff]lash"):
        directory.load_encoder(published_qwen3, attention="flash_attention_2")
