"""The models of a merge as the merge sees them: one name, one shape, one range of bytes per tensor."""

from dataclasses import dataclass, field

from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace


@dataclass(frozen=True)
class LowRank:
    """A LoRA difference: `scale * b @ a`, with `a` [rank, in] and `b` [out, rank]."""

    a: TensorPlace
    b: TensorPlace
    scale: float


@dataclass(frozen=True)
class Source:
    """One model.

    Attributes:
        uri: Of its directory, or of its one file.
        places: Where its tensors lie, under the names of the merged model.
        record: Its artifact record, if it has one.
        directory: URI of the directory with its configuration and tokenizer.
        adapter: Differences to add to tensors of `places`, which are then those of the adapter's base.
    """

    uri: str
    places: dict[str, TensorPlace]
    directory: str
    record: ModelRecord | None = None
    adapter: dict[str, LowRank] = field(default_factory=dict)

    def recorded_hash(self, name: str) -> str | None:
        """xxh3-128 that the record has of a tensor."""
        own = self.places[name].name
        if self.record is None or own not in self.record.tensors or name in self.adapter:
            return None
        return self.record.tensors[own].xxh3_128

    @property
    def element_bytes(self) -> int:
        """Bytes of an element as it is read; the widest of the model."""
        widest = max((place.element_bytes for place in self.places.values()), default=4)
        return max(widest, 4) if self.adapter else widest
