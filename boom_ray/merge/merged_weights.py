"""The weights of an encoder as base + Σ c_i Δ_i with a coefficient per model and group of layers.

The gradient of a loss with respect to a coefficient is <∂L/∂θ, Δ_i>, summed over the tensors θ of its group.
So a backward pass of ordinary weights is enough, after which the task vectors Δ_i are streamed from their
files, piece by piece: memory does not depend on the number of models.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from boom_ray.errors import InputError
from boom_ray.merge import gram
from boom_ray.merge.check_inputs import CheckedInputs
from boom_ray.merge.gram import Pieces
from boom_ray.merge.layer_groups import default_groups, group_of
from boom_ray.merge.read_ahead import Piece, piece_bytes, read_ahead
from boom_ray.merge.stream import PIECES_AT_A_TIME
from boom_ray.merge.tensor_reader import TensorReader
from boom_ray.model.tensor_names import plain_names

PIECE_ELEMENTS = 1 << 20  # of one tensor in all models at once; a multiple of `gram.BLOCK`


class MergedWeights:
    """Sets the parameters of an encoder to a merge, and differentiates by its coefficients.

    Args:
        inputs: The M models and their base model.
        parameters: Parameters of the encoder, in float32, by plain name; tensors of the models that are not
            among them take no part in an embedding.

    Attributes:
        groups: Names of the groups of layers.
    """

    def __init__(self, inputs: CheckedInputs, parameters: Mapping[str, Tensor]) -> None:
        assert inputs.base is not None, "task vectors need a base model"
        self.num_models = len(inputs.models)
        self._readers = [TensorReader(model) for model in [*inputs.models, inputs.base]]
        places = {name: place for name, place in inputs.models[0].places.items() if place.is_floating}
        plain = dict(zip(inputs.models[0].places, plain_names(inputs.models[0].places), strict=True))
        self._parameters = {name: parameters[plain[name]] for name in places if plain[name] in parameters}
        self.groups = default_groups(places)
        self._tensors = {group: [n for n in places if group_of(n, [group])] for group in self.groups}
        self._sizes = {name: place.num_elements for name, place in places.items()}

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers:
            reader.close()

    def gram(self, group: str) -> Tensor:
        """[M, M] float64 inner products of the task vectors of a group.

        Raises:
            InputError: if they have NaN or Inf.
        """
        products = torch.zeros(self.num_models, self.num_models, dtype=torch.float64)
        for _, pieces in self._pieces(self._tensors[group]):
            gram.accumulate(products, pieces, torch.float32)
        if not products.isfinite().all():
            raise InputError(f"{group}: a model has NaN or Inf there. Leave it out, or train it again")
        return products

    @torch.no_grad()
    def set(self, group: str, coefficients: Sequence[float]) -> None:
        """Set the parameters of a group to the base model plus the combination of task vectors."""
        factors = torch.tensor(coefficients, dtype=torch.float64)
        for piece, pieces in self._pieces(self._trained(group)):
            parameter = self._parameters[piece.name].view(-1)
            merged = gram.combine(pieces, factors, torch.float32, torch.float32)
            parameter[piece.start : piece.start + piece.count] = merged

    @torch.no_grad()
    def gradient(self, group: str) -> Tensor:
        """[M] float64 derivative of the loss by the coefficients of a group, from the parameters' `grad`."""
        products = torch.zeros(self.num_models, dtype=torch.float64)
        with_gradient = [name for name in self._trained(group) if self._parameters[name].grad is not None]
        for piece, pieces in self._pieces(with_gradient):
            gradient = self._parameters[piece.name].grad
            assert gradient is not None
            values = gradient.reshape(-1)[piece.start : piece.start + piece.count]
            for start, block in gram.blocks(_on(values.device, pieces), torch.float32, centred=True):
                products += (block[:-1] @ values[start : start + block.shape[1]]).double().cpu()
        return products

    def _trained(self, group: str) -> list[str]:
        return [name for name in self._tensors[group] if name in self._parameters]

    def _pieces(self, names: list[str]) -> Iterator[tuple[Piece, Pieces]]:
        order = [
            Piece(name, start, min(PIECE_ELEMENTS, self._sizes[name] - start))
            for name in names
            for start in range(0, self._sizes[name], PIECE_ELEMENTS)
        ]
        largest = max((piece_bytes(self._readers, piece.name, piece.count) for piece in order), default=0)
        return read_ahead(order, self._readers, PIECES_AT_A_TIME * largest)


def _on(device: torch.device, pieces: Pieces) -> Pieces:
    if isinstance(pieces, Tensor):
        return pieces.to(device)
    return [piece.to(device) for piece in pieces]
