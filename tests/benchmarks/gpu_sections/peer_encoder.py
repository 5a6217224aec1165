"""The encoder of sentence-transformers around a base model, with the fastest attention that it finds."""

import importlib.util

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from tests.benchmarks.gpu_sections.models import LONGEST


def attention(device: str) -> str:
    """`flash_attention_2` if it is installed: with it, sentence-transformers runs without padding."""
    return "flash_attention_2" if device != "cpu" and importlib.util.find_spec("flash_attn") else "sdpa"


def sentence_transformer(base: str, device: str, longest: int = LONGEST) -> SentenceTransformer:
    """Last-token pooling and normalization on a base model in bfloat16."""
    options = {"dtype": "bfloat16", "attn_implementation": attention(device)}
    transformer = modules.Transformer(base, model_kwargs=options, max_seq_length=longest)
    width = transformer.get_embedding_dimension()
    parts = [transformer, modules.Pooling(width, pooling_mode="lasttoken"), modules.Normalize()]
    return SentenceTransformer(modules=parts, device=device)


def is_packed(model: SentenceTransformer) -> bool:
    """Whether it runs texts without padding."""
    return bool(getattr(model[0], "can_flatten_inputs", False))
