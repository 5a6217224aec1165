"""The tasks of the study: their source, and what they are used for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs
from tests.benchmarks.bagging_study.sources import (
    debian_index,
    dialogue,
    dictionary,
    edam,
    faq,
    manual,
    messages,
    python_code,
    wikipedia,
    wordnet,
)

Use = Literal["trained", "development", "unseen"]
WHEELS = ("sympy", "networkx", "django", "dask")
MANUALS = ("coreutils", "git-man", "libssl-doc", "manpages", "manpages-dev", "tcl8.6-doc")


@dataclass(frozen=True)
class StudyTask:
    """A retrieval task.

    Attributes:
        read: Yields its examples from the inputs.
        use: `trained`: rows are trained on, and held-out examples choose settings and measure in-domain
            quality; `development`: chooses settings and is not reported; `unseen`: measures quality out of
            domain.
        labels: Whether documents are labels that many queries share.
    """

    name: str
    read: Callable[[Inputs], Iterator[Example]]
    use: Use
    labels: bool = False


TASKS = [
    StudyTask("docstring-to-code", lambda inputs: python_code.docstring_to_code(inputs, *WHEELS), "trained"),
    StudyTask("code-to-docstring", lambda inputs: python_code.code_to_docstring(inputs, *WHEELS), "trained"),
    StudyTask("package-library", partial(debian_index.short_to_long, libraries=True), "trained"),
    StudyTask("package-application", partial(debian_index.short_to_long, libraries=False), "trained"),
    StudyTask("package-tags", debian_index.long_to_tags, "trained", labels=True),
    StudyTask("package-german", debian_index.german_to_english, "trained"),
    StudyTask("word-gloss", wordnet.words_to_gloss, "trained"),
    StudyTask("word-usage", wordnet.usage_to_gloss, "trained"),
    StudyTask("faq", faq.question_to_answer, "trained"),
    StudyTask("manual", lambda inputs: manual.name_to_description(inputs, *MANUALS), "trained"),
    StudyTask("encyclopedia", wikipedia.heading_to_text, "trained"),
    StudyTask("jargon", partial(dictionary.term_to_definition, package="dict-jargon"), "development"),
    StudyTask("code-sphinx", lambda inputs: python_code.docstring_to_code(inputs, "sphinx"), "development"),
    StudyTask("edam", edam.term_to_definition, "unseen"),
    StudyTask("foldoc", partial(dictionary.term_to_definition, package="dict-foldoc"), "unseen"),
    StudyTask("dialogue", dialogue.statement_to_response, "unseen"),
    StudyTask(
        "messages-german",
        lambda inputs: messages.translation_to_original(inputs, "de", "gnucash-common", "gimp-data"),
        "unseen",
    ),
    StudyTask(
        "messages-french",
        lambda inputs: messages.translation_to_original(inputs, "fr", "gnucash-common", "gimp-data"),
        "unseen",
    ),
    StudyTask(
        "code-unseen",
        lambda inputs: python_code.docstring_to_code(inputs, "xarray", "twisted", "nltk"),
        "unseen",
    ),
]
