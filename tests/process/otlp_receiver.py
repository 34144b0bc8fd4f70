"""A receiver of OTLP over HTTP, on the protocol's own types."""

import gzip
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
}

Attributes = dict[str, Any]


@dataclass(slots=True)
class Receiver:
    port: int
    requests: list[Any] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def resources(self) -> list[Attributes]:
        return [attributes(each.resource.attributes) for each in self._parts()]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for part in self._parts(ExportTraceServiceRequest)
            for scope in part.scope_spans
            for span in scope.spans
        ]

    def points(self, name: str) -> list[tuple[Attributes, Any]]:
        """Of that metric, as last told: attributes and value, of a histogram the count."""
        told = [
            metric
            for part in self._parts(ExportMetricsServiceRequest)
            for scope in part.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        if not told:
            return []
        kind = told[-1].WhichOneof("data")
        found = []
        for point in getattr(told[-1], kind).data_points:
            value = (
                point.count if kind == "histogram" else getattr(point, point.WhichOneof("value"))
            )
            found.append((attributes(point.attributes), value))
        return found

    def value(self, name: str, **wanted: object) -> Any:  # noqa: ANN401  a number of either kind
        """Of the one point whose attributes end so; None where there is none."""
        for found, value in self.points(name):
            named = {key.rpartition(".")[2]: each for key, each in found.items()}
            if wanted.items() <= named.items():
                return value
        return None

    def _parts(self, kind: type | None = None) -> list[Any]:
        return [
            part
            for request in self.requests
            if kind is None or isinstance(request, kind)
            for part in (
                request.resource_metrics
                if isinstance(request, ExportMetricsServiceRequest)
                else request.resource_spans
            )
        ]


def attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@contextmanager
def open_receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request, response = TYPES[self.path]
            receiver.requests.append(request.FromString(body))
            said = response().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
