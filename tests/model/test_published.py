"""Trained, published, loaded by others: equal ids and vectors for every kind of tokenizer and pooling."""

import json
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from boom_ray.errors import InputError
from boom_ray.model import directory, files
from boom_ray.model.encoder import Encoder
from boom_ray.recipe import BaseModelSource
from boom_ray.train.loss import batch_loss
from boom_ray.train.step import TrainingStep, embedder
from tests import texts
from tests.data.test_collate import collator
from tests.model.test_tokenizer import FAMILIES as DECODERS
from tests.model.test_tokenizer import family

LENGTH = 24
TEXTS = [
    "Sort a list",
    "x",
    "ünïcödé ✓ 漢字",
    "a </s> b <|endoftext|> [SEP] c",
    "how do I sort a list of words? " * 20,
    " leading and  double spaces\n",
]
PROMPTS = {"query": "Search: ", "document": "text: "}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
POOLINGS = ("mean", "cls", "lasttoken")
ENCODERS = ("WordPiece", "WordPiece cased", "RoBERTa", "XLM-R", "T5")


def wordpiece(lowercase: bool) -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    return transformers.BertTokenizer(vocab=made.get_vocab(), do_lower_case=lowercase)


def unigram(single: list[str], **special: str) -> PreTrainedTokenizerBase:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=tokens, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(corpus(), trainer)
    used = [(token, made.token_to_id(token)) for token in single if token != "$A"]
    made.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B"], special_tokens=used
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **special
    )


def roberta() -> PreTrainedTokenizerBase:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus(), trainer)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges)


def corpus() -> list[str]:
    return [" ".join(pair) for pair in islice(texts.functions("email"), 60)]


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    makers = {
        "WordPiece": lambda: wordpiece(True),
        "WordPiece cased": lambda: wordpiece(False),
        "RoBERTa": roberta,
        "XLM-R": lambda: unigram(["<s>", "$A", "</s>"], bos_token="<s>"),
        "T5": lambda: unigram(["$A", "</s>"]),
    }
    return makers[name]() if name in makers else family(name)


def build(name: str, path: str) -> str:
    """A base model as a hub would hold it, without files of sentence-transformers."""
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(path)
    pad = tokenizer.pad_token_id
    kind, options = {
        "WordPiece": ("BertModel", {}), "WordPiece cased": ("BertModel", {}),
        "RoBERTa": ("RobertaModel", {}), "XLM-R": ("RobertaModel", {}), "T5": ("BertModel", {}),
        "GPT2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}),
    }.get(name, ("LlamaForCausalLM", {}))  # fmt: skip
    model_class = getattr(transformers, kind)
    settings: dict[str, Any] = options or {**SMALL, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = model_class.config_class(
        vocab_size=len(tokenizer), pad_token_id=pad, bos_token_id=None, eos_token_id=None, **settings
    )
    model_class(config).save_pretrained(path)
    return path


def train(encoder: Encoder) -> None:
    """Two real steps: rows collated, tokenized, embedded in chunks, and the loss of the batch."""
    rows = [{"query": query, "pos": [code]} for query, code in islice(texts.functions("email"), 6)]
    collate = collator(rows, group_size=3, prompt=PROMPTS["query"])
    optimizer = torch.optim.AdamW(encoder.train().parameters(), lr=0.01)
    step = TrainingStep(lambda tensor: None, lambda value, is_last: value.backward())
    for number in range(2):
        batch = collate(np.arange(len(rows)), 1, number)
        tokens = encoder.tokenize(batch.texts)
        chunks = encoder.layout.chunks(tokens.lengths, 64)
        step(
            embedder(encoder, encoder.collate, tokens),
            np.arange(len(tokens)),
            chunks,
            1,
            len(tokens),
            [partial(batch_loss, batch=batch, temperature=0.05)],
        )
        optimizer.step()
        optimizer.zero_grad()
    encoder.eval()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def transformers_vectors(path: str, pooling: str) -> tuple[list[list[int]], np.ndarray]:
    """Ids and vectors of a batch by transformers alone, pooled by the definition."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        states = model(**encoded).last_hidden_state.numpy()
    ids, vectors = [], []
    for row, state, mask in zip(
        encoded["input_ids"], states, encoded["attention_mask"].bool().numpy(), strict=True
    ):
        ids.append(row.numpy()[mask].tolist())
        own = state[mask]
        vectors.append({"mean": own.mean(0), "cls": own[0], "lasttoken": own[-1]}[pooling])
    return ids, np.array(vectors)


NAMES = [*ENCODERS, *DECODERS]
#: Every tokenizer with the pooling of its kind is fast; the other products are slow.
NATURAL = dict.fromkeys(DECODERS, "lasttoken") | dict.fromkeys(ENCODERS, "mean") | {"RoBERTa": "cls"}


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        pytest.param(name, pooling, marks=[] if NATURAL[name] == pooling else [pytest.mark.slow])
        for name, pooling in product(NAMES, POOLINGS)
    ],
)
def test_a_trained_model_has_equal_ids_and_vectors_everywhere(name, pooling, tmp_path):
    base, published = build(name, str(tmp_path / "base")), str(tmp_path / "published")
    source = BaseModelSource(path=base, pooling=pooling)
    encoder = directory.load_encoder(base, source)
    before = encoder.encode(TEXTS)
    train(encoder)
    directory.save(encoder, published, base, PROMPTS, LENGTH)
    ours = directory.load_encoder(published)
    expected_ids, expected = ours.tokenize(TEXTS).lists(), ours.encode(TEXTS)
    assert cosine(before, expected) < 0.999
    if pooling != "lasttoken":
        plain = AutoTokenizer.from_pretrained(base)
        assert [
            plain(text, truncation=True, max_length=LENGTH)["input_ids"] for text in TEXTS
        ] == expected_ids

    peer = SentenceTransformer(published, device="cpu", local_files_only=True)
    peer_ids = [peer.preprocess([text])["input_ids"][0].tolist() for text in TEXTS]
    assert peer_ids == expected_ids
    assert cosine(peer.encode(TEXTS, batch_size=len(TEXTS)), expected) >= 0.9999
    assert cosine(peer.encode_query(TEXTS), ours.encode(TEXTS, PROMPTS["query"])) >= 0.9999
    assert cosine(peer.encode_document(TEXTS), ours.encode(TEXTS, PROMPTS["document"])) >= 0.9999

    plain_ids, plain_vectors = transformers_vectors(published, pooling)
    assert plain_ids == expected_ids
    assert cosine(plain_vectors, expected) >= 0.9999


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_a_decoder_without_a_padding_token_gets_one(name, tmp_path):
    base, published = build(name, str(tmp_path / "base")), str(tmp_path / "published")
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    encoder = directory.load_encoder(base, BaseModelSource(path=base, pooling="mean"))
    directory.save(encoder, published, base, {}, encoder.spec.max_length)
    tokenizer = AutoTokenizer.from_pretrained(published)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert files.read_config(published)["pad_token_id"] == tokenizer.pad_token_id
    assert cosine(SentenceTransformer(published, device="cpu").encode(TEXTS), encoder.encode(TEXTS)) >= 0.9999


def test_a_tokenizer_without_any_special_token_is_refused_when_published(tmp_path):
    base = build("nothing", str(tmp_path / "base"))
    settings = files.read_object(base, "tokenizer_config.json")
    special = ("eos_token", "bos_token", "unk_token", "pad_token")
    files.write_json(base, "tokenizer_config.json", settings | dict.fromkeys(special))
    encoder = directory.load_encoder(base, BaseModelSource(path=base, pooling="mean"))
    with pytest.raises(InputError, match="pad_token"):
        directory.save(encoder, str(tmp_path / "published"), base, {}, LENGTH)


CHAT = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize("name", ["BOS", "Llama", "Qwen2", "GPT2"])
def test_a_plain_decoder_is_completed_so_that_others_pool_as_we_do(name, tmp_path):
    """Without the files, sentence-transformers renders the chat template and appends no end token."""
    path = build(name, str(tmp_path / "merged"))
    Path(path, "chat_template.jinja").write_text(CHAT)
    expected = directory.load_encoder(path).encode(TEXTS)
    directory.complete(path)
    assert cosine(SentenceTransformer(path, device="cpu").encode(TEXTS), expected) >= 0.9999
    assert cosine(directory.load_encoder(path).encode(TEXTS), expected) >= 0.9999
    assert files.read_config(path)["architectures"][0].endswith(("ForCausalLM", "LMHeadModel"))


def test_what_is_not_known_to_be_an_embedding_model_stays_as_it_is(tmp_path):
    path = build("WordPiece", str(tmp_path / "plain"))
    before = {file.name: file.read_bytes() for file in Path(path).iterdir()}
    directory.complete(path)
    assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == before
