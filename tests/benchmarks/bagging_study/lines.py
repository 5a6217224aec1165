"""Results on disk: one JSON line per arm and seed, in a file that grows over days and machines."""

import base64
import zlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel

LINES = Path(__file__).parent.with_name("bagging.jsonl")
STEPS = 10_000  # nDCG is stored in units of 1 / STEPS


class Scores(BaseModel):
    """nDCG@10 of each query of a task, as text: compressed little-endian uint16 in units of 1 / `STEPS`."""

    packed: str

    @classmethod
    def pack(cls, values: np.ndarray) -> "Scores":
        """The scores of n queries, [n] floats in [0, 1], in their order."""
        units = np.round(np.asarray(values) * STEPS).astype("<u2")
        return cls(packed=base64.b85encode(zlib.compress(units.tobytes(), 9)).decode())

    @property
    def values(self) -> np.ndarray:
        """[n] float64, rounded to 1 / `STEPS`."""
        return np.frombuffer(zlib.decompress(base64.b85decode(self.packed)), "<u2") / STEPS


class Variant(BaseModel):
    """An arm's model, at one scale of its task vector.

    Attributes:
        development: Mean nDCG@10 on the development tasks.
        test: Task -> scores of its queries.
    """

    scale: float
    development: float
    test: dict[str, Scores]


class Line(BaseModel):
    """The result of one arm at one seed.

    Attributes:
        corpus: Fingerprint of the corpus.
        learning_rate: The one chosen; None for the base model.
        tuning: Learning rate -> development score at scale 1, of all rates that were tried.
        scales: Scale -> development score at the chosen rate.
        tokens: Tokens of the texts in all training steps of the chosen models.
        plain: The model as it is trained or merged.
        scaled: The model at the best scale; None for the base model.
        seconds: Stage -> wall-clock seconds; models that another arm has trained take none.
        environment: Versions, machine and device.
    """

    arm: str
    seed: int
    corpus: str
    learning_rate: float | None
    tuning: dict[str, float]
    scales: dict[str, float]
    tokens: int
    plain: Variant
    scaled: Variant | None
    seconds: dict[str, float]
    environment: dict[str, str]

    def variant(self, scaled: bool) -> Variant:
        """The scaled model, or the plain one, which is also that of an arm without a scale."""
        return self.scaled if scaled and self.scaled else self.plain


def read(path: Path = LINES) -> dict[tuple[str, int], Line]:
    """(arm, seed) -> line; an incomplete last line is an interrupted write and is left out."""
    complete = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    lines = [Line.model_validate_json(line) for line in complete]
    return {(line.arm, line.seed): line for line in lines}


def append(line: Line, path: Path = LINES) -> None:
    """Add a line, after removing an incomplete one."""
    kept = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("", "", "")
    path.write_text("".join(kept[:2]) + line.model_dump_json() + "\n", encoding="utf-8")
