"""What Prometheus sees of an endpoint, beside Ray Serve's own metrics."""

from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

PREFIX = "boom_ray_serve_"
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
SHARES = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]


class RequestMetrics:
    """Of one ingress: by route, version of the model, and status."""

    def __init__(self) -> None:
        labels = ("route", "version", "status")
        self.requests = Counter(f"{PREFIX}requests_total", "Requests answered", labels)
        self.seconds = Histogram(f"{PREFIX}request_seconds", "Time to answer", SECONDS, labels)
        self.tokens = Counter(f"{PREFIX}tokens_total", "Tokens embedded", ("version",))
        self.load = Gauge(f"{PREFIX}accepted_tokens", "Tokens accepted and not yet answered")
        self.retries = Counter(
            f"{PREFIX}retries_total", "Requests sent to another encoder after one was lost"
        )

    def queue(self, version: str) -> Callable[[int, list[float]], None]:
        """What is told of every call of an encoder of a version."""
        queue = QueueMetrics(version, "ingress")
        return lambda tokens, waited: queue.left(waited)

    def answered(self, route: str, version: str, status: int, seconds: float) -> None:
        """One request was answered."""
        tags = {"route": route, "version": version, "status": str(status)}
        self.requests.inc(1, tags)
        self.seconds.observe(seconds, tags)


class EncoderMetrics:
    """Of one encoder, with a budget of tokens in a pass."""

    def __init__(self, version: str, budget: int) -> None:
        self.budget, tags = budget, {"version": version}
        self.fill = Histogram(f"{PREFIX}pass_fill", "Tokens of a pass over its budget", SHARES, ("version",))
        self.passes = Counter(f"{PREFIX}passes_total", "Forward passes", ("version",))
        self.fill.set_default_tags(tags)
        self.passes.set_default_tags(tags)
        self.queue = QueueMetrics(version, "encoder")

    def passed(self, tokens: int, waited: list[float]) -> None:
        """One pass begins, of calls that waited so many seconds each."""
        self.passes.inc()
        self.fill.observe(tokens / self.budget)
        self.queue.left(waited)


class QueueMetrics:
    """Of one queue: of requests in the ingress, or of calls at an encoder."""

    def __init__(self, version: str, place: str) -> None:
        keys = ("version", "place")
        self.seconds = Histogram(
            f"{PREFIX}queue_seconds", "Time before the next encoder or pass", SECONDS, keys
        )
        self.seconds.set_default_tags({"version": version, "place": place})

    def left(self, waited: list[float]) -> None:
        """Some left the queue, after so many seconds each."""
        for seconds in waited:
            self.seconds.observe(seconds)
