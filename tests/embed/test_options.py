"""Options that contradict each other."""

import pytest

from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.errors import InputError


@pytest.mark.parametrize(("options", "words"), [
    ({"prompt": "a", "prompt_name": "query"}, "prompt_name.*prompt"),
    ({"overlap": 8}, "overlap 8.*chunk"),
    ({"chunk": 16, "overlap": 8}, "overlap 8.*chunk 16"),
    ({"columns": ("lang", "embedding", "id")}, "columns: embedding, id"),
])  # fmt: skip
def test_contradictions_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        EmbedOptions(**options)
