"""Weights between a base model and a merged one, and beyond: any scale, from one load of both."""

import torch

from boom_ray.model import inference
from boom_ray.model.adapted import load_adapted
from boom_ray.model.encoder import Encoder
from boom_ray.model.packed_weights import assign
from boom_ray.recipe import BaseModelSource


class ScaledEncoder:
    """An encoder for inference with the weights base + scale * (merged - base), for any scale.

    Both models stay in the memory of the host in float32, next to the encoder. Each scale is computed from
    them, so it does not depend on those before.
    """

    def __init__(self, merged: str, base: str, device: str, source: BaseModelSource | None = None) -> None:
        """Load both models from local directories.

        Args:
            merged: Has the tokenizer, the pooling and the prompts.
            base: A model of the same architecture.
            device: `cuda` or `cpu`; see `inference.precision`.
            source: See `inference.load`.

        Raises:
            InputError: if a directory cannot be loaded.
        """
        self.encoder = inference.load(merged, device, source)
        self.merged, self.base = (
            dict(load_adapted(path, torch.float32, "auto").named_parameters()) for path in (merged, base)
        )

    @torch.no_grad()
    def at(self, scale: float) -> Encoder:
        """The encoder with the weights of a scale; until the next call."""
        for name, merged in self.merged.items():
            if name in self.base:  # a pooler, which no embedding depends on, may be missing
                assign(self.encoder.transformer, name, torch.lerp(self.base[name], merged, scale))
        return self.encoder
