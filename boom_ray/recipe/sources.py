"""What a run starts from: the base model and the corpus."""

from typing import Literal

from pydantic import Field, model_validator

from boom_ray.recipe.fields import DocumentTemplate, Name, QueryTemplate, Section, Text, Uri

TaskType = Literal["retrieval", "sts", "classification", "clustering"]
#: Types whose rows have their own negatives only, because other rows share their label.
OWN_NEGATIVES: frozenset[TaskType] = frozenset({"classification", "clustering"})
Pooling = Literal["mean", "cls", "lasttoken"]
#: A published model has a prompt for each task, and these.
RESERVED_PROMPTS = {"query", "document", "passage", "corpus"}


class BaseModelSource(Section):
    """The model every bag starts from.

    Attributes:
        path: A local directory, `s3://…`, or `hf://owner/name[@revision]`.
        pooling: How token states become one vector; by default as the model's own files state.
        max_length: Longest input of the published model in tokens; by default its own limit.
    """

    path: Uri
    pooling: Pooling | None = None
    max_length: int | None = Field(None, ge=8)


class Task(Section):
    """One dataset of contrastive rows; its type decides the negatives and the prompt sides.

    Attributes:
        path: A jsonl or parquet file, a directory of them, or a pattern such as `hf://datasets/o/n/data/x-*`.
        limit: Rows after which reading ends.
        expected_rows: Estimated rows, for plans made without reading the data.
    """

    name: Name
    path: Uri
    type: TaskType = "retrieval"
    instruction: Text | None = None
    limit: int | None = Field(None, ge=1)
    expected_rows: int | None = Field(None, ge=1)


class Data(Section):
    """The corpus.

    Attributes:
        instruction: The instruction of tasks that have none of their own.
        query_template: Query text, from `{instruction}` and `{query}`.
        document_template: Document text, from `{document}`, such as `passage: {document}`; by default the
            base model's prompt of documents, which most models lack.
        max_bad_fraction: The run fails when more of a task's rows than this are quarantined.
    """

    tasks: list[Task] = Field(min_length=1)
    instruction: Text = "Given a query, retrieve relevant passages that answer the query"
    query_template: QueryTemplate = "Instruct: {instruction}\nQuery:{query}"
    document_template: DocumentTemplate | None = None
    max_bad_fraction: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _distinct_names(self) -> "Data":
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"task names must differ; got {', '.join(repeated)} more than once")
        reserved = sorted(RESERVED_PROMPTS & {*names})
        if reserved:
            raise ValueError(
                f"task names must not be {', '.join(sorted(RESERVED_PROMPTS))}: these name the prompts of "
                f"queries and documents; got {', '.join(reserved)}"
            )
        return self

    def prompt(self, task: Task | None = None) -> str:
        """The text before every query of a task, or of a task without an instruction of its own."""
        instruction = (task and task.instruction) or self.instruction
        return self.query_template.format(instruction=instruction, query="")

    @property
    def document_prompt(self) -> str | None:
        """The text before every document; None for that of the base model."""
        return self.document_template and self.document_template.removesuffix("{document}")
