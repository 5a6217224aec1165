"""A positive is never a negative: over all rows of a task, in batches, in groups, and in core samples."""

import json
import random
from collections import defaultdict

import numpy as np
import pytest

from boom_ray.data import answers, corpus
from boom_ray.data.answers import hash_of
from boom_ray.data.batches import epoch_batches
from boom_ray.data.collate import NO_TEXT, Collator
from boom_ray.recipe import Data, Task
from boom_ray.train.loss import positive_texts
from tests.data.test_collate import collector_of, passages


def stored(tmp_path, rows, type="retrieval", group_size=4, **data):
    """A collator over a corpus that was made from these rows, and the counts of its task."""
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"tasks": [{"name": "t", "path": str(tmp_path / "t.jsonl"), "type": type}], **data}
    made = corpus.prepare(Data.model_validate(values), str(tmp_path / "corpus"), "test")
    task = Task(name="t", path="t", type=type)
    dataset = corpus.load_task(str(tmp_path / "corpus"), "t")
    found = corpus.load_answers(str(tmp_path / "corpus"), task)
    collator = Collator(
        "t", type, dataset, found, np.arange(len(dataset)), "", "{instruction}:{query}", group_size
    )
    return collator, made.config.tasks["t"]


def used_as_negatives(batch):
    """Per row: texts of other rows that are negatives of it, and those of its own group."""
    negative = ~positive_texts(batch).numpy()[:, batch.candidates]
    for row, of_row in enumerate(negative):
        in_batch = of_row.copy()
        in_batch[row] = False
        names = [batch.texts[index] for index in batch.candidates[in_batch]]
        yield row, names, [batch.texts[index] for index in batch.candidates[row][of_row[row]]]


def test_no_right_answer_of_a_repeated_query_is_a_negative(tmp_path):
    rows = [
        {"query": f"q{q}", "pos": [f"a{q}-{a}"], "neg": [f"a{q}-{(a + 1) % 5}", f"a{(q + 1) % 8}-{a}"]}
        for q in range(8)
        for a in range(5)
    ]
    collator, counts = stored(tmp_path, rows)
    assert (counts.rows, counts.shared_queries, counts.dropped_negatives) == (40, 8, 40)
    right = defaultdict(set)
    for row in rows:
        right[row["query"]].update(row["pos"])
    wrong_in_batch = wrong_in_group = num_repeated = 0
    for epoch in range(4):
        batches = epoch_batches({"t": np.arange(40)}, 16, 0, epoch)
        for step, chosen in enumerate(batches.rows):
            batch = collator(chosen, seed=0, step=step)
            num_repeated += 16 - len(set(batch.queries.tolist()))
            for row, in_batch, in_group in used_as_negatives(batch):
                answers_of_row = right[batch.texts[batch.queries[row]]]
                wrong_in_batch += len(answers_of_row & set(in_batch))
                wrong_in_group += len(answers_of_row & set(passages(batch, row)[1:]))
                assert len(set(in_group)) == 3, "the group is filled with wrong answers instead"
    assert num_repeated > 50 and wrong_in_batch == wrong_in_group == 0


def by_definition(rows, type):
    """The answers of every query, in dictionaries of texts."""
    right = defaultdict(set)
    for row in rows:
        key = row.get("prompt"), row["query"]
        texts = {*row["pos"], *row.get("answers", ())} | ({row["query"]} if type == "sts" else set())
        right[key] |= texts
        if type == "sts":
            for text in texts:
                right[key[0], text].add(row["query"])
    return right


@pytest.mark.parametrize("type", ["retrieval", "sts", "classification", "clustering"])
@pytest.mark.parametrize("seed", range(3))
def test_the_sidecar_holds_what_the_rows_of_a_query_state_together(tmp_path, type, seed):
    draw = random.Random(seed)
    rows = [
        {
            "query": f"x{draw.randrange(40)}",
            "pos": [f"x{draw.randrange(60)}" for _ in range(draw.randint(1, 2))],
            "neg": [f"n{number}"],
            "answers": [f"x{draw.randrange(60)}" for _ in range(draw.randint(0, 1))],
            "prompt": draw.choice([None, "P"]),
        }
        for number in range(60)
    ]
    collator, _ = stored(tmp_path, rows, type)
    right = by_definition(rows, type)
    stored_alone = 0
    for row in collator.dataset:
        found = collator.answers.of(row)
        expected = {hash_of(text) for text in right[row["prompt"], row["query"]]}
        assert found.dtype == np.uint64 and found.tolist() == sorted(expected)
        stored_alone += len(expected) == len(answers.stated(row, type))
    assert 0 < len(collator.answers.keys) < 60 and stored_alone > 0


def test_no_query_is_stored_whose_rows_state_all_of_its_answers(tmp_path):
    rows = [{"query": f"q{i // 2}", "pos": [f"p{i // 2}", "p"], "neg": [f"n{i}"]} for i in range(8)]
    collator, counts = stored(tmp_path, rows)
    assert counts.rows == 8 and len(collator.answers.keys) == 0 == counts.shared_queries
    assert collator(np.arange(8), 0, 0).candidates.shape == (8, 4)


def test_further_answers_of_a_row_are_no_negatives_of_it(tmp_path):
    rows = [
        {"query": "a", "pos": ["a1"], "neg": ["a2", "b1"], "answers": ["a2", "a3"]},
        {"query": "b", "pos": ["b1"], "neg": ["a2", "a3"]},
        {"query": "c", "pos": ["a3"]},
    ]
    collator, counts = stored(tmp_path, rows)
    assert counts.dropped_negatives == 1
    (_, in_batch, in_group), *_ = used_as_negatives(collator(np.arange(3), 0, 0))
    assert set(in_group) == {"b1"} and set(in_batch) == {"b1"}


def test_another_instruction_can_make_another_answer_right(tmp_path):
    rows = [
        {"query": "a", "pos": ["yes"], "neg": ["no"], "prompt": "supports"},
        {"query": "a", "pos": ["no"], "neg": ["yes"], "prompt": "refutes"},
        {"query": "a", "pos": ["new"], "neg": ["yes"], "prompt": "task"},
        {"query": "a", "pos": ["old"], "neg": ["new"]},
    ]
    collator, counts = stored(tmp_path, rows, group_size=2, instruction="task")
    batch = collator(np.arange(4), 0, 0)
    groups = [in_group for _, _, in_group in used_as_negatives(batch)]
    assert groups[:3] == [["no"], ["yes"], ["yes"]]
    assert counts.dropped_negatives == 1, "without a prompt, a row has the instruction of its task"
    assert "new" not in passages(batch, 3)


def test_both_texts_of_an_sts_pair_are_right_answers_of_each_other(tmp_path):
    rows = [{"query": "a", "pos": ["b"]}, {"query": "b", "pos": ["c"]}, {"query": "d", "pos": ["a"]}]
    batch = stored(tmp_path, rows, "sts", group_size=2)[0](np.arange(3), 0, 0)
    right = {"a": {"a", "b", "d"}, "b": {"a", "b", "c"}, "d": {"a", "d"}}
    for row, in_batch, in_group in used_as_negatives(batch):
        assert not right[batch.texts[batch.queries[row]]] & {*in_batch, *in_group}


@pytest.mark.parametrize("type", ["classification", "clustering"])
def test_rows_of_classes_have_their_own_negatives_only(tmp_path, type):
    rows = [
        {"query": f"q{i}", "pos": [f"title of q{i}"], "neg": [f"n{i}-{j}" for j in range(1 + i % 6)]}
        for i in range(24)
    ]
    batch = stored(tmp_path, rows, type, group_size=8)[0](np.arange(24), 0, 0)
    for row in range(24):
        assert set(passages(batch, row)) == {f"title of q{row}", *rows[row]["neg"]}
        assert (batch.candidates[row] == NO_TEXT).sum() == 7 - len(rows[row]["neg"])


@pytest.mark.parametrize("type", ["classification", "clustering"])
def test_a_row_of_classes_without_negatives_is_quarantined(tmp_path, type):
    rows = [{"query": "a", "pos": ["x"]}, {"query": "b", "pos": ["x"], "neg": ["x"]},
            {"query": "c", "pos": ["x"], "neg": ["y"]}]  # fmt: skip
    _, counts = stored(tmp_path, rows, type, max_bad_fraction=0.9)
    assert (counts.rows, counts.quarantined) == (1, 2)
    entries = (tmp_path / "corpus" / "quarantine.jsonl").read_text().splitlines()
    assert all("neg" in json.loads(entry)["reason"] for entry in entries)


def test_labels_that_contradict_each_other_are_reported_and_teach_nothing(tmp_path, caplog):
    rows = [{"query": "great", "pos": ["good"], "neg": ["bad"]},
            {"query": "great", "pos": ["bad"], "neg": ["good"]},
            {"query": "poor", "pos": ["bad"], "neg": ["good"]}]  # fmt: skip
    caplog.set_level("WARNING", logger="boom_ray")
    collator, counts = stored(tmp_path, rows, "classification")
    assert counts.dropped_negatives == 2 and "2 rows teach nothing" in caplog.text
    batch = collator(np.arange(3), 0, 0)
    assert [passages(batch, row) for row in range(3)] == [["good"], ["bad"], ["bad", "good"]]


def test_a_core_sample_keeps_the_answers_of_rows_that_are_not_sampled(tmp_path):
    rows = [{"query": f"q{i % 4}", "pos": [f"a{i}"], "neg": [f"n{i}"]} for i in range(12)]
    collator, _ = stored(tmp_path, [*rows, {"query": "alone", "pos": ["p"], "answers": ["p2"]}])
    sample = np.array([0, 4, 7, 12])
    expected = [["a4", "a8"], ["a0", "a8"], ["a11", "a3"], ["p2"]]
    assert answers.further(collator.dataset, collator.answers, sample) == expected


def test_tasks_whose_names_look_like_files_do_not_share_one(tmp_path):
    names = ["t", "t.answers", "t.arrow", "answers"]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"query": "q", "pos": [f"p{i}"]}) + "\n" for i in range(3)))
    data = Data.model_validate({"tasks": [{"name": name, "path": str(path)} for name in names]})
    corpus.prepare(data, str(tmp_path / "corpus"), "test")
    for task in data.tasks:
        assert len(corpus.load_task(str(tmp_path / "corpus"), task.name)) == 3
        assert len(corpus.load_answers(str(tmp_path / "corpus"), task).texts) == 3


def test_the_memory_of_the_sidecar_does_not_depend_on_the_length_of_texts(tmp_path):
    collector = collector_of(
        {"query": f"q{i % 100}", "pos": [f"{i}" * 10_000], "prompt": None, "answers": None}
        for i in range(500)
    )
    answers.write(str(tmp_path / "t.answers"), collector.answers())
    assert (tmp_path / "t.answers").stat().st_size < 500 * 16 + 4096
    mapped = answers.read(str(tmp_path / "t.answers"), "retrieval")
    assert len(mapped.keys) == 100 and len(mapped.texts) == 500
    assert not mapped.texts.flags.owndata and not mapped.texts.flags.writeable
