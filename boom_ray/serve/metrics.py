"""Prometheus metrics of an endpoint, in addition to those of Ray Serve."""

from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

PREFIX = "boom_ray_serve_"
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
SHARES = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]


class RequestMetrics:
    """Metrics of the ingress, by route, version of the model, and status."""

    def __init__(self) -> None:
        labels = ("route", "version", "status")
        self.requests = Counter(f"{PREFIX}requests_total", "Requests answered", labels)
        self.seconds = Histogram(f"{PREFIX}request_seconds", "Time to answer", SECONDS, labels)
        self.tokens = Counter(f"{PREFIX}tokens_total", "Tokens embedded", ("version",))
        self.load = Gauge(f"{PREFIX}accepted_tokens", "Tokens accepted and not yet answered")
        self.retries = Counter(f"{PREFIX}retries_total", "Requests retried after a replica failed")

    def queue(self, version: str) -> Callable[[int, list[float]], None]:
        """The `on_pass` callback of the queue of a version."""
        queue = QueueMetrics(version, "ingress")
        return lambda tokens, waited: queue.left(waited)

    def answered(self, route: str, version: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        tags = {"route": route, "version": version, "status": str(status)}
        self.requests.inc(1, tags)
        self.seconds.observe(seconds, tags)


class EncoderMetrics:
    """Metrics of an encoder replica.

    Args:
        budget: Maximum tokens in a pass.
    """

    def __init__(self, version: str, budget: int) -> None:
        self.budget, tags = budget, {"version": version}
        self.fill = Histogram(f"{PREFIX}pass_fill", "Tokens of a pass over its budget", SHARES, ("version",))
        self.passes = Counter(f"{PREFIX}passes_total", "Forward passes", ("version",))
        self.fill.set_default_tags(tags)
        self.passes.set_default_tags(tags)
        self.queue = QueueMetrics(version, "encoder")

    def passed(self, tokens: int, waited: list[float]) -> None:
        """Count a pass at its start, with the seconds that each of its calls waited."""
        self.passes.inc()
        self.fill.observe(tokens / self.budget)
        self.queue.left(waited)


class QueueMetrics:
    """Metrics of one queue: of requests in the `ingress`, or of calls at an `encoder`."""

    def __init__(self, version: str, queue: str) -> None:
        keys = ("version", "place")  # the label's name is in users' dashboards
        self.seconds = Histogram(
            f"{PREFIX}queue_seconds", "Time before the next encoder or pass", SECONDS, keys
        )
        self.seconds.set_default_tags({"version": version, "place": queue})

    def left(self, waited: list[float]) -> None:
        """Count requests that leave the queue, by the seconds they waited."""
        for seconds in waited:
            self.seconds.observe(seconds)
