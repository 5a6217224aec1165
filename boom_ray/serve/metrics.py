"""What Prometheus sees of an endpoint, beside Ray Serve's own metrics."""

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

    def answered(self, route: str, version: str, status: int, seconds: float) -> None:
        """One request was answered."""
        tags = {"route": route, "version": version, "status": str(status)}
        self.requests.inc(1, tags)
        self.seconds.observe(seconds, tags)


class EncoderMetrics:
    """Of one encoder."""

    def __init__(self, version: str) -> None:
        tags = {"version": version}
        self.fill = Histogram(f"{PREFIX}pass_fill", "Tokens of a pass over its budget", SHARES, ("version",))
        self.queued = Histogram(f"{PREFIX}queue_seconds", "Time before encoding", SECONDS, ("version",))
        self.passes = Counter(f"{PREFIX}passes_total", "Forward passes", ("version",))
        for metric in (self.fill, self.queued, self.passes):
            metric.set_default_tags(tags)

    def passed(self, tokens: int, budget: int, waited: list[float]) -> None:
        """One pass begins, of requests that waited so many seconds each."""
        self.passes.inc()
        self.fill.observe(tokens / budget)
        for seconds in waited:
            self.queued.observe(seconds)
