"""Encoders at several scales, computed in memory, equal models whose weights were combined in files."""

import os

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from boom_ray.model import directory
from boom_ray.model.scaled import ScaledEncoder
from tests import texts
from tests.merge.test_actors import variant


@pytest.mark.parametrize(
    ("base", "published"), [("published_minilm", "published_minilm"), ("qwen3", "published_qwen3")]
)
def test_a_scale_gives_the_vectors_of_weights_combined_by_hand(base, published, request, tmp_path):
    base, published = request.getfixturevalue(base), request.getfixturevalue(published)
    merged = variant(published, str(tmp_path / "merged"), seed=1)
    documents = [text for pair in texts.functions("email") for text in pair][:8]
    origin, moved = (load_file(f"{path}/model.safetensors") for path in (published, merged))
    scaled = ScaledEncoder(merged, base, "cpu")
    found = {scale: scaled.at(scale).encode(documents) for scale in (1.5, 0.0, 1.0, 1.5)}
    for scale, vectors in found.items():
        by_hand = {name: origin[name] + scale * (moved[name] - origin[name]) for name in moved}
        target = str(tmp_path / f"{scale}")
        directory.copy_all_but_weights(merged, target, "float32")
        save_file(by_hand, os.path.join(target, "model.safetensors"), {"format": "pt"})
        expected = directory.load_encoder(target).encode(documents)
        assert np.abs(vectors - expected).max() < 1e-5, scale
    assert np.abs(found[1.5] - found[0.0]).max() > 1e-2
