"""OpenTelemetry: metrics and traces, pushed over OTLP/HTTP; configured by `OTEL_*` alone.

The SDK reads the variables itself and sends from threads of its own.
"""

import contextvars
import logging
from collections.abc import Callable, Iterable, Mapping

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode

from worker import __version__
from worker.api.transport import ApiCall
from worker.clock import now_ms
from worker.dispatch.plan import Plan, PlannedExecution
from worker.dispatch.result import Outcome, Phase, ServerResult
from worker.snapshot import WorkerNow
from worker.telemetry import ExecutionTrace, JobTrace, StateNow, Telemetry

log = structlog.get_logger()

NAME = "cronium-worker"
CLOSE_SECONDS = 3.0
# In seconds: from a warm script's to that of a night's backup.
DURATIONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
# Of OpenTelemetry's conventions for HTTP clients, and up to a long poll.
CALL_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# OpenTelemetry's conventions for CI/CD: a job is a pipeline's run, an execution a task's.
_JOB_RESULTS = {
    "completed": "success",
    "failed": "failure",
    "timeout": "timeout",
    "cancelled": "cancellation",
}
_EXECUTION_RESULTS = {
    Outcome.SUCCESS: "success",
    Outcome.FAILED: "failure",
    Outcome.TIMED_OUT: "timeout",
    Outcome.CANCELLED: "cancellation",
}


class OtelTelemetry(Telemetry):
    is_on = True

    def __init__(self, metrics: MeterProvider, tracing: TracerProvider | None) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._tracer = (tracing or trace.NoOpTracerProvider()).get_tracer(NAME, __version__)
        meter = metrics.get_meter(NAME, __version__)
        self._calls = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Calls to the queue API and the runtime API",
            explicit_bucket_boundaries_advisory=CALL_DURATIONS,
        )
        self._polls = meter.create_histogram(
            "cronium.poll.duration",
            "s",
            "Polls that were answered; the queue may hold one for 25 s",
            explicit_bucket_boundaries_advisory=CALL_DURATIONS,
        )
        self._jobs = meter.create_histogram(
            "cicd.pipeline.run.duration",
            "s",
            "Jobs, from their start to their result",
            explicit_bucket_boundaries_advisory=DURATIONS,
        )
        self._refused = meter.create_counter(
            "cicd.pipeline.run.errors", "{error}", "Jobs that could not be run as they stood"
        )
        self._executions = meter.create_counter(
            "cronium.executions", "{execution}", "Executions that have ended"
        )
        self._phases = meter.create_histogram(
            "cronium.execution.phase.duration",
            "s",
            "Phases of executions",
            explicit_bucket_boundaries_advisory=DURATIONS,
        )
        self._runners = meter.create_counter(
            "cronium.runner.lookups",
            "{lookup}",
            "Executions that found the runner in the cache, or had it deployed",
        )
        self._received = meter.create_counter(
            "cronium.output.received", "By", "What scripts printed"
        )
        self._seen: WorkerNow | None = None
        self._state: StateNow | None = None
        for name, unit, description, look in (
            ("cicd.pipeline.run.active", "{run}", "Jobs in flight", self._active),
            ("cicd.worker.count", "{worker}", "Slots for jobs", self._slots),
            ("cronium.ssh.connections", "{connection}", "Open SSH connections", self._connections),
            ("cronium.ssh.waiting", "{run}", "Runs that wait for a connection", self._waiting),
            ("cronium.outbox.entries", "{entry}", "What the API has not heard", self._entries),
            ("cronium.runner.cached", "{runner}", "Runners in the cache", self._cached),
        ):
            meter.create_observable_up_down_counter(name, [look], unit, description)
        meter.create_observable_gauge(
            "cronium.outbox.age", [self._age], "s", "How long the oldest of it has waited"
        )
        meter.create_observable_gauge(
            "cronium.api.up", [self._up], "1", "Whether the queue API answers"
        )

    def api_called(self, call: ApiCall) -> None:
        attributes: dict[str, str | int] = {
            "http.request.method": call.method,
            "url.template": call.route,
            "server.address": call.api,
        }
        if call.status is not None:
            attributes["http.response.status_code"] = call.status
        if call.error is not None:
            attributes["error.type"] = call.error
        self._calls.record(call.seconds, attributes)

    def polled(self, seconds: float, jobs: int) -> None:
        self._polls.record(seconds, {"cronium.poll.jobs": "some" if jobs else "none"})

    def refused(self) -> None:
        self._refused.add(1, {"error.type": "job"})

    def job(self, plan: Plan, claimed_at: int) -> JobTrace:
        return _OtelJob(self, plan, claimed_at)

    def observe(self, now: WorkerNow) -> None:
        self._seen = now

    def observe_state(self, now: StateNow) -> None:
        self._state = now

    def close(self) -> None:
        # First what may be lost with less harm, as both may take their time.
        if self._tracing is not None:
            self._tracing.force_flush(int(CLOSE_SECONDS * 1000))
        self._metrics.shutdown(CLOSE_SECONDS * 1000)

    # What jobs and executions tell.

    def start(self, name: str, at: int, context: Context | None, **attributes: str | int) -> Span:
        # Of a consumer, as it begins with what a queue handed out.
        kind = SpanKind.CONSUMER if context is None else SpanKind.INTERNAL
        return self._tracer.start_span(
            name, context or Context(), kind, attributes=_dotted(attributes), start_time=_ns(at)
        )

    def job_ended(self, name: str, status: str, seconds: float) -> None:
        attributes = {
            "cicd.pipeline.name": name,
            "cicd.pipeline.run.state": "executing",
            "cicd.pipeline.result": _JOB_RESULTS.get(status, "error"),
        }
        self._jobs.record(seconds, attributes)

    def execution_ended(self, result: ServerResult, received_bytes: int) -> None:
        self._executions.add(1, {"cronium.outcome": result.outcome})
        self._received.add(received_bytes)
        if result.runner is not None:
            self._runners.add(1, {"cronium.runner.source": result.runner})

    def phase_ended(self, phase: Phase, seconds: float) -> None:
        self._phases.record(seconds, {"cronium.phase": phase})

    # What the SDK asks, from a thread of its own; what is asked for never changes, only which.

    def _active(self, _: CallbackOptions) -> Iterable[Observation]:
        if (seen := self._seen) is not None:
            yield Observation(len(seen.jobs), {"cicd.pipeline.run.state": "executing"})

    def _slots(self, _: CallbackOptions) -> Iterable[Observation]:
        if (seen := self._seen) is not None:
            free = max(0, seen.free_slots)
            yield Observation(free, {"cicd.worker.state": "available"})
            yield Observation(seen.slots - free, {"cicd.worker.state": "busy"})

    def _connections(self, _: CallbackOptions) -> Iterable[Observation]:
        if (seen := self._seen) is not None:
            idle = seen.pool.idle
            yield Observation(idle, {"cronium.ssh.state": "idle"})
            yield Observation(seen.pool.connections - idle, {"cronium.ssh.state": "used"})

    def _waiting(self, _: CallbackOptions) -> Iterable[Observation]:
        if (seen := self._seen) is not None:
            yield Observation(seen.pool.waiting)

    def _up(self, _: CallbackOptions) -> Iterable[Observation]:
        if (seen := self._seen) is not None:
            yield Observation(int(seen.api_answers))

    def _entries(self, _: CallbackOptions) -> Iterable[Observation]:
        if (state := self._state) is not None:
            yield Observation(state.waiting, {"cronium.outbox.state": "waiting"})
            yield Observation(state.parked, {"cronium.outbox.state": "parked"})

    def _age(self, _: CallbackOptions) -> Iterable[Observation]:
        if (state := self._state) is not None:
            oldest_at = state.oldest_at
            yield Observation(0 if oldest_at is None else max(0, now_ms() - oldest_at) / 1000)

    def _cached(self, _: CallbackOptions) -> Iterable[Observation]:
        if (state := self._state) is not None:
            yield Observation(state.runners)


class _OtelJob(JobTrace):
    def __init__(self, telemetry: OtelTelemetry, plan: Plan, claimed_at: int) -> None:
        self._telemetry = telemetry
        self._claimed_at = claimed_at
        self._name = plan.event_name or plan.event_id
        self._span = telemetry.start(
            f"job {self._name}",
            claimed_at,
            None,
            cicd_pipeline_name=self._name,
            cicd_pipeline_run_id=plan.job_id,
            cronium_servers=len(plan.executions),
            cronium_attempts=plan.attempts,
        )
        self._context = trace.set_span_in_context(self._span, Context())
        self.log_fields = _log_fields(self._span)

    def started(self, now: int) -> None:
        self._telemetry.start("claim", self._claimed_at, self._context).end(_ns(now))

    def execution(self, execution: PlannedExecution) -> ExecutionTrace:
        return _OtelExecution(self._telemetry, execution, self._context)

    def ended(self, status: str, began_at: int, ended_at: int) -> None:
        self._telemetry.job_ended(self._name, status, (ended_at - began_at) / 1000)
        result = _JOB_RESULTS.get(status, "error")
        self._span.set_attribute("cicd.pipeline.result", result)
        _end(self._span, ended_at, fault=None if result == "success" else status)


class _OtelExecution(ExecutionTrace):
    def __init__(self, telemetry: OtelTelemetry, execution: PlannedExecution, job: Context) -> None:
        self._telemetry = telemetry
        self._span = telemetry.start(
            f"execution {execution.server.name}",
            now_ms(),
            job,
            cicd_pipeline_task_name=execution.server.name,
            cicd_pipeline_task_run_id=execution.id,
            cronium_server_id=execution.server.id,
        )
        self._context = trace.set_span_in_context(self._span, Context())
        self.log_fields = _log_fields(self._span)

    def ended(self, result: ServerResult, received_bytes: int) -> None:
        self._telemetry.execution_ended(result, received_bytes)
        at = result.started_at
        times = result.times
        for phase, ms in ((Phase.SETUP, times.setup_ms), (Phase.EXECUTION, times.execution_ms)):
            if ms is not None:
                self._phase(phase, at, at + ms)
                at += ms
        self._span.set_attributes(
            {
                "cicd.pipeline.task.run.result": _EXECUTION_RESULTS.get(result.outcome, "error"),
                "cronium.outcome": result.outcome,
                "process.exit.code": result.exit_code,
            }
        )
        fault = None if result.outcome is Outcome.SUCCESS else result.outcome
        _end(self._span, result.ended_at, fault=fault)

    def cleaned_up(self, began_at: int, ended_at: int, *, is_clean: bool) -> None:
        self._phase(Phase.CLEANUP, began_at, ended_at, fault=None if is_clean else "left behind")

    def _phase(self, phase: Phase, began_at: int, ended_at: int, fault: str | None = None) -> None:
        self._telemetry.phase_ended(phase, (ended_at - began_at) / 1000)
        _end(self._telemetry.start(phase, began_at, self._context), ended_at, fault=fault)


def open_otel(worker_id: str, *, metrics: bool, traces: bool, is_named: bool) -> OtelTelemetry:
    """With the signals that are wanted; a service that `is_named` has its name from `OTEL_*`."""
    _log_faults()
    attributes = {"service.version": __version__, "service.instance.id": worker_id}
    if not is_named:
        attributes["service.name"] = NAME
    resource = Resource.create(attributes)
    readers: list[MetricReader] = []
    if metrics:
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    tracing = None
    if traces:
        tracing = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTelemetry(MeterProvider(readers, resource, shutdown_on_exit=False), tracing)


def _log_faults() -> None:
    """What the SDK says goes into the worker's log: once as a warning, else at debug."""
    context = contextvars.copy_context()
    tell: list[Callable[..., object]] = [log.warning]

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say = tell.pop() if tell else log.debug
            context.copy().run(say, "telemetry_fault", error=record.getMessage()[:300])

    logger = logging.getLogger("opentelemetry")
    logger.handlers[:] = [Handler(logging.WARNING)]
    logger.setLevel(logging.WARNING)
    logger.propagate = False


def _dotted(attributes: Mapping[str, str | int]) -> dict[str, str | int]:
    return {name.replace("_", "."): value for name, value in attributes.items()}


def _log_fields(span: Span) -> Mapping[str, str]:
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def _end(span: Span, at: int, *, fault: str | None) -> None:
    if fault is not None:
        span.set_status(StatusCode.ERROR, fault)
    span.end(_ns(at))


def _ns(at: int) -> int:
    return at * 1_000_000
