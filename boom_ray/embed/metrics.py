"""What Prometheus sees of an embedding run."""

from typing import Any

from ray.util.metrics import Counter, Gauge

PREFIX = "boom_ray_embed_"
STAGES = ("read", "tokenize", "encode", "write")
LABELS = ("output",)


class EmbedMetrics:
    """Of one run, by the name of its output; told of every partition as it is stored."""

    def __init__(self, output: str) -> None:
        self.rows = Counter(f"{PREFIX}rows_total", "Rows stored", LABELS)
        self.tokens = Counter(f"{PREFIX}tokens_total", "Tokens embedded", LABELS)
        self.written = Counter(f"{PREFIX}written_bytes_total", "Bytes of parquet stored", LABELS)
        self.padding = Gauge(f"{PREFIX}padding_fraction", "Padding in the last partition", LABELS)
        self.done = Gauge(f"{PREFIX}done_fraction", "Share of the rows that are stored", LABELS)
        self.seconds = Counter(
            f"{PREFIX}seconds_total", "Seconds in each stage, over all processes", (*LABELS, "stage")
        )
        for metric in (self.rows, self.tokens, self.written, self.padding, self.done, self.seconds):
            metric.set_default_tags({"output": output})

    def stored(self, partition: dict[str, Any], done: float) -> None:
        """One partition was stored, and so was a share `done` of all rows."""
        self.rows.inc(partition["texts"])
        self.tokens.inc(partition["tokens"])
        self.written.inc(partition["size"])
        self.padding.set(1 - partition["tokens"] / partition["padded"])
        self.done.set(done)
        for stage in STAGES:
            self.seconds.inc(partition[stage], {"stage": stage})
