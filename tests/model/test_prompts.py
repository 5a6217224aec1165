"""Prompts, lowercasing and pooling that a model's own files state: vectors as by sentence-transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import boom_ray as boom
from boom_ray.data import bags, corpus
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.embed.embedding_run import _vector_settings
from boom_ray.errors import InputError
from boom_ray.evaluation.local_run import _with_prompts_of
from boom_ray.evaluation.protocol import EvaluationProtocol
from boom_ray.model import directory, files
from boom_ray.model.encoder import Encoder
from boom_ray.model.tokens import Tokens
from boom_ray.recipe import Data
from boom_ray.serve.request_reader import RequestReader
from boom_ray.serve.schema import EmbeddingRequest
from boom_ray.train.bagging import make_job
from boom_ray.train.batch_loader import BatchLoader
from boom_ray.train.step import TrainingStep, embedder
from tests.families import build

TEXTS = ["Sort a LIST", "ein Wörterbuch SORTIEREN in Python, bitte", "x"]
PROMPTS = {"query": "Search for: ", "document": "title: none | text: ", "passage": "Unused: "}


def prompted(base: str, target: Path, pooling: str = "mean", **settings: Any) -> str:
    """A copy of a model with other files of sentence-transformers."""
    shutil.copytree(base, target)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    width = files.read_config(base)["hidden_size"]
    lowercase = settings.pop("do_lower_case", False)
    include = settings.pop("include_prompt", True)
    write(target, "modules.json", modules)
    write(target, "1_Pooling/config.json", {"embedding_dimension": width, "pooling_mode": pooling,
                                            "include_prompt": include})  # fmt: skip
    write(target, "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": lowercase})
    write(target, "config_sentence_transformers.json", {"prompts": PROMPTS, **settings})
    return str(target)


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(content))


def cosine(one: Any, other: Any) -> float:
    one, other = np.asarray(one), np.asarray(other)
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT whose tokenizer keeps the case of texts."""
    path = build("bert", str(tmp_path_factory.mktemp("base") / "cased"))
    tokenizer = files.read_object(path, "tokenizer.json")
    tokenizer["normalizer"]["lowercase"] = False
    files.write_json(path, "tokenizer.json", tokenizer)
    return path


@pytest.mark.parametrize("pooling", ["mean", "cls", "mean_sqrt_len_tokens", "lasttoken"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_chosen_and_pooled_as_by_the_peer(cased, tmp_path, pooling, include_prompt):
    options = {"include_prompt": include_prompt, "default_prompt_name": "passage"}
    path = prompted(cased, tmp_path / "model", pooling, **options)
    theirs, ours = SentenceTransformer(path, device="cpu"), boom.load(path)
    spec = ours.encoder.spec
    assert cosine(ours.encode(TEXTS), theirs.encode(TEXTS)) >= 0.9999  # with the default prompt
    assert cosine(ours.encode(TEXTS, prompt=""), theirs.encode(TEXTS, prompt="")) >= 0.9999
    assert cosine(ours.encode(TEXTS, prompt=spec.query_prompt), theirs.encode_query(TEXTS)) >= 0.9999
    assert cosine(ours.encode(TEXTS, prompt=spec.document_prompt), theirs.encode_document(TEXTS)) >= 0.9999
    if pooling != "lasttoken":
        tokens = ours.encoder.tokenize(TEXTS, prompt="Search for: ")
        whole = ours.encoder.encode_tokens(Tokens.of(tokens.lists()))
        assert (cosine(whole, theirs.encode_query(TEXTS)) >= 0.9999) == include_prompt


def test_documents_have_no_prompt_where_only_passages_have(cased, tmp_path):
    path = prompted(cased, tmp_path / "model")
    write(Path(path), "config_sentence_transformers.json", {"prompts": {"passage": "passage: "}})
    theirs, ours = SentenceTransformer(path, device="cpu"), boom.load(path)
    document = ours.encode(TEXTS, prompt=ours.encoder.spec.document_prompt)
    assert cosine(document, theirs.encode_document(TEXTS)) >= 0.9999


@pytest.mark.parametrize("own", [True, False])
def test_texts_are_lowercased_where_a_file_says_so(cased, tmp_path, own):
    """`do_lower_case` of sentence-transformers, or of the tokenizer itself."""
    path = prompted(cased, tmp_path / "model", do_lower_case=not own)
    if own:
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32}
        write(Path(path), "tokenizer_config.json", settings)
    theirs, ours = SentenceTransformer(path, device="cpu"), directory.load_encoder(path)
    assert cosine(ours.encode(TEXTS), boom.load(cased, pooling="mean").encode(TEXTS)) < 0.9999
    assert cosine(ours.encode(TEXTS), theirs.encode(TEXTS)) >= 0.9999
    assert cosine(ours.encode(TEXTS), ours.encode([text.lower() for text in TEXTS])) >= 0.9999
    directory.save(ours, str(tmp_path / "published"), path, {}, 32)
    published = str(tmp_path / "published")
    assert cosine(ours.encode(TEXTS), SentenceTransformer(published, device="cpu").encode(TEXTS)) >= 0.9999
    assert AutoTokenizer.from_pretrained(published)(TEXTS)["input_ids"] == ours.tokenize(TEXTS).lists()


@pytest.fixture
def trainable(cased, tmp_path, make_recipe) -> Any:
    """Makes the batches of a recipe on a model that excludes prompts from pooling, and its encoder."""

    def make(**data: Any) -> tuple[BatchLoader, Encoder]:
        base = prompted(cased, tmp_path / "base", include_prompt=False)
        recipe = make_recipe(base)
        values = recipe.data.model_dump() | {"query_template": "Find: {query}", **data}
        recipe = recipe.model_copy(update={"data": Data.model_validate(values)})
        encoder = directory.load_encoder(base)
        prepared = corpus.prepare(recipe.data, f"{recipe.root}/corpus", "c")
        drawn = bags.publish(prepared, recipe.bags, f"{recipe.root}/bags")
        return BatchLoader(make_job(recipe, 1, prepared, drawn, prepared.as_parent(), None), encoder), encoder

    return make


@pytest.mark.parametrize("template", [None, "passage: {document}"])
def test_training_embeds_its_texts_as_sentence_transformers_does(trainable, tmp_path, template):
    loader, encoder = trainable(document_template=template)
    theirs = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    batch = loader.batch(0)
    sides = {"Find: ", PROMPTS["document"] if template is None else "passage: "}
    assert set(batch.batch.prompts) == sides
    embed = embedder(encoder, encoder.collate, batch.tokens)
    with torch.no_grad():
        vectors = embed(np.arange(len(batch.tokens))).numpy()
    for prompt in sides:
        chosen = [index for index, own in enumerate(batch.batch.prompts) if own == prompt]
        texts = [batch.batch.texts[index].removeprefix(prompt) for index in chosen]
        assert cosine(vectors[chosen], theirs.encode(texts, prompt=prompt)) >= 0.9999


def test_a_trained_model_keeps_its_prompts_and_how_they_are_pooled(trainable, tmp_path):
    loader, encoder = trainable(document_template="passage: {document}")
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    step = TrainingStep(lambda tensor: None, lambda loss, _: loss.backward())
    before = encoder.encode(TEXTS)
    for number in range(2):
        batch = loader.batch(number)
        embed = embedder(encoder.train(), encoder.collate, batch.tokens)
        texts = np.arange(len(batch.tokens))
        step(embed, texts, [texts], 1, len(texts), [lambda vectors: (vectors[0] * vectors[1]).sum()])
        optimizer.step()
    encoder.eval()
    published = str(tmp_path / "published")
    prompts = directory.prompts_of(Data.model_validate(
        {"tasks": [{"name": "t", "path": "x"}], "query_template": "Find: {query}",
         "document_template": "passage: {document}"}), encoder.spec)  # fmt: skip
    directory.save(encoder, published, str(tmp_path / "base"), prompts, 32)
    theirs, spec = SentenceTransformer(published, device="cpu"), directory.read_spec(published)
    assert (spec.document_prompt, spec.query_prompt, spec.include_prompt) == ("passage: ", "Find: ", False)
    assert cosine(encoder.encode(TEXTS), before) < 0.9999
    assert cosine(encoder.encode(TEXTS, "passage: "), theirs.encode_document(TEXTS)) >= 0.9999
    assert cosine(encoder.encode(TEXTS, "Find: "), theirs.encode_query(TEXTS)) >= 0.9999


def test_a_base_models_own_prompt_of_documents_is_kept(trainable):
    loader, encoder = trainable()
    assert {one.document_prompt for one in loader.collators.values()} == {PROMPTS["document"]}
    assert (
        directory.prompts_of(Data.model_validate({"tasks": [{"name": "t", "path": "x"}]}), encoder.spec)[
            "document"
        ]
        == PROMPTS["document"]
    )


@pytest.mark.parametrize(("side", "name"), [("passage", "document"), ("query", "query")])
def test_a_prompt_that_leaves_no_token_of_a_text_is_refused(trainable, side, name):
    with pytest.raises(InputError, match=rf"train\.{side}_max_length: 32 tokens.*prompt {name}"):
        trainable(**{f"{name}_template": "word " * 40 + f"{{{name}}}"})


def test_a_prompt_that_leaves_nothing_to_pool_is_refused(cased, tmp_path):
    path = prompted(cased, tmp_path / "model", include_prompt=False)
    encoder = directory.load_encoder(path)
    tokens = encoder.tokenize(["text"], prompt="word ")
    with pytest.raises(InputError, match="include_prompt"):
        encoder.encode_tokens(replace(tokens, skipped=tokens.lengths))


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, PROMPTS["document"]),
        ({"prompt_name": "query"}, PROMPTS["query"]),
        ({"prompt": ""}, ""),
        ({"prompt": "own: "}, "own: "),
    ],
)
def test_stored_texts_get_the_prompt_of_documents(cased, tmp_path, options, prompt):
    spec = directory.read_spec(prompted(cased, tmp_path / "model"))
    assert _vector_settings("m", spec, EmbedOptions(**options))["prompt"] == prompt


def test_stored_texts_get_the_default_prompt_where_documents_have_none(cased, tmp_path):
    path = prompted(cased, tmp_path / "model", prompts={"all": "all: "}, default_prompt_name="all")
    assert directory.read_spec(path).stored_prompt == "all: "


def test_an_evaluation_uses_the_models_own_prompts_unless_it_has_others(cased, tmp_path):
    encoder = directory.load_encoder(prompted(cased, tmp_path / "model"))
    own = _with_prompts_of(encoder, EvaluationProtocol())
    assert (own.query_prompt, own.document_prompt) == (PROMPTS["query"], PROMPTS["document"])
    given = _with_prompts_of(encoder, EvaluationProtocol(query_prompt="", document_prompt="d: "))
    assert (given.query_prompt, given.document_prompt) == ("", "d: ")


@pytest.mark.parametrize("include_prompt", [True, False])
def test_requests_get_the_prompts_that_sentence_transformers_chooses(cased, tmp_path, include_prompt):
    options = {"include_prompt": include_prompt, "default_prompt_name": "passage"}
    path = prompted(cased, tmp_path / "model", **options)
    reader, encoder = RequestReader.load(path), directory.load_encoder(path)
    theirs = SentenceTransformer(path, device="cpu")
    for fields, expected in (
        ({}, theirs.encode(TEXTS)),
        ({"input_type": "query"}, theirs.encode_query(TEXTS)),
        ({"input_type": "document"}, theirs.encode_document(TEXTS)),
        ({"prompt_name": "passage"}, theirs.encode(TEXTS, prompt_name="passage")),
    ):
        tokens = reader.read(EmbeddingRequest(input=TEXTS, truncate=True, **fields))
        assert cosine(encoder.encode_tokens(tokens), expected) >= 0.9999


@pytest.mark.parametrize(
    "template", ["passage: ", "{document} passage", "{title}: {document}", "{ {document}"]
)
def test_a_template_of_documents_that_is_no_prefix_is_refused(template):
    with pytest.raises(ValidationError, match=r"must end in {document}"):
        Data.model_validate({"tasks": [{"name": "t", "path": "x"}], "document_template": template})


@pytest.mark.parametrize("name", ["query", "document", "passage", "corpus"])
def test_a_task_does_not_take_the_name_of_a_prompt(name):
    with pytest.raises(ValidationError, match=name):
        Data.model_validate({"tasks": [{"name": name, "path": "x"}]})


def test_a_template_of_documents_is_part_of_the_fingerprint_only_if_set(make_recipe, qwen3, tmp_path):
    plain = make_recipe(qwen3)
    found = set()
    for number, template in enumerate([None, "{document}", "passage: {document}"]):
        data = plain.data.model_copy(update={"document_template": template})
        found.add(corpus.prepare(data, str(tmp_path / str(number)), "c").fingerprint)
    record = files.read_object(str(tmp_path / "0"), "artifact.json")
    assert len(found) == 3
    assert all("document_prompt" not in one for one in record["config"]["identities"].values())


def test_transformers_alone_gives_the_states_that_are_pooled(cased, tmp_path):
    """The exclusion of a prompt, by the definition: the mean of the states behind it."""
    path = prompted(cased, tmp_path / "model", include_prompt=False)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        states = model(**tokenizer(PROMPTS["query"] + TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    skipped = len(tokenizer(PROMPTS["query"])["input_ids"]) - 1
    ours = directory.load_encoder(path).encode(TEXTS[:1], PROMPTS["query"])
    assert cosine(ours, states[skipped:].mean(0)[None].numpy()) >= 0.9999
