"""Questions and answers: Perl's FAQ (perl-doc) and Debian's (debian-faq)."""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

POD_QUESTION = re.compile(r"^=head2 (.*?)\n\n(.*?)(?=^=head|\Z)", re.MULTILINE | re.DOTALL)
HTML_QUESTION = re.compile(r"<h[234] class=\"title\">(.*?)</h[234]>(.*?)(?=<h[1234] |\Z)", re.DOTALL)


def question_to_answer(inputs: Inputs) -> Iterator[Example]:
    """A question, and its answer's first paragraphs; similar are those of the same chapter."""
    for path in sorted(inputs.debian("perl-doc").glob("usr/share/perl/*/pod/perlfaq[1-9].pod")):
        yield from _questions(path, POD_QUESTION, _pod_text)
    for path in sorted(inputs.debian("debian-faq").glob("usr/share/doc/debian/FAQ/*.en.html")):
        yield from _questions(path, HTML_QUESTION, _html_text)


def _questions(path: Path, pattern: re.Pattern[str], text_of: Callable[[str], str]) -> Iterator[Example]:
    for question, answer in pattern.findall(path.read_text(encoding="utf-8")):
        title = re.sub(r"^[\d.]+\s*", "", text_of(question))
        yield Example(title, (text_of(answer),), title, path.name)


def _pod_text(pod: str) -> str:
    """The text of POD without code (indented lines), commands and markup."""
    lines = [line for line in pod.splitlines() if line and not line.startswith((" ", "\t", "=", "X<"))]
    text = re.sub(r"[A-Z]<+ ?([^<>]*?) ?>+", r"\1", " ".join(lines))
    return re.sub(r"^\((contributed|This)[^)]*\)\s*", "", text)


def _html_text(content: str) -> str:
    content = re.sub(r"<pre.*?</pre>", " ", content, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())
