"""The tokenizer of a published model: what reaches every server is `tokenizer.json`, so it must say
everything.

transformers 4 and 5 read `add_eos_token` differently and other servers not at all. A post-processor inside
`tokenizer.json` is honoured by all, and truncation leaves room for what it appends.
"""

import json
from typing import TYPE_CHECKING

from tokenizers import AddedToken, processors

from boom_ray.errors import BoomError
from boom_ray.model.spec import EncoderSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFERRED_EOS = "<|endoftext|>"


def end_with_eos(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make a tokenizer append its end token to every text, unless it does so already.

    Qwen3's own EOS in its chat models is `<|im_end|>`; its embedding models end with `<|endoftext|>`, which
    is therefore preferred wherever it exists.

    Raises:
        BoomError: if there is no end token.
    """
    ids = tokenizer("a", truncation=False)["input_ids"]
    eos = PREFERRED_EOS if PREFERRED_EOS in tokenizer.get_vocab() else tokenizer.eos_token
    if eos is None:
        raise BoomError(
            f"{tokenizer.name_or_path}: last-token pooling needs an end token; the tokenizer has none"
        )
    eos_id = tokenizer.convert_tokens_to_ids(eos)
    if ids and ids[-1] == eos_id:
        return
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, eos_id)]
    )
    existing = backend.post_processor
    backend.post_processor = processors.Sequence([existing, template]) if existing else template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = AddedToken(eos, special=True)


def save(tokenizer: "PreTrainedTokenizerBase", directory: str) -> None:
    """Write the tokenizer's files, free of the truncation and padding of whoever used it last."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    expected = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]
    files = tokenizer.save_pretrained(directory)
    path = next(file for file in files if file.endswith("tokenizer.json"))
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["post_processor"] == expected


def load(directory: str, spec: EncoderSpec) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local model directory, which ends every text the way the model's pooling expects."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if spec.pooling == "lasttoken":
        end_with_eos(tokenizer)
    return tokenizer
