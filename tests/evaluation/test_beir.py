"""BEIR directories: ids, grades and judgements of all kinds; scores equal those of trec_eval."""

import os
import re

import numpy as np
import pytest
import pytrec_eval

from boom_ray.errors import InputError
from boom_ray.evaluation.beir import read_beir
from boom_ray.evaluation.retrieval import RetrievalEvaluator
from tests import texts


def write_task(directory, documents: dict, queries: dict, qrels: str) -> str:
    for name, by_id in (("corpus", documents), ("queries", queries)):
        rows = [{"_id": identifier, "text": text} for identifier, text in by_id.items()]
        texts.write_jsonl(os.path.join(directory, f"{name}.jsonl"), rows)
    os.makedirs(os.path.join(directory, "qrels"), exist_ok=True)
    with open(os.path.join(directory, "qrels", "test.tsv"), "w", encoding="utf-8") as file:
        file.write(qrels)
    return str(directory)


@pytest.mark.parametrize("num_hits", [4, 30])
def test_graded_scores_equal_those_of_trec_eval(num_hits, tmp_path):
    draw = np.random.default_rng(0)
    documents = {f"d{n}": f"document {n}" for n in range(30)}
    queries = {f"q{n}": f"query {n}" for n in range(20)}
    qrels = {
        query: {document: int(draw.integers(0, 4)) for document in draw.choice(list(documents), 12, False)}
        for query in queries
    }
    lines = [f"{q}\t{d}\t{grade}" for q, grades in qrels.items() for d, grade in grades.items()]
    task = write_task(tmp_path, documents, queries, "query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    scores = {query: dict(zip(documents, draw.random(num_hits).tolist(), strict=False)) for query in queries}

    evaluator = RetrievalEvaluator(task, None, 1)
    hits = [
        [{"corpus_id": name, "score": score} for name, score in scores[query].items()]
        for query in evaluator.queries_ids
    ]
    ours = evaluator.compute_metrics(hits)
    measures = {"ndcg_cut.10", "recall.100"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(scores)
    assert len({grade for grades in qrels.values() for grade in grades.values()}) == 4
    for query in queries:
        expected = theirs[query]["ndcg_cut_10"]
        assert evaluator.ndcg_of_queries[query] == pytest.approx(expected, abs=1e-9)
    assert ours["ndcg@k"][10] == pytest.approx(np.mean([q["ndcg_cut_10"] for q in theirs.values()]))
    assert ours["recall@k"][100] == pytest.approx(np.mean([q["recall_100"] for q in theirs.values()]))


def test_integer_ids_are_those_of_the_judgements(tmp_path):
    task = read_beir(write_task(tmp_path, {7: "seven", 8: "eight"}, {1: "one"}, "1\t8\t1\n"))
    assert task["corpus"] == {"7": "seven", "8": "eight"} and task["relevant_docs"] == {"1": {"8": 1}}


@pytest.mark.parametrize(
    "qrels",
    [
        "q\td\t2.0\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq\td\t2\n",
        "topic\tdocument\trelevance\nq\td\t2\n",
        "q\t0\td\t2\n",
        "q\td\t2\r\n\n",
    ],
)
def test_judgements_in_other_writings(qrels, tmp_path):
    assert read_beir(write_task(tmp_path, {"d": "x"}, {"q": "y"}, qrels))["relevant_docs"] == {"q": {"d": 2}}


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path):
    documents = {"a": "the same text", "b": "its answer", "c": "another"}
    queries = {"a": "the same text", "c": "not the text of c"}
    task = write_task(tmp_path, documents, queries, "a\tb\t1\nc\tb\t1\n")
    titled = [{"_id": name, "title": "ArguAna has titles", "text": text} for name, text in documents.items()]
    texts.write_jsonl(os.path.join(task, "corpus.jsonl"), titled)
    evaluator = RetrievalEvaluator(task, None, 1)
    hits = [
        {"corpus_id": "a", "score": 0.9},
        {"corpus_id": "c", "score": 0.8},
        {"corpus_id": "b", "score": 0.7},
    ]
    evaluator.compute_metrics([hits, hits])
    assert evaluator.ndcg_of_queries == pytest.approx({"a": 1 / np.log2(3), "c": 1 / np.log2(4)})


LINES = {
    "corpus.jsonl": {
        "{": "not in BEIR format",
        '{"text": "no id"}': "_id: got None",
        '{"_id": true, "text": "a"}': "_id: got True",
        '{"_id": "d0", "text": null}': "text: got None",
        '{"_id": "d0", "text": ["a"]}': "text: got .'a'",
        '{"_id": "d0", "title": 3, "text": "a"}': "title: got 3",
        "[1]": "not in BEIR format: got .1.; expected an object",
    },
    "qrels/test.tsv": {
        "q0\td0": "expected query-id, corpus-id and an integer",
        "q0\td0\t1\nq0\td1\tyes": "test.tsv:2: .*integer",
        "q0\td0\t0.5": "test.tsv:1: .*integer",
        "q0\td0\t1\nq0\td1\tinf": "test.tsv:2: .*integer",
        "q0\td0\t1\nq0\td0\t2": "test.tsv:2: grade 2; .*has 1",
    },
}


@pytest.mark.parametrize(("name", "line"), [(name, line) for name in LINES for line in LINES[name]])
def test_a_line_that_is_not_in_beir_format_is_named(name, line, tmp_path):
    task = texts.write_beir(str(tmp_path / "t"), list(texts.functions("email"))[:3])
    with open(os.path.join(task, name), "w", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(InputError, match=rf"{re.escape(task)}/.*{LINES[name][line]}"):
        read_beir(task)


@pytest.mark.parametrize(
    ("qrels", "words"),
    [
        ("q\td\t1\nq\td9\t1\n", "name 1 of 2 ids, such as 'd9', that are not in corpus"),
        ("q\td\t1\nq9\td\t1\n", "name 1 of 2 ids, such as 'q9', that are not in queries"),
        ("q\td\t0\n", "no judgement with a positive grade"),
    ],
)
def test_judgements_that_do_not_fit_the_texts_are_refused(qrels, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_beir(write_task(tmp_path, {"d": "x"}, {"q": "y"}, qrels))


def test_judgements_that_are_not_utf_8_are_refused(tmp_path):
    task = write_task(tmp_path, {"d": "x"}, {"q": "y"}, "")
    with open(os.path.join(task, "qrels", "test.tsv"), "wb") as file:
        file.write(b"q\td\xff\t1\n")
    with pytest.raises(InputError, match=r"test\.tsv: not in BEIR format"):
        read_beir(task)


def test_texts_of_queries_are_read_unchanged(tmp_path):
    task = read_beir(write_task(tmp_path, {"d": " x "}, {"q": " y "}, "q\td\t1\n"))
    assert (task["queries"], task["corpus"]) == ({"q": " y "}, {"d": "x"})
