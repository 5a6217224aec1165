"""The settings of a model directory that define an embedding, apart from the weights."""

from dataclasses import dataclass, field

from boom_ray.recipe import Pooling


@dataclass(frozen=True)
class EncoderSpec:
    """Pooling, maximum length and prompts of an encoder.

    Attributes:
        pooling: Reduction of token states to one vector.
        max_length: Maximum input length in tokens, including special tokens.
        prompts: Prefixes of inputs, by name.
        default_prompt_name: The prompt of texts for which none is chosen; None for no prompt.
        include_prompt: Whether the tokens of the prompt are pooled as well.
        lowercase: Whether texts are lowercased before the tokenizer sees them, whatever it does itself.
    """

    pooling: Pooling
    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    lowercase: bool = False

    @property
    def query_prompt(self) -> str:
        """The prompt of queries, as `encode_query` of sentence-transformers selects it."""
        return self.prompts.get("query", "")

    @property
    def document_prompt(self) -> str:
        """The prompt of documents, as `encode_document` of sentence-transformers selects it.

        It never uses `passage` and `corpus`, because its models always have a prompt `document`.
        """
        return self.prompts.get("document", "")

    @property
    def stored_prompt(self) -> str:
        """The prompt of texts that are embedded to be searched: of documents, else of all texts."""
        return self.prompts.get("document", self.default_prompt)

    @property
    def default_prompt(self) -> str:
        """The prompt of texts for which none is chosen, as `encode` of sentence-transformers selects it."""
        return self.prompts.get(self.default_prompt_name or "", "")
