"""From what an operator asks for to a job like any other."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Raw

from worker.api import wire
from worker.direct.servers import NamedServer
from worker.dispatch.plan import Plan, plan_job
from worker.errors import JobError
from worker.remote.target import Credential
from worker.secret import Secret
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done; `kind` is an interpreter as the queue API names them."""

    script: bytes = field(repr=False)
    kind: str
    servers: Sequence[NamedServer]
    credential: Credential = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    directory: str
    limit_seconds: float


def plan_order(order: Order, settings: Settings) -> Plan:
    """Raises JobError, naming the field, if it could not be run anywhere."""
    try:
        content = order.script.decode()
    except UnicodeDecodeError as error:
        raise JobError(f"the script: byte {error.start} is not UTF-8") from None
    job = wire.JobBody(
        id=f"direct_{secrets.token_hex(6)}",
        type="ssh",
        execution=wire.ExecutionBody(
            environment=dict(order.environment),
            environment_sealed=False,
            timeout=order.limit_seconds,
            target=wire.TargetBody(),
            script=wire.ScriptBody(
                type=order.kind, content=content, working_directory=order.directory
            ),
        ),
        metadata=wire.MetadataBody(
            event_name="exec",
            servers=tuple(_entry(server, order.credential) for server in order.servers),
        ),
    )
    return plan_job(
        job,
        sealing_key=settings.encryption_key,
        max_execution_seconds=settings.phases.max_execution_seconds,
        mask_names=settings.jobs.mask_names,
    )


def _entry(server: NamedServer, credential: Credential) -> Raw:
    body = wire.ServerBody(
        id=server.name,
        name=server.name,
        host=server.address.host,
        port=server.address.port,
        username=server.user,
        private_key=_text(credential.private_key),
        passphrase=_text(credential.passphrase),
        password=_text(credential.password),
    )
    return Raw(wire.encode(body))


def _text(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
