"""BEIR directories: ids, grades and judgements of all kinds; scores equal those of trec_eval."""

import os
import re
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator as MtebRetrievalEvaluator
from sentence_transformers import util

from boom_ray.errors import InputError
from boom_ray.evaluation import local_tasks, mteb_tasks
from boom_ray.evaluation.beir import read_beir
from boom_ray.evaluation.retrieval import RetrievalEvaluator
from boom_ray.model import directory
from tests import texts

METRICS = ("ndcg@10", "mrr@10", "recall@100")


def write_task(directory, documents: dict, queries: dict, qrels: str) -> str:
    for name, by_id in (("corpus", documents), ("queries", queries)):
        rows = [{"_id": identifier, "text": text} for identifier, text in by_id.items()]
        texts.write_jsonl(os.path.join(directory, f"{name}.jsonl"), rows)
    os.makedirs(os.path.join(directory, "qrels"), exist_ok=True)
    with open(os.path.join(directory, "qrels", "test.tsv"), "w", encoding="utf-8") as file:
        file.write(qrels)
    return str(directory)


def by_trec_eval(qrels: dict, run: dict) -> tuple[dict[str, float], dict[str, float]]:
    """nDCG@10 of each query, and the means of all three metrics."""
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "recip_rank"})
    found = evaluator.evaluate(run)
    ndcg = {query: scores["ndcg_cut_10"] for query, scores in found.items()}
    reciprocal = [scores["recip_rank"] for scores in found.values()]
    means = {
        "ndcg@10": np.mean(list(ndcg.values())),
        "mrr@10": np.mean([value if value > 1 / 10.5 else 0 for value in reciprocal]),
        "recall@100": np.mean([scores["recall_100"] for scores in found.values()]),
    }
    return ndcg, means


def means_of(computed: dict) -> dict[str, float]:
    return {name: computed[f"{name.split('@')[0]}@k"][int(name.split("@")[1])] for name in METRICS}


def write_qrels(qrels: dict) -> str:
    return "".join(f"{q}\t{d}\t{grade}\n" for q, grades in qrels.items() for d, grade in grades.items())


def draw_qrels(queries, documents, num_judged: int, seed: int) -> dict[str, dict[str, int]]:
    """Grades from -1 to 3 of some documents for each query, one of them positive."""
    draw = np.random.default_rng(seed)
    judged = {query: draw.choice(list(documents), num_judged, replace=False) for query in queries}
    return {
        query: {name: int(draw.integers(-1, 4)) if rank else 2 for rank, name in enumerate(names)}
        for query, names in judged.items()
    }


@pytest.mark.parametrize(("num_hits", "levels"), [(4, None), (130, None), (130, 3), (130, 1), (130, 50)])
def test_scores_equal_those_of_trec_eval(num_hits, levels, tmp_path):
    """Graded judgements, partial runs, and scores that are equal (`levels` distinct ones), as float32 too."""
    draw = np.random.default_rng(0)
    documents = {f"{'aZé~'[n % 4]}{n}": f"document {n}" for n in range(130)}
    queries = {f"q{n}": f"query {n}" for n in range(20)}
    qrels = draw_qrels(queries, documents, 12, seed=1)
    task = write_task(tmp_path, documents, queries, "query-id\tcorpus-id\tscore\n" + write_qrels(qrels))

    def scores(count: int) -> list[float]:
        if levels is None:
            return draw.random(count).tolist()
        # Differences below the precision of float32 are ties for trec_eval.
        return (draw.integers(0, levels, count) / 7 + draw.random(count) * 1e-10).tolist()

    evaluator = RetrievalEvaluator(task, None)
    names = {query: draw.choice(list(documents), num_hits, replace=False).tolist() for query in queries}
    run = {query: dict(zip(names[query], scores(num_hits), strict=True)) for query in queries}
    hits = [
        [{"corpus_id": evaluator.documents.index(name), "score": score} for name, score in run[query].items()]
        for query in evaluator.queries_ids
    ]
    ours = means_of(evaluator.compute_metrics(hits))
    ndcg, means = by_trec_eval(qrels, run)
    assert evaluator.ndcg_of_queries == pytest.approx(ndcg, abs=1e-9)
    assert ours == pytest.approx(means, abs=1e-9) and 0 < ours["ndcg@10"] < 1


def test_documents_with_equal_texts_rank_as_in_trec_eval(minilm, tmp_path):
    """Ties at the ranks 10 and 100 of a search: which documents are found there depends on ids alone."""
    pairs = list(texts.functions("email"))[:6]
    documents = {f"d{n}": pairs[n % 6][1] for n in range(300)}
    queries = {f"q{n}": text for n, (text, _) in enumerate(pairs)}
    qrels = draw_qrels(queries, documents, 40, seed=2)
    task = write_task(tmp_path, documents, queries, write_qrels(qrels))
    encoder = directory.load_encoder(minilm)
    evaluator = RetrievalEvaluator(task, 32, corpus_chunk_size=70)
    ours = means_of(evaluator.compute_all_metrics(encoder)["cosine"])

    distinct = {*documents.values(), *queries.values()}
    vectors = {text: evaluator.embed_inputs(encoder, [text]) for text in distinct}
    run = {
        query: {name: float(util.cos_sim(vectors[text], vectors[other])) for name, other in documents.items()}
        for query, text in queries.items()
    }
    ndcg, means = by_trec_eval(qrels, run)
    assert all(len(set(scores.values())) == 6 for scores in run.values())
    assert evaluator.ndcg_of_queries == pytest.approx(ndcg, abs=1e-9)
    assert ours == pytest.approx(means, abs=1e-9) and 0 < ours["recall@100"] < 1
    assert evaluator.counts == {"queries": 6, "documents": 300, "judgements": 240}


def test_integer_ids_are_those_of_the_judgements(tmp_path):
    task = read_beir(write_task(tmp_path, {7: "seven", 8: "eight"}, {1: "one"}, "1\t8\t1\n"))
    assert task["corpus"] == {"7": "seven", "8": "eight"} and task["relevant_docs"] == {"1": {"8": 1}}


@pytest.mark.parametrize(
    "qrels",
    [
        "q\td x\t2.0\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq\td x\t2\n",
        "query_id\tdoc_id\trelevance\nq\td x\t2\n",
        "Topic\tDocument\tlabel\nq\td x\t2\n",
        "corpus-id\tquery-id\tscore\nd x\tq\t2\n",
        "q\t0\td x\t2\n",
        "query-id\titer\tdoc-id\trel\nq\tQ0\td x\t2\n",
        "\r\nq\td x\t2\r\n\n",
        "q\td x\t2\nq\td x\t2\nq\tunknown\t0\n",
    ],
)
def test_judgements_in_other_writings(qrels, tmp_path):
    task = read_beir(write_task(tmp_path, {"d x": "x"}, {"q": "y", "other": "z"}, qrels))
    assert task["relevant_docs"] == {"q": {"d x": 2}} and task["queries"] == {"q": "y"}


@pytest.mark.parametrize(
    "qrels",
    ["q d 2\n", "query-id  corpus-id  score\nq   d   2.0\n", "q 0 d 2\n", "query 0 docno rel\nq\t0 d 2\n"],
)
def test_judgements_separated_by_spaces(qrels, tmp_path):
    assert read_beir(write_task(tmp_path, {"d": "x"}, {"q": "y"}, qrels))["relevant_docs"] == {"q": {"d": 2}}


def ndcg_by_mteb(task: str, run: dict[str, dict[str, float]]) -> dict[str, float]:
    """nDCG@10 of each query as mteb computes it for a local task, from scores by ids of the files."""
    (found,) = local_tasks.find(task)
    local: Any = mteb_tasks.local(found)
    local.load_data()
    data = local.dataset["default"]["test"]
    results = {
        query: {f"document {name}": score for name, score in run[query.split(" ", 1)[1]].items()}
        for query in data["queries"]["id"]
    }
    evaluator: Any = MtebRetrievalEvaluator.__new__(MtebRetrievalEvaluator)  # only its scoring is used
    scored = evaluator.evaluate(
        data["relevant_docs"], results, [10], ignore_identical_ids=local.ignore_identical_ids
    )
    return {query.split(" ", 1)[1]: values["ndcg_cut_10"] for query, values in scored.all_scores.items()}


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path):
    """`a` is a document as in ArguAna, `c` has the id of another text, `d` is judged relevant to itself."""
    documents = {"a": "the same text", "b": "its answer", "c": "another", "d": "a duplicate"}
    queries = {"a": "the same  text", "c": "not the text of c", "d": "a duplicate"}
    task = write_task(tmp_path, documents, queries, "a\tb\t1\nc\tb\t1\nd\td\t1\n")
    titled = [{"_id": name, "title": "ArguAna has titles", "text": text} for name, text in documents.items()]
    texts.write_jsonl(os.path.join(task, "corpus.jsonl"), titled)
    evaluator = RetrievalEvaluator(task, None)
    scores = {"a": 0.9, "c": 0.8, "b": 0.7, "d": 0.6}
    hits = [{"corpus_id": evaluator.documents.index(name), "score": score} for name, score in scores.items()]
    evaluator.compute_metrics([hits, hits, hits])
    expected = {"a": 1 / np.log2(3), "c": 1 / np.log2(4), "d": 1 / np.log2(5)}
    assert evaluator.ndcg_of_queries == pytest.approx(expected)
    assert ndcg_by_mteb(task, dict.fromkeys(queries, scores)) == pytest.approx(expected)


LINES = {
    "corpus.jsonl": {
        "{": "not in BEIR format",
        '{"text": "no id"}': "_id: got None",
        '{"_id": true, "text": "a"}': "_id: got True",
        '{"_id": "d0", "text": null}': "text: got None",
        '{"_id": "d0", "text": ["a"]}': "text: got .'a'",
        '{"_id": "d0", "title": 3, "text": "a"}': "title: got 3",
        "[1]": "not in BEIR format: got .1.; expected an object",
        "[" * 10**5: "not in BEIR format: .*recursion",
        '{"_id": "d0", "text": "\\ud800"}': "surrogate",
        '{"_id": "\\udc00", "text": "a"}': "surrogate",
    },
    "qrels/test.tsv": {
        "q0\td0": "expected query-id, corpus-id and an integer",
        "q0\td0\t1\nq0\td1\tyes": "test.tsv:2: .*integer",
        "q0\td0\t0.5": "test.tsv:1: .*integer",
        "q0\td0\t1\nq0\td1\tinf": "test.tsv:2: .*integer",
        "q0\td0\t1e300": "test.tsv:1: .*integer",
        "q0\td0\tyes\nq0\td1\t1": "test.tsv:1: .*integer",
        "query-id\tquery-id\tscore\nq0\td0\t1": "test.tsv:1: .*integer",
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
