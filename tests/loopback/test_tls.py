"""The embedded queue over TLS, with a certificate that nobody else knows of, and who trusts it."""

import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from tests.queue_rig import TOKEN, QueueRig, running_queue
from worker.api.client import open_client
from worker.api.runtime import open_runtimes
from worker.api.tokens import Identity
from worker.errors import QueueUnavailableError, RuntimeUnavailableError
from worker.queue_server.serve import Tls
from worker.settings import Settings, environment

UNTRUSTED = r"its certificate is not trusted \(self.signed certificate\); see CRONIUM_API_CA"


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        capture_output=True,
        check=True,
    )  # fmt: skip
    return Tls(certificate, key)


@pytest.fixture
async def queue(tls: Tls, tmp_path: Path) -> AsyncIterator[QueueRig]:
    async with running_queue(tmp_path, tls=tls) as queue:
        yield queue


def loaded(queue: QueueRig, **given: str) -> Settings:
    return environment.load(
        {
            "CRONIUM_API_ENDPOINT": queue.address,
            "CRONIUM_API_TOKEN": TOKEN,
            "CRONIUM_STATE_DIR": str(queue.database.parent),
            **given,
        }
    )


async def test_it_serves_over_tls(queue: QueueRig, tls: Tls) -> None:
    trusting = ssl.create_default_context(cafile=tls.certificate)
    with trio.fail_after(25):
        async with queue.client(verify=trusting) as client:
            answer = await client.get("/orchestrator/health")

    assert queue.address.startswith("https://127.0.0.1:")
    assert answer.json()["status"] == "healthy"


async def test_a_worker_trusts_whom_certifi_does_or_whom_it_is_told_to(
    queue: QueueRig, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def claim_one(**authorities: str) -> int:
        async with open_client(loaded(queue, **authorities).api, "worker-1") as client:
            return len((await client.claim(1)).jobs)

    with trio.fail_after(25):
        for _ in range(2):
            queue.submit()
        with pytest.raises(QueueUnavailableError, match=f"^the queue API .*: {UNTRUSTED}"):
            await claim_one()

        assert await claim_one(CRONIUM_API_CA=str(tls.certificate)) == 1

        monkeypatch.setattr("certifi.where", lambda: str(tls.certificate))
        assert await claim_one() == 1


async def test_the_runtime_api_is_trusted_as_the_queue_is(queue: QueueRig, tls: Tls) -> None:
    async def ask(**authorities: str) -> None:
        runtime = {"CRONIUM_RUNTIME_URL": queue.address, "CRONIUM_JWT_SECRET": "s" * 32}
        given = loaded(queue, **runtime, **authorities)
        async with (
            open_client(given.api, "worker-1") as client,
            open_runtimes(given.runtime, client) as runtimes,
        ):
            # Without the patience of what scripts ask with.
            api = runtimes.of(Identity("job_1", "exec_1", "user-1", "1", 30))._tools
            assert api is not None
            await api.execute_tool_action("tool", "action", msgspec.Raw(b"{}"))

    with trio.fail_after(25):
        with pytest.raises(RuntimeUnavailableError, match=f"^the runtime API .*: {UNTRUSTED}"):
            await ask()
        with pytest.raises(RuntimeUnavailableError, match="answered 503"):
            await ask(CRONIUM_API_CA=str(tls.certificate))
