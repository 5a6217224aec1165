"""The models of a merge in one form: one name, one shape and one byte range per tensor."""

from dataclasses import dataclass, field

from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace


@dataclass(frozen=True)
class LowRank:
    """A LoRA update of one tensor: `scale * b @ a`, with `a` [rank, in] and `b` [out, rank].

    Attributes:
        transposed: Whether the tensor is stored as [in, out], as in the Conv1D layers of GPT-2.
    """

    a: TensorPlace
    b: TensorPlace
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that is updated."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class MergeInput:
    """One model that is merged, or the base model.

    Attributes:
        uri: URI of its directory, or of its one file.
        places: Byte range of each tensor, under the names of the merged model.
        directory: URI of the directory with its configuration and tokenizer.
        record: Its artifact record, if it has one.
        adapter: LoRA updates of tensors in `places`, which then belong to the adapter's base model.
    """

    uri: str
    places: dict[str, TensorPlace]
    directory: str
    record: ModelRecord | None = None
    adapter: dict[str, LowRank] = field(default_factory=dict)

    def recorded_hash(self, name: str) -> str | None:
        """The xxh3-128 of a tensor in the record; None if no record has the tensor as it is read."""
        own = self.places[name].name
        if self.record is None or own not in self.record.tensors or name in self.adapter:
            return None
        return self.record.tensors[own].xxh3_128

    @property
    def element_bytes(self) -> int:
        """Bytes of one element in memory, for the widest tensor of the model."""
        widest = max((place.element_bytes for place in self.places.values()), default=4)
        return max(widest, 4) if self.adapter else widest
