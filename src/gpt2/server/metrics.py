"""Figures for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gpt2.hosting import Host

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The figures of one server."""

    def __init__(self, host: Host) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gpt2_requests", "Requests that were answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "gpt2_request_seconds", "Time to answer a request.", ["route"], registry=self.registry
        )
        self._tokens = Counter("gpt2_tokens", "Tokens read and written.", ["kind"], registry=self.registry)
        waiting = Gauge("gpt2_texts_waiting", "Texts that wait for their turn.", registry=self.registry)
        waiting.set_function(lambda: sum(hosted.scheduler.load[1] for hosted in host.open_models))
        writing = Gauge("gpt2_texts_writing", "Texts that are being written.", registry=self.registry)
        writing.set_function(lambda: sum(hosted.scheduler.load[0] for hosted in host.open_models))
        Gauge("gpt2_models_open", "Models that are open.", registry=self.registry).set_function(
            lambda: len(host.open_models)
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        known = method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def wrote(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Tokens were read and written."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("completion").inc(completion_tokens)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self.registry)
