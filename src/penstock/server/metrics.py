"""What Prometheus is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.llm import LLM
    from penstock.models.pass_stats import PassStats
    from penstock.openai_api.answers import Answers
    from penstock.server.shelf import Shelf

PASS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300)


class Metrics:
    """Counters of one server; threads may share them."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "penstock_requests",
            "Requests to complete something, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("completed", "cancelled", "rejected", "queue_full", "failed"):
            self._requests.labels(outcome)
        self._prompt_tokens = Counter("penstock_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached_tokens = Counter(
            "penstock_cached_prompt_tokens", "Those of them that were there, in memory or on disk.", registry=registry
        )
        self._drawn_tokens = Counter(
            "penstock_completion_tokens", "Tokens of answers, whole or not.", registry=registry
        )
        self._passes = Counter("penstock_passes", "Passes over the weights.", registry=registry)
        self._seconds = Histogram("penstock_pass_seconds", "Seconds a pass.", buckets=PASS_SECONDS, registry=registry)
        self._bytes_read = Counter("penstock_read_bytes", "Bytes of weights read from the disk.", registry=registry)
        self._openings = Counter(
            "penstock_openings", "Models that requests had opened in place of another.", ["model"], registry=registry
        )
        self._guesses = Counter("penstock_guesses_checked", "Guessed tokens that passes checked.", registry=registry)
        self._right = Counter("penstock_guesses_right", "Guessed tokens that were right.", registry=registry)

    def watch(self, shelf: Shelf, queued: Callable[[], float], running: Callable[[], float]) -> None:
        """Ask for these numbers whenever the metrics are asked for."""

        def of_open(figure: Callable[[LLM], float]) -> Callable[[], float]:
            return lambda: 0 if (llm := shelf.llm) is None else figure(llm)

        ceiling = of_open(lambda llm: llm.memory.budget.ceiling)
        gauges = (
            ("queue_requests", "Requests that wait for their turn or for memory.", queued),
            ("running_requests", "Requests that passes serve.", running),
            ("memory_ceiling_bytes", "The ceiling on the whole process.", ceiling),
            ("resident_bytes", "Weights that stay in memory.", of_open(lambda llm: llm.weights.resident_bytes)),
            ("kv_bytes", "Keys and values of the latest pass.", of_open(lambda llm: llm.memory.plan.kv)),
        )
        for name, text, value in gauges:
            Gauge(f"penstock_{name}", text, registry=self._registry).set_function(value)

    def opened(self, model: str) -> None:
        """A request had another model opened."""
        self._openings.labels(model).inc()

    def count(self, outcome: str) -> None:
        """A request has ended so."""
        self._requests.labels(outcome).inc()

    def took(self, stats: PassStats) -> None:
        """A pass has ended."""
        self._passes.inc()
        self._seconds.observe(stats.seconds)
        self._bytes_read.inc(stats.bytes_read)
        self._guesses.inc(stats.guesses)

    def left(self, answers: Answers) -> None:
        """A request has left the engine, answered or not."""
        usage = answers.usage
        self._prompt_tokens.inc(usage["prompt_tokens"])
        self._cached_tokens.inc(answers.cached_tokens)
        self._drawn_tokens.inc(usage["completion_tokens"])
        self._right.inc(sum(completion.sequence.guesses.accepted for completion in answers.completions))

    def page(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)
