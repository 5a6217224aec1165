"""The models of a merge in one form: one name, one shape and one byte range per tensor."""

from dataclasses import dataclass, field

from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace
from boom_ray.model.adapter import LowRank


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
    def all_places(self) -> list[TensorPlace]:
        """Everything that is read of it: its tensors, and the matrices of its adapter."""
        return [*self.places.values(), *(place for low in self.adapter.values() for place in (low.a, low.b))]

    @property
    def element_bytes(self) -> int:
        """Bytes of one element in memory, for the widest tensor of the model."""
        widest = max((place.element_bytes for place in self.places.values()), default=4)
        return max(widest, 4) if self.adapter else widest
