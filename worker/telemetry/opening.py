"""Whether telemetry is wanted, and can be had."""

from collections.abc import Mapping

import structlog

from worker.telemetry import Telemetry

log = structlog.get_logger()

PROTOCOL = "http/protobuf"
SIGNALS = ("METRICS", "TRACES")


def open_telemetry(environ: Mapping[str, str], worker_id: str) -> Telemetry:
    """What the standard variables ask for: an endpoint turns it on, there is no default one."""
    wanted = signals(environ)
    if not wanted:
        return Telemetry()
    try:
        from worker.telemetry.otel import open_otel  # an extra, and slow to import
    except ImportError as error:
        log.warning("telemetry_off", error=f"{error}; expected: pip install cronium-worker[otel]")
        return Telemetry()
    is_named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return open_otel(
        worker_id, metrics="METRICS" in wanted, traces="TRACES" in wanted, is_named=is_named
    )


def signals(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Those of `SIGNALS` that are asked for and can be sent."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    return tuple(signal for signal in SIGNALS if _is_wanted(environ, signal))


def _is_wanted(environ: Mapping[str, str], signal: str) -> bool:
    prefix, own = "OTEL_EXPORTER_OTLP", f"OTEL_EXPORTER_OTLP_{signal}"
    if not (environ.get(f"{own}_ENDPOINT") or environ.get(f"{prefix}_ENDPOINT")):
        return False
    exporter = environ.get(f"OTEL_{signal}_EXPORTER") or "otlp"
    if exporter != "otlp":
        if exporter != "none":
            log.warning("telemetry_off", error=f"OTEL_{signal}_EXPORTER: expected otlp or none")
        return False
    protocol = environ.get(f"{own}_PROTOCOL") or environ.get(f"{prefix}_PROTOCOL") or PROTOCOL
    if protocol != PROTOCOL:
        log.warning("telemetry_off", error=f"{own}_PROTOCOL: {protocol!r}; expected {PROTOCOL}")
    return protocol == PROTOCOL
