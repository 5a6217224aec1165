"""Input and output of a merge worker."""

from dataclasses import dataclass, field

from boom_ray.artifacts.record import FileEntry, TensorEntry
from boom_ray.artifacts.tensors import ELEMENT_BYTES, NAMES
from boom_ray.merge.inputs import MergeInput
from boom_ray.merge.layer_groups import Weights
from boom_ray.merge.methods import METHODS
from boom_ray.recipe import Merge

GramMatrix = list[list[float]]  # [M, M] inner products of one tensor of M models, in float64


@dataclass(frozen=True)
class MergeJob:
    """Everything a worker needs besides the name of the tensors it merges.

    Attributes:
        inputs: The M models.
        base: The base model, if task vectors are merged; None if weights are.
        settings: How the models are merged.
        weights: `settings.weights` as numbers.
        target: URI of the directory that the files are written to.
        grams: Gram matrices cached from an earlier merge of the same models in the same space, by tensor.
    """

    inputs: list[MergeInput]
    base: MergeInput | None
    settings: Merge
    weights: Weights
    target: str
    grams: dict[str, GramMatrix] = field(default_factory=dict)

    @property
    def all_inputs(self) -> list[MergeInput]:
        """The models, followed by the base model if there is one."""
        return [*self.inputs, self.base] if self.base else self.inputs

    @property
    def dtype(self) -> str:
        """Safetensors name of the dtype that floating-point tensors are written in."""
        return NAMES[self.settings.dtype]

    def dtype_of(self, name: str) -> str:
        """Safetensors name of the dtype that a tensor is written in; integer tensors keep theirs."""
        place = self.inputs[0].places[name]
        return self.dtype if place.is_floating else place.dtype

    def is_low_rank(self, name: str) -> bool:
        """Whether a tensor is merged from factors: all task vectors are products of adapters, or zero."""
        if self.base is None or METHODS[self.settings.method].coefficients is None:
            return False
        stored = {model.places[name] for model in self.all_inputs}
        return len(stored) == 1 and any(name in model.adapter for model in self.inputs)

    def num_elements(self, name: str) -> int:
        """Number of elements of a tensor."""
        return self.inputs[0].places[name].num_elements

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor as it is written."""
        return self.num_elements(name) * ELEMENT_BYTES[self.dtype_of(name)]

    def declared(self, names: list[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of tensors as they are written."""
        return {name: (self.dtype_of(name), self.inputs[0].places[name].shape) for name in names}


@dataclass(frozen=True)
class WrittenShard:
    """One finished output file.

    Attributes:
        name: File name.
        file: Entry of the file in the record.
        tensors: Entries of its tensors in the record.
        grams: Gram matrix of each of its tensors.
        equal: Names of the tensors that are equal in all models and were copied.
        truncation: For tensors that became part of an adapter: squared Frobenius norms of the merged task
            vector, and of what the rank of the adapter leaves out.
    """

    name: str
    file: FileEntry
    tensors: dict[str, TensorEntry]
    grams: dict[str, GramMatrix]
    equal: set[str]
    truncation: dict[str, tuple[float, float]] = field(default_factory=dict)
