"""The bagging study: intervals against simulations, the corpus of what every machine has, and resumption."""

import gzip
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import bagging
from tests.benchmarks.bagging_study import bootstrap, contrasts, corpus, lines, picture, table
from tests.benchmarks.bagging_study.arms import Arm, Training
from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs
from tests.benchmarks.bagging_study.sources import debian_index, dictionary, faq, manual, python_code, wordnet
from tests.benchmarks.bagging_study.study import Study
from tests.benchmarks.bagging_study.tasks import StudyTask

STDLIB = Path(sysconfig.get_path("stdlib"))
SIZES = corpus.Sizes(rows=16, development=(4, 6), in_domain=(6, 10), out_of_domain=(6, 10))
NO_INPUTS = Inputs(Path("/nonexistent"))


# ── Statistics ─────────────────────────────────────────────────────────────────────────────────────


def simulated(draw: np.random.Generator, effect: float, of_seed: float, of_task: float) -> list[np.ndarray]:
    """Differences of 8 seeds on 8 tasks with 30 queries, whose expectation over all three is `effect`."""
    seeds = draw.normal(0, of_seed, size=(8, 1))
    return [effect + seeds + draw.normal(0, of_task) + draw.normal(0, 0.1, size=(8, 30)) for _ in range(8)]


@pytest.mark.parametrize(("of_seed", "of_task"), [(0.05, 0.0), (0.0, 0.05), (0.0, 0.0)])
def test_intervals_contain_the_true_difference(of_seed, of_task):
    draw = np.random.default_rng(1)
    found = [bootstrap.interval(simulated(draw, 0.02, of_seed, of_task), 200) for _ in range(200)]
    contained = np.mean([one.low <= 0.02 <= one.high for one in found])
    assert contained > 0.84  # eight seeds or tasks are few: the nominal 95 % are reached with many


def test_an_interval_that_ignores_seeds_would_be_too_short():
    draw = np.random.default_rng(1)
    found = [simulated(draw, 0.02, 0.05, 0.0) for _ in range(100)]
    averaged = [bootstrap.interval([task.mean(0, keepdims=True) for task in one], 200) for one in found]
    assert np.mean([one.low <= 0.02 <= one.high for one in averaged]) < 0.5


def test_the_variance_is_that_of_the_formula():
    draw = np.random.default_rng(2)
    seeds, tasks = draw.normal(size=6), draw.normal(size=5)
    exact = [np.full((6, 40), task) + seeds[:, None] for task in tasks]  # no variance between queries
    expected = seeds.var() / 6 + tasks.var() / 5  # of the mean of as many draws with replacement
    assert bootstrap.resampled(exact, 20_000).var() == pytest.approx(expected, rel=0.05)


def test_queries_are_drawn_once_for_all_seeds():
    queries = np.random.default_rng(3).normal(size=50)
    found = bootstrap.resampled([np.tile(queries, (4, 1))], 20_000)
    assert found.var() == pytest.approx(queries.var() / 50, rel=0.05)


@pytest.mark.parametrize(("effect", "verdict"), [(0.05, "better"), (-0.05, "worse"), (0.0, "undecided")])
def test_a_known_effect_is_found(effect, verdict):
    draw = np.random.default_rng(4)
    found = bootstrap.interval(simulated(draw, effect, 0.01, 0.01))
    assert (found.verdict, found.seeds) == (verdict, 8)
    assert found.mean == pytest.approx(effect, abs=0.01)


# ── Lines, contrasts, table and picture ────────────────────────────────────────────────────────────


def line(arm: str, seed: int, scores: list[float], fingerprint: str = "c") -> lines.Line:
    """A line of an arm with these scores on one task of each domain, 0.01 more when scaled."""
    plain, scaled = (
        lines.Variant(
            scale=scale,
            development=0.5,
            test={
                f"{domain}/task": lines.Scores.pack(np.array(scores) + more)
                for domain in ("in_domain", "out_of_domain")
            },
        )
        for scale, more in ((1.0, 0.0), (1.5, 0.01))
    )
    return lines.Line(
        arm=arm, seed=seed, corpus=fingerprint, learning_rate=3e-5, tuning={}, scales={}, tokens=2_000_000,
        plain=plain, scaled=scaled, seconds={}, environment={},
    )  # fmt: skip


def test_lines_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    first, second = line("a", 0, [0.12345, 1.0]), line("b", 1, [0.0])
    lines.append(first, path)
    path.write_text(path.read_text() + second.model_dump_json()[:40])  # interrupted
    assert lines.read(path) == {("a", 0): first}
    lines.append(second, path)
    assert lines.read(path) == {("a", 0): first, ("b", 1): second}
    stored = lines.read(path)["a", 0].plain.test["in_domain/task"].values
    assert stored == pytest.approx([0.12345, 1.0], abs=0.5 / lines.STEPS + 1e-12)


def test_a_contrast_pairs_queries_of_the_seeds_that_both_arms_have():
    control = contrasts.CONTROL
    done = {(one.arm, one.seed): one for one in (
        line("base", 0, [0.5, 0.7]), line("base", 1, [0.2, 0.2]), line(control, 0, [0.4, 0.5]),
    )}  # fmt: skip
    found = contrasts.difference(done, contrasts.Contrast("base", control, "out_of_domain", scaled=True))
    assert found is not None
    assert (found.mean, found.seeds) == (pytest.approx(0.15), 1)
    assert found.low >= 0.1 - 1e-9 and found.high <= 0.2 + 1e-9
    assert contrasts.difference(done, contrasts.PRIMARY) is None


def test_table_and_picture_show_what_is_measured(tmp_path):
    control = contrasts.CONTROL
    done = {
        (arm, 0): line(arm, 0, scores) for arm, scores in ((control, [0.4, 0.5]), ("{60,60,60}", [0.6, 0.7]))
    }
    rows = [row.split(" | ") for row in table.markdown(done).splitlines() if row.startswith("| {60,60,60}")]
    assert [row[0] for row in rows] == ["| {60,60,60}", "| {60,60,60}, scaled"]
    assert [row[5] for row in rows] == ["0.6500", "0.6600"]
    assert rows[0][6].startswith("+0.2000")
    picture.draw(done, tmp_path / "picture.svg")
    assert "{60,60,60}" in (tmp_path / "picture.svg").read_text()


# ── Corpus ─────────────────────────────────────────────────────────────────────────────────────────


def labelled(inputs: Inputs):
    """Docstrings with two labels each: their package, and a label that all share."""
    for package in ("email", "json", "logging"):
        for example in python_code.in_folder(STDLIB / package):
            yield Example(example.query, (f"package {package}", "standard library"), example.unit, "labels")


TASKS = [
    StudyTask("code", lambda _: python_code.in_folder(STDLIB / "asyncio"), "trained"),
    StudyTask("label", labelled, "trained", labels=True),
    StudyTask("other", lambda _: python_code.in_folder(STDLIB / "http"), "development"),
    StudyTask("unseen", lambda _: python_code.in_folder(STDLIB / "unittest"), "unseen"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> corpus.Corpus:
    return corpus.build(NO_INPUTS, tmp_path_factory.mktemp("study") / "corpus", TASKS, SIZES)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(row) for row in path.read_text().splitlines()]


def test_no_text_is_in_two_parts_of_a_task(built):
    seen: dict[str, set[str]] = {}
    for row in read_lines(built.directory / "train/code.jsonl"):
        seen.setdefault("train", set()).update([row["query"], *row["pos"], *row["neg"]])
    for part in ("development", "test"):
        for file in ("queries", "corpus"):
            rows = read_lines(built.directory / part / "in_domain/code" / f"{file}.jsonl")
            seen.setdefault(part, set()).update(row["text"] for row in rows)
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    assert all(len(texts) >= 10 for texts in seen.values())


def test_each_query_is_judged_with_its_answers(built):
    expected = {example.query: {*example.documents} for example in labelled(NO_INPUTS)}
    folder = built.directory / "test/in_domain/label"
    queries, documents = ({row["_id"]: row["text"] for row in read_lines(folder / f"{name}.jsonl")}
                          for name in ("queries", "corpus"))  # fmt: skip
    judged: dict[str, set[str]] = {}
    for row in (folder / "qrels/test.tsv").read_text().splitlines()[1:]:
        query, document, _ = row.split("\t")
        judged.setdefault(queries[query], set()).add(documents[document])
    assert len(judged) == 6
    assert judged == {query: expected[query] for query in judged}


def test_negatives_are_of_the_task_and_no_answers(built):
    for task in ("code", "label"):
        rows = read_lines(built.directory / f"train/{task}.jsonl")
        known = {text for row in rows for text in row["pos"]}
        assert all(row["neg"] and {*row["neg"]} <= known - {*row["pos"]} for row in rows)


def test_a_corpus_depends_on_its_sources_alone(built, tmp_path):
    again = corpus.build(NO_INPUTS, tmp_path / "again", TASKS, SIZES)
    fewer = corpus.build(NO_INPUTS, tmp_path / "fewer", TASKS[:2], SIZES)
    assert again.content == built.content
    assert fewer.fingerprint != built.fingerprint


# ── Sources, on files laid out like an unpacked package ────────────────────────────────────────────


def write(root: Path, content: str | bytes) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts_of(examples) -> list[tuple[str, tuple[str, ...]]]:
    return [(example.query, example.documents) for example in examples]


def test_wordnet(tmp_path):
    definition = "a tangible and visible entity; an entity that can cast a shadow"
    sentence = "it was full of rackets and other objects"
    synset = "00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000"
    for part in ("noun", "verb", "adj", "adv"):
        text = f'{synset} | {definition}; "{sentence}"  \n' if part == "noun" else ""
        write(tmp_path / f"debian/wordnet-base/usr/share/wordnet/data.{part}", text)
    inputs = Inputs(tmp_path)
    assert texts_of(wordnet.words_to_gloss(inputs)) == [("object, physical object", (definition,))]
    assert texts_of(wordnet.usage_to_gloss(inputs)) == [(f"object: {sentence}", (definition,))]


def test_dictionaries(tmp_path):
    own = "abstract data type\nADT\n\n   <programming> A kind of {data\n   abstraction}.\n\n   (2003-07-03)\n"
    copied = "flame\n\n   To post. [{Jargon File}]\n"
    content = gzip.compress(f"{own}\n{copied}".encode())
    write(tmp_path / "debian/dict-jargon/usr/share/dictd/jargon.dict.dz", content)
    found = texts_of(dictionary.term_to_definition(Inputs(tmp_path), "dict-jargon"))
    assert found == [("abstract data type", ("A kind of data abstraction.",))]


def test_manual_pages():
    roff = (
        '.B printf\nwrites\n.I format ,\n.PP\n.nf\nint printf();\n.fi\nto \\fBstdout\\fR \\- "quoted"\\&.\n'
    )
    assert manual.plain(roff) == "printf writes format , to stdout - quoted."


def test_questions(tmp_path):
    pod = "=head1 NAME\n\nx\n\n=head2 How do I C<sort>?\nX<sort>\n\nUse C<sort>.\n\n    code();\n"
    write(tmp_path / "debian/perl-doc/usr/share/perl/5/pod/perlfaq4.pod", f"{pod}\n=head2 Why?\n\nSo.\n")
    page = '<h2 class="title"><a id="x"></a>9.1. Can I?</h2></div><p>Yes &amp; <b>no</b>.</p>'
    write(tmp_path / "debian/debian-faq/usr/share/doc/debian/FAQ/x.en.html", page)
    assert texts_of(faq.question_to_answer(Inputs(tmp_path))) == [
        ("How do I sort?", ("Use sort.",)),
        ("Why?", ("So.",)),
        ("Can I?", ("Yes & no .",)),
    ]


PACKAGES = """\
Package: a
Source: s (1)
Description: Board game
Description-md5: 1
Tag: game::board, role::program,
 use::gameplaying
Section: games

Package: b
Description: Library
Description-md5: 2
Section: libs
"""
ENGLISH = """\
Package: a
Description-md5: 1
Description-en: Board game
 Long a,
 .
 in two parts.

Package: b
Description-md5: 2
Description-en: Library
 Long b.
"""


def test_debian_index(tmp_path):
    write(tmp_path / "index/Packages", PACKAGES)
    write(tmp_path / "index/Translation-en", ENGLISH)
    write(tmp_path / "index/Translation-de", "Description-md5: 1\nDescription-de: Kurz\n Langer Text.\n")
    vocabulary = (
        "Tag: game::board\nDescription: Board\n On boards.\n\nTag: role::program\nDescription: Program\n"
    )
    write(tmp_path / "debian/debtags/usr/share/debtags/vocabulary", vocabulary)
    inputs, long = Inputs(tmp_path), "Long a, in two parts."
    assert texts_of(debian_index.short_to_long(inputs, libraries=False)) == [("Board game", (long,))]
    assert texts_of(debian_index.short_to_long(inputs, libraries=True)) == [("Library", ("Long b.",))]
    assert texts_of(debian_index.german_to_english(inputs)) == [("Langer Text.", (long,))]
    assert texts_of(debian_index.long_to_tags(inputs)) == [(long, ("game: Board On boards.",))]


def test_an_input_with_another_hash_is_refused(tmp_path, monkeypatch):
    inputs = Inputs(tmp_path, {"index": {"Packages": {"version": "1", "sha256": "0" * 64}}})
    monkeypatch.setattr(inputs, "_read_index", lambda name: b"another release")
    with pytest.raises(SystemExit, match="SHA-256"):
        inputs.index("Packages")
    assert not (tmp_path / "index/Packages").exists()


# ── Runs ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_second_run_trains_and_measures_nothing_again(built, bert, ray_cluster, tmp_path):
    study = Study(built, tmp_path / "work", base=bert, learning_rates=(1e-3,), scales=(1.0, 2.0))
    arm, path = Arm("full", (Training(),)), tmp_path / "lines.jsonl"
    bagging.run(study, [arm], [0], path)
    (found,) = lines.read(path).values()
    assert found.scaled is not None and found.tokens > 0
    assert {*found.plain.test} == {"in_domain/code", "in_domain/label", "out_of_domain/unseen"}
    assert found.scaled.development == max(found.scales.values())
    written = {file: file.stat().st_mtime_ns for file in study.work.rglob("*") if file.is_file()}
    bagging.run(study, [arm], [0], path)  # the line exists
    assert list(lines.read(path).values()) == [found]
    path.unlink()
    bagging.run(study, [arm], [0], path)  # the models and measurements exist
    (again,) = lines.read(path).values()
    assert again.model_copy(update={"seconds": found.seconds}) == found
    models = [file for file in written if "models" in file.parts or "measurements" in file.parts]
    assert models and all(file.stat().st_mtime_ns == written[file] for file in models)


def test_lines_of_another_corpus_are_not_mixed(built, tmp_path):
    path = tmp_path / "lines.jsonl"
    lines.append(line("full", 0, [0.5], "another"), path)
    with pytest.raises(SystemExit, match="another"):
        bagging.run(Study(built, tmp_path), [], [0], path)


def test_other_seeds_take_the_learning_rate_of_the_first(built, tmp_path):
    study, arm = Study(built, tmp_path), Arm("full", (Training(),))
    assert bagging.rates(study, arm, 0, {}) == study.learning_rates
    assert bagging.rates(study, arm, 3, {("full", 0): line("full", 0, [0.5])}) == (3e-5,)
    with pytest.raises(SystemExit, match="full"):
        bagging.rates(study, arm, 3, {})
