"""Prometheus metrics of a merge."""

from ray.util.metrics import Gauge

PREFIX = "boom_ray_merge_"


class MergeMetrics:
    """Gauges of one merge, tagged with the name that its actors share."""

    def __init__(self, merge: str) -> None:
        self.written = Gauge(f"{PREFIX}written_bytes", "Bytes of the merged model written", ("merge",))
        self.total = Gauge(f"{PREFIX}total_bytes", "Bytes of the merged model", ("merge",))
        self.read = Gauge(f"{PREFIX}read_bytes", "Bytes of models read for what is written", ("merge",))
        for metric in (self.written, self.total, self.read):
            metric.set_default_tags({"merge": merge})

    def progress(self, written: int, total: int, read: int) -> None:
        """Set all gauges, in bytes; a file that is written again counts once."""
        self.written.set(written)
        self.total.set(total)
        self.read.set(read)
