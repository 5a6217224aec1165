"""The weights of an encoder as a combination of models, with a coefficient per model for each tensor.

With a base model they are base + Σ c_i Δ_i, else Σ c_i W_i. The gradient of a loss with respect to c_i is
<∂L/∂θ, Δ_i>, summed over the tensors θ that share c_i. So a backward pass of ordinary weights is enough,
after which the task vectors Δ_i are streamed from their files, piece by piece: memory does not depend on the
number of models.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from boom_ray.errors import InputError
from boom_ray.merge import gram
from boom_ray.merge.check_inputs import CheckedInputs
from boom_ray.merge.gram import Pieces
from boom_ray.merge.layer_groups import groups_of_tensors
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.merge.read_ahead import Piece, piece_bytes, read_ahead
from boom_ray.merge.stream import PIECES_AT_A_TIME
from boom_ray.merge.tensor_reader import TensorReader
from boom_ray.model.tensor_names import plain_names

PIECE_ELEMENTS = 1 << 20  # of one tensor in all models at once; a multiple of `gram.BLOCK`


class MergedWeights:
    """Sets the parameters of an encoder to a merge, and differentiates by its coefficients.

    Args:
        inputs: The M models, and their base model if task vectors are combined.
        parameters: Parameters of the encoder, in float32, by any names with a common prefix; tensors of the
            models that are not among them take no part in an embedding.

    Attributes:
        groups: The group of layers of each tensor of the models.
    """

    def __init__(self, inputs: CheckedInputs, parameters: Mapping[str, Tensor]) -> None:
        self.num_models = len(inputs.models)
        read = [*inputs.models, inputs.base] if inputs.base else inputs.models
        self._readers = [TensorReader(model) for model in read]
        places = {name: place for name, place in inputs.models[0].places.items() if place.is_floating}
        self._sizes = {name: place.num_elements for name, place in places.items()}
        self.groups = groups_of_tensors(places)
        own = dict(zip(plain_names(parameters), parameters.values(), strict=True))
        plain = dict(zip(inputs.models[0].places, plain_names(inputs.models[0].places), strict=True))
        self._parameters = {name: own[plain[name]] for name in places if plain[name] in own}

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers:
            reader.close()

    def grams(self) -> dict[str, GramMatrix]:
        """[M, M] inner products of the models, or of their task vectors, for each tensor.

        Raises:
            InputError: if they have NaN or Inf.
        """
        shape = self.num_models, self.num_models
        found = {name: torch.zeros(shape, dtype=torch.float64) for name in self._sizes}
        for piece, pieces in self._pieces(self._sizes):
            gram.accumulate(found[piece.name], pieces, torch.float64)
        for name, products in found.items():
            if not products.isfinite().all():
                raise InputError(
                    f"tensor {name}: a model has NaN or Inf there. Leave it out, or train it again"
                )
        return {name: products.tolist() for name, products in found.items()}

    @torch.no_grad()
    def set(self, coefficients: Mapping[str, Sequence[float]]) -> None:
        """Set the parameters to a combination.

        Args:
            coefficients: One per model, for each tensor.
        """
        factors = {name: torch.tensor(coefficients[name], dtype=torch.float64) for name in self._parameters}
        for piece, pieces in self._pieces(self._parameters):
            parameter = self._parameters[piece.name].view(-1)
            merged = gram.combine(pieces, factors[piece.name], torch.float32, torch.float32)
            parameter[piece.start : piece.start + piece.count] = merged

    @torch.no_grad()
    def gradients(self) -> dict[str, Tensor]:
        """[M] float64 derivative of the loss by the coefficients of task vectors that are the same for all
        tensors of a group, for each group; from the parameters' `grad`."""
        found = {group: torch.zeros(self.num_models, dtype=torch.float64) for group in self.groups.values()}
        with_gradient = [name for name, parameter in self._parameters.items() if parameter.grad is not None]
        for piece, pieces in self._pieces(with_gradient):
            gradient = self._parameters[piece.name].grad
            assert gradient is not None
            values = gradient.reshape(-1)[piece.start : piece.start + piece.count]
            products = found[self.groups[piece.name]]
            for start, block in gram.blocks(_on(values.device, pieces), torch.float32, centred=True):
                products += (block[:-1] @ values[start : start + block.shape[1]]).double().cpu()
        return found

    def _pieces(self, names: Iterable[str]) -> Iterator[tuple[Piece, Pieces]]:
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
