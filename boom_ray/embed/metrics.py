"""Prometheus metrics of an embedding run."""

from ray.util.metrics import Counter, Gauge

from boom_ray.embed.partition import Partition

PREFIX = "boom_ray_embed_"
STAGES = ("read", "tokenize", "encode", "write")
LABELS = ("output",)


class EmbedMetrics:
    """Metrics of one run, labelled with the name of its output."""

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

    def stored(self, partition: Partition, done: float) -> None:
        """Count a stored partition, after which the fraction `done` of all rows is stored."""
        self.rows.inc(partition.texts)
        self.tokens.inc(partition.tokens)
        self.written.inc(partition.size)
        self.padding.set(1 - partition.tokens / partition.padded)
        self.done.set(done)
        for stage in STAGES:
            self.seconds.inc(getattr(partition, stage), {"stage": stage})
