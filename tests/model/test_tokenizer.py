"""The end token of last-token pooling, for the kinds of tokenizers that decoders have."""

import json

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from boom_ray.errors import InputError
from boom_ray.model import tokenizer as tokenizers
from boom_ray.model.spec import EncoderSpec

LLAMA = ("<s>", "</s>", "<unk>", "<pad>")
GEMMA = (*LLAMA, "<bos>", "<eos>")
QWEN = (*LLAMA, "<|im_end|>", "<|endoftext|>")


def backend(special_tokens: tuple[str, ...], byte_level: bool = True) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(False) if byte_level else pre_tokenizers.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special_tokens),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(["how do I sort a list of words?"] * 20, trainer)
    return made


def template(tokenizer: Tokenizer, single: str, token: str) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def fast(tokenizer: Tokenizer, processor: processors.PostProcessor | None, eos: str | None = "</s>"):
    if processor is not None:
        tokenizer.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<s>")


def slow_kind(name: str, special_tokens: tuple[str, ...], byte_level: bool, **options):
    """A tokenizer of a class of transformers that makes its own post-processor."""
    model = json.loads(backend(special_tokens, byte_level).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return getattr(transformers, name)(vocab=model["vocab"], merges=merges, **options)


def family(name: str) -> PreTrainedTokenizerBase:
    llama, qwen = backend(LLAMA), backend(QWEN)
    offsets = processors.ByteLevel(trim_offsets=False)
    bos = template(llama, "<s> $A", "<s>")
    makers = {
        "BOS": lambda: fast(llama, bos),
        "BOS behind ByteLevel": lambda: fast(llama, processors.Sequence([offsets, bos])),
        "BOS and EOS": lambda: fast(
            llama,
            processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)]
            ),
        ),
        "ends in im_end": lambda: fast(qwen, template(qwen, "$A <|im_end|>", "<|im_end|>"), "<|im_end|>"),
        "ByteLevel": lambda: fast(qwen, offsets, "<|im_end|>"),
        "nothing": lambda: fast(llama, None),
        "Llama": lambda: slow_kind("LlamaTokenizer", LLAMA, False, add_bos_token=True),
        "Gemma": lambda: slow_kind("GemmaTokenizer", GEMMA, False),
        "Qwen2": lambda: slow_kind("Qwen2Tokenizer", QWEN, True),
        "GPT2": lambda: slow_kind("GPT2Tokenizer", QWEN, True),
    }
    return makers[name]()


FAMILIES = {
    "BOS": ("<s>", "</s>"),
    "BOS behind ByteLevel": ("<s>", "</s>"),
    "BOS and EOS": ("<s>", "</s>"),
    "ends in im_end": (None, "<|im_end|>"),
    "ByteLevel": (None, "<|endoftext|>"),
    "nothing": (None, "</s>"),
    "Llama": ("<s>", "</s>"),
    "Gemma": (None, "<eos>"),
    "Qwen2": (None, "<|endoftext|>"),
    "GPT2": (None, "<|endoftext|>"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_ends_in_one_end_token_and_keeps_what_stands_before_it(name, tmp_path):
    tokenizer, (first, last) = family(name), FAMILIES[name]
    plain = tokenizer("sort a list", add_special_tokens=False)["input_ids"]
    before = [] if first is None else [tokenizer.convert_tokens_to_ids(first)]
    expected = [*before, *plain, tokenizer.convert_tokens_to_ids(last)]
    for _ in range(2):  # a second call changes nothing
        tokenizers.prepare(tokenizer, EncoderSpec("lasttoken", 512))
        assert tokenizer("sort a list")["input_ids"] == expected
    long = tokenizer("list " * 50, truncation=True, max_length=8)["input_ids"]
    assert (long[: len(before)], long[-1], len(long)) == (before, expected[-1], 8)
    tokenizers.save(tokenizer, str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded("sort a list")["input_ids"] == expected
    assert loaded("list " * 50, truncation=True, max_length=8)["input_ids"] == long


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(InputError, match=r"base_model\.pooling.*eos_token"):
        tokenizers.end_with_eos(fast(backend(LLAMA), None, eos=None))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_call_of_transformers(name, side):
    tokenizer, texts = family(name), ["", "sort a list", "list " * 50, "ünï ✓ </s>"]
    tokenizer.truncation_side = side
    for limit in (None, 8):
        expected = tokenizer(texts, truncation=limit is not None, max_length=limit)["input_ids"]
        assert tokenizers.encode(tokenizer, texts, limit).lists() == expected
    assert len(tokenizers.encode(tokenizer, [], 8)) == 0
