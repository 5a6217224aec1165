"""The model card, the README.md of a published model."""

import os

from huggingface_hub import ModelCardData

from boom_ray.artifacts.record import CARD, ModelRecord
from boom_ray.model import directory as directories
from boom_ray.model.spec import EncoderSpec

USAGE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
queries = model.encode(["..."], prompt_name="query")
documents = model.encode(["..."], prompt_name="document")
```"""


def write(directory: str, record: ModelRecord, license_name: str | None, table: str = "") -> None:
    """Write the card of a local model directory that is otherwise complete; see `render`."""
    has_pooling = os.path.isfile(os.path.join(directory, "1_Pooling", "config.json"))
    spec = directories.read_spec(directory) if has_pooling else None
    dimension = directories.dimension_of(directory)
    with open(os.path.join(directory, CARD), "w", encoding="utf-8") as file:
        file.write(render(record, spec, dimension, license_name, table))


def render(
    record: ModelRecord, spec: EncoderSpec | None, dimension: int, license_name: str | None, table: str = ""
) -> str:
    """A model card in Markdown with the hub's front matter.

    Args:
        record: Lineage and configuration.
        spec: Pooling and maximum length; None if the model does not define them.
        dimension: Length of the embeddings.
        license_name: License of the base model, which the weights inherit; None if it states none.
        table: Evaluation results as a Markdown table.
    """
    data = ModelCardData(
        license=license_name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "boom-ray"],
    )
    parents = "\n".join(
        f"- `{parent.name}` {parent.version} (`{parent.digest}`)" for parent in record.parents
    )
    configuration = "\n".join(f"- {key}: `{value}`" for key, value in record.config.facts().items())
    made = f"made by boom-ray {record.code_version}: {dimension} dimensions"
    sections = [f"---\n{data.to_yaml()}\n---", f"# {record.name} {record.version}"]
    if spec is None:
        sections.append(f"A model {made}.")
    else:
        how = f"{spec.pooling} pooling, normalized, up to {spec.max_length} tokens"
        sections += [f"A text embedding model {made}, {how}.", USAGE.format(name=f"path/to/{record.version}")]
    sections += [
        f"## Made from\n\n{parents}",
        f"## Configuration\n\n{configuration}",
    ]
    if table:
        sections.append(f"## Evaluation\n\n{table}")
    if license_name is None:
        sections.append("The base model states no license; find it out before you distribute these weights.")
    return "\n\n".join(sections) + "\n"
