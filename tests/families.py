"""Tiny base models with random weights, one of each family, as their libraries save them."""

import json
import os

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from tests import texts

SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": 2}

#: Class, tokenizer and settings of each family. Positions are few, so that tests reach their end.
FAMILIES: dict[str, tuple[str, str, dict[str, object]]] = {
    "bert": ("BertModel", "bert", {**SMALL, "max_position_embeddings": 64}),
    "bert-mlm": ("BertForMaskedLM", "bert", {**SMALL, "max_position_embeddings": 64}),
    "distilbert": (
        "DistilBertModel",
        "bert",
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    ),
    "mpnet": ("MPNetModel", "roberta", {**SMALL, "max_position_embeddings": 66}),
    "deberta": ("DebertaV2Model", "bert", {**SMALL, "max_position_embeddings": 64}),
    "deberta-v1": ("DebertaModel", "bert", {**SMALL, "max_position_embeddings": 64}),
    "deberta-relative": (
        "DebertaV2Model",
        "bert",
        {**SMALL, "max_position_embeddings": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "roberta": ("RobertaForMaskedLM", "roberta", {**SMALL, "max_position_embeddings": 66}),
    "xlm-roberta": ("XLMRobertaModel", "roberta", {**SMALL, "max_position_embeddings": 66}),
    "albert": ("AlbertModel", "bert", {**SMALL, "embedding_size": 16, "max_position_embeddings": 64}),
    "electra": ("ElectraModel", "bert", {**SMALL, "embedding_size": 16, "max_position_embeddings": 64}),
    "modernbert": (
        "ModernBertModel",
        "bert",
        {**SMALL, "max_position_embeddings": 64, "cls_token_id": 2, "sep_token_id": 3},
    ),
    "t5": (
        "T5EncoderModel",
        "roberta",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "gpt2": ("GPT2LMHeadModel", "gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": (
        "OPTForCausalLM",
        "gpt",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "llama": ("LlamaForCausalLM", "gpt", {**DECODER, "max_position_embeddings": 64}),
    "bloom": ("BloomForCausalLM", "gpt", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}
DECODERS = ("gpt2", "opt", "llama", "bloom")


def build(family: str, path: str) -> str:
    """Save a model of a family with a tokenizer of its kind to a directory."""
    class_name, kind, settings = FAMILIES[family]
    tokenizer = build_tokenizer(kind)
    tokenizer.save_pretrained(path)
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    config: PretrainedConfig = model_class.config_class(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **settings
    )
    model_class(config).save_pretrained(path)
    if family not in DECODERS:
        _write(path, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    return path


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer: `bert` (WordPiece, [CLS] and [SEP]), `roberta` (BPE, <s> and </s>) or `gpt` (neither)."""
    corpus = [" ".join(pair) for pair in texts.functions("email")][:100]
    if kind == "bert":
        pad, unknown, first, last, mask = SPECIAL[kind]
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=[*SPECIAL[kind]], show_progress=False
        )
    else:
        first, pad, last, unknown, mask = SPECIAL["roberta"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[*SPECIAL["roberta"]] if kind == "roberta" else [last],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(corpus, trainer)
    if kind == "gpt":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=last, model_max_length=64)
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[first, "$A", last], pair=[first, "$A", last, "$B", last], special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=last,
        mask_token=mask,
        model_max_length=64,
        eos_token=last if kind == "roberta" else None,
    )


def build_phobert(path: str) -> str:
    """A RoBERTa with PhoBERT's tokenizer, which has no fast form: `vocab.txt` and `bpe.codes`."""
    os.makedirs(path)
    words = sorted({word for pair in texts.functions("email") for word in pair[0].split() if word.isalpha()})
    with open(os.path.join(path, "vocab.txt"), "w", encoding="utf-8") as file:
        file.writelines(f"{word} 1\n" for word in words)
    with open(os.path.join(path, "bpe.codes"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n")
    size = len(words) + 5
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SMALL, vocab_size=size, max_position_embeddings=66)  # type: ignore[arg-type]
    transformers.RobertaForMaskedLM(config).save_pretrained(path)
    _write(path, "tokenizer_config.json", {"tokenizer_class": "PhobertTokenizer"})
    _write(path, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    return path


def _write(directory: str, name: str, content: object) -> None:
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
