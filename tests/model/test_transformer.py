"""Base models of many families: loaded, published, and loaded again by sentence-transformers."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BartConfig, BartModel, BertConfig, BertModel, T5ForConditionalGeneration

from boom_ray.artifacts.tensors import read_places
from boom_ray.errors import InputError
from boom_ray.model import directory
from boom_ray.model.transformer import load_transformer
from tests import families

TEXTS = ["a", "words " * 100, "A sentence of some words.", ""]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_published_model_of_any_family_embeds_as_sentence_transformers_does(family, tmp_path):
    base = families.build(family, str(tmp_path / "base"))
    encoder = directory.load_encoder(base)
    published = str(tmp_path / "published")
    directory.save(encoder, published, base, {}, encoder.spec.max_length)

    reference = SentenceTransformer(published, device="cpu")
    assert type(reference[0].auto_model) is type(encoder.transformer)
    expected = reference.encode(TEXTS)
    cosines = (encoder.encode(TEXTS) * expected).sum(1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    again = directory.load_encoder(published).encode(TEXTS)
    np.testing.assert_allclose(again, expected, atol=1e-5)

    ours, theirs = read_places(published), read_places(base)
    (prefix,) = {name[: -len(first)] for first in [min(ours)] for name in theirs if name.endswith(first)}
    assert {name: (place.dtype, place.shape) for name, place in ours.items()} == {
        name: (theirs[prefix + name].dtype, theirs[prefix + name].shape) for name in ours
    }


def test_a_pooler_is_kept_if_the_files_have_it_and_never_invented(tmp_path):
    without = families.build("bert-mlm", str(tmp_path / "without"))
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(without)
    BertModel(config).save_pretrained(str(tmp_path / "with"))
    loaded = load_transformer(without, torch.float32, "auto").state_dict()
    assert not any(name.startswith("pooler") for name in loaded)
    kept = load_transformer(str(tmp_path / "with"), torch.float32, "auto").state_dict()
    assert "pooler.dense.weight" in kept


def test_only_the_encoder_of_a_t5_is_loaded_and_other_encoder_decoders_are_refused(tmp_path):
    encoder = families.build("t5", str(tmp_path / "encoder"))
    expected = load_transformer(encoder, torch.float32, "auto")
    whole = str(tmp_path / "whole")
    model = T5ForConditionalGeneration(expected.config)
    model.encoder.load_state_dict(expected.encoder.state_dict())
    model.save_pretrained(whole)
    loaded = load_transformer(whole, torch.float32, "auto").state_dict()
    assert loaded.keys() == expected.state_dict().keys()
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in loaded.items())

    sizes = {f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in
             (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    bart = str(tmp_path / "bart")
    BartModel(BartConfig(vocab_size=50, d_model=16, **sizes)).save_pretrained(bart)
    with pytest.raises(InputError, match=r"bart is an encoder-decoder.*base_model\.path"):
        load_transformer(bart, torch.float32, "auto")


def test_weights_that_the_files_lack_are_named(tmp_path):
    base = families.build("bert", str(tmp_path / "base"))
    config = BertConfig.from_pretrained(base)
    config.num_hidden_layers = 3
    config.save_pretrained(base)
    with pytest.raises(InputError, match=r"encoder\.layer\.2\..*base_model\.path"):
        load_transformer(base, torch.float32, "auto")
    config.num_hidden_layers, config.intermediate_size = 2, 128
    config.save_pretrained(base)
    with pytest.raises(InputError, match=r"cannot be loaded as a model"):
        directory.load_encoder(base)


@pytest.mark.parametrize("family", ["mpnet", "deberta", "bloom"])
def test_an_attention_that_the_model_lacks_is_refused_by_its_key(family, tmp_path):
    base = families.build(family, str(tmp_path / "base"))
    with pytest.raises(InputError, match=r"train\.execution\.attention: got sdpa.*allowed: auto, eager$"):
        load_transformer(base, torch.float32, "sdpa")
    assert load_transformer(base, torch.float32, "eager").config._attn_implementation == "eager"


def test_auto_is_sdpa_where_the_class_has_it(tmp_path):
    base = families.build("bert", str(tmp_path / "base"))
    assert load_transformer(base, torch.float32, "auto").config._attn_implementation == "sdpa"
