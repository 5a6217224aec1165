"""The model card: what a person reads first in a published model."""

from huggingface_hub import ModelCardData

from boom_ray.artifact import Record
from boom_ray.model.spec import EncoderSpec

USAGE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
queries = model.encode(["..."], prompt_name="query")
documents = model.encode(["..."], prompt_name="document")
```"""


def render(
    record: Record, spec: EncoderSpec, dimension: int, license_name: str | None, table: str = ""
) -> str:
    """A model card in Markdown with the front matter of the hub.

    Args:
        record: Lineage and configuration.
        dimension: Length of the embeddings.
        license_name: Licence of the base model, which the weights inherit; None if it states none.
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
    configuration = "\n".join(f"- {key}: `{value}`" for key, value in record.config.items())
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {record.name} {record.version}",
        f"A text embedding model made by boom-ray {record.code_version}: {dimension} dimensions, "
        f"{spec.pooling} pooling, normalized, up to {spec.max_length} tokens.",
        USAGE.format(name=f"path/to/{record.version}"),
        f"## Made from\n\n{parents}",
        f"## Configuration\n\n{configuration}",
    ]
    if table:
        sections.append(f"## Evaluation\n\n{table}")
    if license_name is None:
        sections.append("The base model states no license; find it out before you distribute these weights.")
    return "\n\n".join(sections) + "\n"
