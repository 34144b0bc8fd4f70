"""Metrics and traces of a worker process, as an OTLP receiver gets them."""

from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.ports import reserved_port
from tests.process.otlp_receiver import Receiver, attributes, open_receiver
from tests.process.worker_process import Site, WorkerProcess, open_site, wait_for
from worker.demo.sshd import Sshd

OFTEN = {"OTEL_METRIC_EXPORT_INTERVAL": "300", "OTEL_BSP_SCHEDULE_DELAY": "100"}


def started(site: Site) -> WorkerProcess:
    site.start_queue()
    worker = site.start_worker()
    worker.wait_for_event("worker_started")
    return worker


def named(receiver: Receiver, name: str) -> Span:
    (span,) = (each for each in receiver.spans if each.name == name)
    return span


def test_a_job_is_told_of_in_metrics_in_a_trace_and_in_the_log(sshd: Sshd, tmp_path: Path) -> None:
    with (
        open_receiver() as receiver,
        open_site(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **OFTEN) as site,
    ):
        worker = started(site)
        name = site.add(sshd.server)
        site.finished(site.submit("sleep 0.2; printf 12345", name))
        failed = site.submit("exit 3", name)
        site.finished(failed)
        wait_for(lambda: len(receiver.spans) == 12, "the spans of two jobs")
        wait_for(
            lambda: receiver.value("cicd.pipeline.run.duration", result="failure") == 1,
            "the failed job in the metrics",
        )
        wait_for(lambda: receiver.value("cronium.runner.cached") == 1, "the runner in the cache")
        wait_for(
            lambda: receiver.value("cronium.ssh.connections", state="idle") == 1, "the connection"
        )
        worker.process.terminate()
        assert worker.wait() == 0

        spans = [each for each in receiver.spans if each.trace_id == receiver.spans[0].trace_id]
        by_id = {each.span_id: each for each in spans}
        tree = {
            each.name: by_id[each.parent_span_id].name if each.parent_span_id else ""
            for each in spans
        }
        (job,) = (each for each in spans if not each.parent_span_id)
        (execution,) = (each for each in spans if each.name.startswith("execution "))
        run = next(each for each in spans if each.name == "execution")
        log = worker.events("execution_ended")[0]

        assert tree == {
            job.name: "",
            "claim": job.name,
            execution.name: job.name,
            "setup": execution.name,
            "execution": execution.name,
            "cleanup": execution.name,
        }
        assert run.end_time_unix_nano - run.start_time_unix_nano > 190_000_000
        assert attributes(execution.attributes)["cronium.outcome"] == "success"
        assert log["trace_id"] == job.trace_id.hex()
        assert log["span_id"] == execution.span_id.hex()
        assert worker.events("job_ended")[0]["span_id"] == job.span_id.hex()
        assert receiver.value("cicd.pipeline.run.duration", result="success") == 1
        assert receiver.value("cronium.executions", outcome="failed") == 1
        assert receiver.value("cronium.execution.phase.duration", phase="cleanup") == 2
        assert receiver.value("cronium.runner.lookups", source="deployed") == 1
        assert receiver.value("cronium.output.received") == 5
        assert receiver.value("cicd.worker.count", state="busy") == 0
        assert receiver.value("cronium.outbox.entries", state="waiting") == 0
        assert receiver.value("cronium.api.up") == 1
        assert receiver.value("cronium.poll.duration", jobs="some") == 2
        assert receiver.value("http.client.request.duration", template="jobs/{}/complete") == 2
        resource = receiver.resources[0]
        assert resource["service.name"] == "cronium-worker"
        assert resource["service.instance.id"] == log["worker_id"]


def test_a_signal_that_is_not_wanted_is_not_sent_and_a_name_is_heeded(
    sshd: Sshd, tmp_path: Path
) -> None:
    with (
        open_receiver() as receiver,
        open_site(
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
            OTEL_TRACES_EXPORTER="none",
            OTEL_SERVICE_NAME="night-shift",
            **OFTEN,
        ) as site,
    ):
        worker = started(site)
        site.finished(site.submit("true", site.add(sshd.server)))
        wait_for(lambda: receiver.points("cronium.executions"), "metrics")
        worker.process.terminate()
        assert worker.wait() == 0

        assert receiver.spans == []
        assert {each["service.name"] for each in receiver.resources} == {"night-shift"}
        assert "trace_id" not in worker.events("execution_ended")[0]


def test_a_receiver_that_is_away_is_said_once_and_holds_up_nothing(
    sshd: Sshd, tmp_path: Path
) -> None:
    with (
        reserved_port() as port,
        open_site(
            tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", **OFTEN
        ) as site,
    ):
        worker = started(site)
        job_id = site.submit("true", site.add(sshd.server))
        site.finished(job_id)
        wait_for(lambda: worker.events("telemetry_fault"), "the fault in the log")
        worker.process.terminate()
        assert worker.wait() == 0

        assert site.status(job_id) == "completed"
        assert len(worker.events("telemetry_fault")) == 1


def test_telemetry_that_cannot_be_sent_is_off_with_a_word(tmp_path: Path) -> None:
    with open_site(
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
    ) as site:
        worker = started(site)

        (fault, _) = worker.events("telemetry_off")

        assert "expected http/protobuf" in fault["error"]
