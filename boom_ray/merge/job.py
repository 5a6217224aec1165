"""What a merge worker is given, and what it gives back."""

from dataclasses import dataclass, field

from boom_ray.artifacts.record import FileEntry, TensorEntry
from boom_ray.artifacts.tensors import ELEMENT_BYTES
from boom_ray.merge.methods import Options
from boom_ray.merge.source import Source

Products = list[list[float]]


@dataclass(frozen=True)
class Job:
    """What a worker is given.

    Attributes:
        sources: The models.
        base: The base model, if differences to it are merged.
        method: A name of `METHODS`.
        weights: One per model.
        dtype: Safetensors name of the floating tensors written.
        target: URI of the directory the files are written to.
        memory_bytes: Anonymous memory of a worker, in all.
        products: Gram matrices known from an earlier merge of the same models, by tensor.
    """

    sources: list[Source]
    base: Source | None
    method: str
    weights: list[float]
    options: Options
    dtype: str
    target: str
    memory_bytes: int
    products: dict[str, Products] = field(default_factory=dict)

    @property
    def all_sources(self) -> list[Source]:
        """The models, and the base behind them."""
        return [*self.sources, self.base] if self.base else self.sources

    def dtype_of(self, name: str) -> str:
        """The dtype a tensor is written in: integers stay what they are."""
        place = self.sources[0].places[name]
        return self.dtype if place.is_floating else place.dtype

    def declared(self, names: list[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of tensors as they are written."""
        return {name: (self.dtype_of(name), self.sources[0].places[name].shape) for name in names}

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor as it is written."""
        return self.sources[0].places[name].num_elements * ELEMENT_BYTES[self.dtype_of(name)]


@dataclass(frozen=True)
class Written:
    """What became of one output file.

    Attributes:
        name: Of the file.
        file: Its entry in the record.
        tensors: Those of its tensors.
        products: Their Gram matrices.
        equal: The tensors that are equal in all models, and were copied.
    """

    name: str
    file: FileEntry
    tensors: dict[str, TensorEntry]
    products: dict[str, Products]
    equal: set[str]
