"""Message catalogs of programs: a message in another language, and the English original."""

import gettext
from collections.abc import Iterator

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

MIN_WORDS = 5


def translation_to_original(inputs: Inputs, language: str, *names: str) -> Iterator[Example]:
    """A translated message of at least `MIN_WORDS` words, and its original."""
    for name in names:
        folder = inputs.debian(name) / "usr/share/locale" / language / "LC_MESSAGES"
        for path in sorted(folder.glob("*.mo")):
            with open(path, "rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            for original, translation in catalog.items():
                if isinstance(original, str) and len(original.split()) >= MIN_WORDS:
                    message, translated = (text.replace("_", "") for text in (original, translation))
                    yield Example(translated, (message.rpartition("\x04")[2],), message, name)
