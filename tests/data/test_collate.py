"""Collating: distinct texts once, groups filled with true negatives, and the same draw every time."""

import numpy as np
import pyarrow as pa
from datasets import Dataset

from boom_ray.data.answers import Collector
from boom_ray.data.collate import NO_TEXT, Collator
from boom_ray.data.training_row import SCHEMA, normalize


def collator(data, type="retrieval", group_size=4, prompt="P:"):
    full = [normalize(row)[0] for row in data]
    dataset, rows = Dataset(pa.Table.from_pylist(full, SCHEMA)), np.arange(len(data))
    return Collator(
        "t",
        type,
        dataset,
        collector_of(full, type).answers(),
        rows,
        prompt,
        "{instruction}:{query}",
        group_size,
    )


def collector_of(rows, type="retrieval"):
    collector = Collector(type)
    for row in rows:
        collector.add(row)
    return collector


def passages(batch, row):
    return [batch.texts[index] for index in batch.candidates[row] if index != NO_TEXT]


def test_each_distinct_text_occurs_once():
    labels = ["red", "green", "blue"]
    data = [{"query": f"q{i}", "pos": [labels[i % 3]], "neg": [x for x in labels if x != labels[i % 3]]}
            for i in range(9)]  # fmt: skip
    batch = collator(data, "classification", group_size=3)(np.arange(9), seed=0, step=0)
    assert len(batch.texts) == len(set(batch.texts)) == 9 + 3
    for row in range(9):
        assert batch.texts[batch.queries[row]] == f"P:q{row}"
        assert passages(batch, row)[0] == labels[row % 3] and set(passages(batch, row)) == set(labels)


def test_missing_negatives_come_from_other_rows_and_are_never_positives():
    data = [{"query": f"q{i}", "pos": [f"p{i}"]} for i in range(20)]
    batch = collator(data)(np.arange(8), seed=0, step=0)
    for row in range(8):
        group = passages(batch, row)
        assert group[0] == f"p{row}" and len(set(group)) == 4 and f"p{row}" not in group[1:]


def test_a_candidate_stays_empty_without_another_negative():
    data = [{"query": f"q{i}", "pos": ["yes"], "neg": ["no"]} for i in range(4)]
    batch = collator(data, "classification", group_size=4)(np.arange(4), seed=0, step=0)
    assert (batch.candidates[:, 2:] == NO_TEXT).all() and passages(batch, 0) == ["yes", "no"]


def test_all_positives_of_a_row_are_listed():
    data = [{"query": "a", "pos": ["x", "y"], "neg": ["n"]}, {"query": "b", "pos": ["y"], "neg": ["x"]}]
    batch = collator(data, group_size=2)(np.array([0, 1]), seed=0, step=0)
    right = {batch.texts[index] for row, index in batch.positives if row == 0}
    assert right == {"x", "y"} & set(batch.texts)


def test_prompts_go_before_queries_and_before_both_sides_of_sts():
    data = [
        {"query": "a", "pos": ["b"], "neg": ["c"]},
        {"query": "d", "pos": ["e"], "neg": ["f"], "prompt": "Q"},
    ]
    retrieval = collator(data, group_size=2)(np.array([0, 1]), 0, 0)
    symmetric = collator(data, "sts", group_size=2)(np.array([0, 1]), 0, 0)
    assert set(retrieval.texts) == {"P:a", "b", "c", "Q:d", "e", "f"}
    assert set(symmetric.texts) == {"P:a", "P:b", "P:c", "Q:d", "Q:e", "Q:f"} and symmetric.is_query.all()


def test_groups_depend_on_seed_and_step_alone():
    data = [{"query": f"q{i}", "pos": [f"p{i}"], "neg": [f"n{i}-{j}" for j in range(9)]} for i in range(6)]
    one, again, other = (collator(data)(np.arange(6), 5, step) for step in (3, 3, 4))
    assert one.texts == again.texts and np.array_equal(one.candidates, again.candidates)
    assert one.texts != other.texts


def test_teacher_scores_follow_their_texts():
    data = [
        {"query": "a", "pos": ["b"], "neg": ["c", "d"], "pos_scores": [3], "neg_scores": [1, 2]},
        {"query": "e", "pos": ["f"], "neg": ["g"]},
    ]
    batch = collator(data, group_size=3)(np.array([0, 1]), 0, 0)
    given = dict(zip(passages(batch, 0), batch.scores[0].tolist(), strict=True))
    assert given == {"b": 3, "c": 1, "d": 2}
    assert np.isnan(batch.scores[1]).all()
