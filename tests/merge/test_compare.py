"""Models that differ in form only are merged; models that number tokens in another way are refused."""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, BertTokenizer, Qwen3ForCausalLM

from boom_ray import artifacts
from boom_ray.artifacts import ModelRecord, Parent
from boom_ray.artifacts.contents import MergeConfig, ModelConfig
from boom_ray.errors import InputError
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.compare_tokenizers import tokenizer_differences
from boom_ray.model import directory
from boom_ray.recipe import Merge
from tests.merge.oracle import streamed

LINEAR = Merge(method="linear", space="weights", dtype="float32")


def edited(source: str, target: str, **changes: Callable[[Any], Any]) -> str:
    """A copy without a record, with JSON files changed; `1_Pooling/config.json` is written 1_Pooling."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("artifact.json"))
    for name, change in changes.items():
        path = os.path.join(target, name, "config.json") if name == "1_Pooling" else f"{target}/{name}.json"
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(change(content), file)
    return target


def tensors_changed(model: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    path = os.path.join(model, "model.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return model


def shuffled(vocabulary: dict[str, int]) -> dict[str, int]:
    """The same tokens and the same ids, in another pairing of two of them."""
    one, other = "the", "and"
    return vocabulary | {one: vocabulary[other], other: vocabulary[one]}


def refused(models: list[str], base: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        check_inputs(models, base)
    return str(caught.value)


def test_models_of_two_vocabularies_are_refused(bert, tmp_path):
    def swap(state: Any) -> Any:
        state["model"]["vocab"] = shuffled(state["model"]["vocab"])
        return state

    other = edited(bert, str(tmp_path / "other"), tokenizer=swap)
    message = refused([bert, other])
    assert "token 'the' is" in message and "token 'and' is" in message
    swapped = AutoTokenizer.from_pretrained(other)("the")["input_ids"]
    assert swapped == AutoTokenizer.from_pretrained(bert)("and")["input_ids"]
    assert "token 'the' is" in refused([bert, bert], other), "the base numbers its rows in another way"


def test_tokenizers_without_a_tokenizer_json_are_compared_by_their_vocabulary(bert, tmp_path):
    tokens = sorted(AutoTokenizer.from_pretrained(bert).get_vocab().items(), key=lambda item: item[1])

    def plain(name: str, order: list[str]) -> str:
        target = str(tmp_path / name)
        shutil.copytree(bert, target, ignore=shutil.ignore_patterns("tokenizer*", "special*", "vocab*"))
        with open(f"{target}/vocab.txt", "w", encoding="utf-8") as file:
            file.write("\n".join(order) + "\n")
        with open(f"{target}/tokenizer_config.json", "w", encoding="utf-8") as file:
            json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": True}, file)
        return target

    order = [token for token, _ in tokens]
    same = plain("same", order)
    assert isinstance(AutoTokenizer.from_pretrained(same), BertTokenizer)
    assert tokenizer_differences(same, bert) == []
    one, other = order.index("the"), order.index("and")
    order[one], order[other] = order[other], order[one]
    assert "token 'the' is" in refused([bert, plain("swapped", order)])


@pytest.mark.parametrize(
    ("file", "change", "part"),
    [
        ("tokenizer", lambda state: state | {"normalizer": None}, "normalizer: "),
        ("tokenizer", lambda state: state | {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer: "),
        ("tokenizer_config", lambda config: config | {"do_lower_case": False}, "normalizer: "),
        (
            "config",
            lambda config: config | {"hidden_act": "relu"},
            "hidden_act is relu, not gelu",
        ),
        ("config", lambda config: config | {"layer_norm_eps": 1e-3}, "config.json: layer_norm_eps is 0.001"),
        ("1_Pooling", lambda pooling: {"pooling_mode": "cls"}, "1_Pooling/config.json: cls, not mean"),
        (
            "1_Pooling",
            lambda pooling: pooling | {"include_prompt": False},
            "mean without the prompt,",
        ),
        ("modules", lambda modules: modules[:2], "modules.json: Transformer > Pooling, not"),
        ("config", lambda config: [config], "config.json: got a list"),
    ],
)
def test_differences_that_change_embeddings_are_named(file, change, part, bert, tmp_path):
    other = edited(bert, str(tmp_path / "other"), **{file: change})
    assert part in refused([bert, other])


def padded(state: Any) -> Any:
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    truncation = {"max_length": 7, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    return state | {"padding": padding, "truncation": truncation, "version": "1.0"}


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": padded},
        {"1_Pooling": lambda pooling: {"embedding_dimension": 32, "pooling_mode": "mean"}},
        {"config": lambda config: config | {"torch_dtype": "float16", "transformers_version": "4.0"}},
        {"config": lambda config: {k: v for k, v in config.items() if k not in ("hidden_act", "use_cache")}},
        {"config": lambda config: config | {"hidden_dropout_prob": 0.3, "architectures": ["A"]}},
        {"tokenizer_config": lambda config: config | {"model_max_length": 77, "tokenizer_file": None}},
    ],
)
def test_files_that_differ_in_form_only_are_the_same(changes, bert, tmp_path):
    other = edited(bert, str(tmp_path / "other"), **changes)
    assert len(check_inputs([bert, other], bert).models) == 2


def test_merges_as_text_and_as_pairs_are_the_same(qwen3, tmp_path):
    def as_text(state: Any) -> Any:
        assert isinstance(state["model"]["merges"][0], list)
        state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
        return state

    def reordered(state: Any) -> Any:
        merges = state["model"]["merges"]
        state["model"]["merges"] = [merges[1], merges[0], *merges[2:]]
        return state

    check_inputs([qwen3, edited(qwen3, str(tmp_path / "text"), tokenizer=as_text)], None)
    message = refused([qwen3, edited(qwen3, str(tmp_path / "order"), tokenizer=reordered)])
    assert "merges: number 0 is" in message


def test_a_tokenizer_that_adds_other_special_tokens_is_refused(qwen3, published_qwen3):
    assert "special tokens: 'a b' is" in refused([qwen3, published_qwen3])


def test_a_tokenizer_saved_again_by_transformers_is_the_same(bert, qwen3, tmp_path):
    for model in (bert, qwen3):
        again = edited(model, str(tmp_path / os.path.basename(model)))
        AutoTokenizer.from_pretrained(model).save_pretrained(again)
        backend = Tokenizer.from_file(f"{again}/tokenizer.json")
        backend.save(f"{again}/tokenizer.json", pretty=False)
        check_inputs([model, again], None)


def add_position_ids(tensors: dict[str, torch.Tensor]) -> None:
    tensors["embeddings.position_ids"] = torch.arange(512)[None]


def drop_pooler(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("pooler.")]:
        del tensors[name]


@pytest.mark.parametrize("change", [add_position_ids, drop_pooler])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "other", "base"])
def test_tensors_that_take_no_part_in_embeddings_are_left_out_unless_all_have_them(
    change, place, bert, tmp_path
):
    paths = [edited(bert, str(tmp_path / str(number))) for number in range(3)]
    for number, path in enumerate(paths):
        tensors_changed(
            path, lambda tensors, n=number: tensors.update({k: t + n for k, t in tensors.items()})
        )
    tensors_changed(paths[place], change)
    settings = Merge(method="linear", dtype="float32")
    merged = streamed(paths[:2], paths[2], settings, str(tmp_path))
    names = set(load_file(f"{bert}/model.safetensors"))
    expected = {name for name in names if not name.startswith("pooler.")} if change is drop_pooler else names
    assert merged.keys() == expected
    shutil.copyfile(tmp_path / "model.safetensors", f"{paths[0]}/model.safetensors")
    assert SentenceTransformer(paths[0]).encode(["a text"]).shape == (1, 32)


def test_an_encoder_with_a_head_merges_with_one_without(bert, tmp_path):
    head = edited(bert, str(tmp_path / "head"))
    torch.manual_seed(1)
    model = BertForMaskedLM.from_pretrained(bert)
    model.save_pretrained(head)
    assert any(name.startswith("cls.") for name in load_file(f"{head}/model.safetensors"))
    merged = streamed([bert, head], head, Merge(method="linear", dtype="float32"), str(tmp_path))
    own = BertModel.from_pretrained(bert, add_pooling_layer=False).state_dict()
    assert merged.keys() == own.keys() and all(torch.equal(merged[name], own[name]) for name in own)


def test_the_files_come_from_the_first_model_that_states_its_pooling(bert, tmp_path):
    plain = str(tmp_path / "plain")
    BertModel.from_pretrained(bert).save_pretrained(plain)
    AutoTokenizer.from_pretrained(bert).save_pretrained(plain)
    assert check_inputs([plain, bert], None).directory == bert
    assert check_inputs([plain, plain], None).directory == plain


def test_an_untied_head_in_one_model_is_refused(qwen3, tmp_path):
    untied = edited(qwen3, str(tmp_path / "untied"), config=lambda c: c | {"tie_word_embeddings": False})
    model = Qwen3ForCausalLM.from_pretrained(qwen3)
    tensors_changed(untied, lambda t: t.update({"lm_head.weight": model.lm_head.weight.detach() + 1}))
    assert "lm_head.weight: not in" in refused([qwen3, untied])


def claim(source: str, target: str, parents: list[str], merge: bool) -> str:
    """A copy with a record that names parents; `merge` makes it the record of a merged model."""
    edited(source, target)
    settings = {"method": "linear", "space": "weights", "weights": [0.5, 0.5], "dtype": "float32"}
    settings |= {"scale": 1.0, "iterations": 10, "density": 0.5, "seed": 0}
    record = ModelRecord(
        name="m",
        version="m",
        fingerprint="f",
        config=ModelConfig(merge=MergeConfig.model_validate(settings) if merge else None),
        parents=[Parent(name=name, version="base", digest=name * 8) for name in parents],
    )
    with open(os.path.join(target, artifacts.record.RECORD), "w", encoding="utf-8") as file:
        file.write(record.model_dump_json())
    return target


def test_merges_of_models_without_records_can_be_merged_again(bert, tmp_path):
    merged = [claim(bert, str(tmp_path / name), [f"{name}1", f"{name}2"], merge=True) for name in "pq"]
    check_inputs(merged, bert)
    trained = [claim(bert, str(tmp_path / f"t{name}"), [name], merge=False) for name in "pq"]
    assert "was trained from q (digest qqqqqqqq), but" in refused(trained)
    check_inputs([*merged, trained[0]], None)


def test_everything_broken_is_listed_at_once(bert, tmp_path):
    latin = edited(bert, str(tmp_path / "latin"))
    with open(f"{latin}/config.json", "wb") as file:
        file.write(b'{"model_type": "b\xe9rt"}')
    header = edited(bert, str(tmp_path / "header"))
    with open(f"{header}/model.safetensors", "r+b") as file:
        file.seek(8)
        file.write(b'{"w": [')
    floats = edited(bert, str(tmp_path / "floats"))
    text = b'{"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}'
    with open(f"{floats}/model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + bytes(4))
    broken = edited(bert, str(tmp_path / "broken"))
    with open(f"{broken}/tokenizer.json", "wb") as file:
        file.write(b'{"version": "1.0"}')
    message = refused([bert, latin, header, floats, broken], str(tmp_path / "absent"))
    for part in (
        "latin/config.json: not valid JSON",
        "header/model.safetensors: its header is damaged",
        "tensor w has a shape or an offset that is not a whole number",
        "broken: tokenizer.json cannot be read",
        "absent: ",
    ):
        assert part in message, message


def test_the_merged_directory_is_the_one_of_the_first_model(bert, tmp_path):
    other = edited(bert, str(tmp_path / "other"), tokenizer=padded)
    checked = check_inputs([bert, other], None)
    target = str(tmp_path / "out")
    directory.copy_all_but_weights(checked.directory, target, "float32")
    streamed([bert, other], None, LINEAR, target)
    vectors = [SentenceTransformer(path).encode(["a text", "another one"]) for path in (bert, target)]
    assert (vectors[0] == vectors[1]).all()
