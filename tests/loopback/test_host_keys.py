"""Servers that show this host key or that, and what becomes of the jobs on them."""

import dataclasses
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
import trio
import trio_asyncio
from structlog.testing import capture_logs

from tests.forked import run_forked
from tests.loopback.openssh import certify, make_key, public
from tests.worker_rig import WorkerRig, entry_of, outcomes, running_worker
from worker.clock import now_ms
from worker.demo.sshd import LocalServer, Sshd, open_sshd
from worker.queue_server.model import JobReport
from worker.queue_server.model import Server as Entry
from worker.state.host_keys import HostKeys, Pin

Fleet = Callable[[int], tuple[LocalServer, ...]]

STRICT = {"CRONIUM_SSH_HOST_KEYS": "strict"}
OFF = {"CRONIUM_SSH_HOST_KEYS": "off"}


def fingerprint(line: str) -> str:
    return asyncssh.import_public_key(line).get_fingerprint()


def put(rig: WorkerRig, server: LocalServer, host_key: str | None = None, **changes: object) -> str:
    """Make `server` known to the queue, with the host key that it has to have."""
    entry = Entry(0, server.name, server.host, server.port, server.user, server.private_key)
    entry = dataclasses.replace(entry, host_key=host_key, **changes)  # type: ignore[arg-type]  # fields of any kind
    rig.queue.store.put_server(entry, now_ms())
    return entry.name


async def run(rig: WorkerRig, *names: str) -> JobReport:
    with trio.fail_after(60):
        return await rig.run("true", names)


def outcome(report: JobReport) -> str:
    (only,) = outcomes(report).values()
    return only[0]


def error(report: JobReport, name: str) -> str:
    return str(entry_of(report, name)["error"])


def pins(rig: WorkerRig) -> tuple[Pin, ...]:
    return HostKeys(rig.database).all()


async def command(
    rig: WorkerRig, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """`cronium-worker hosts` beside the running worker, and with no more than its state."""
    environ = {"CRONIUM_STATE_DIR": str(folder / "state")}
    return await trio.to_thread.run_sync(run_forked, ["hosts", *arguments], environ)


# Before anything is proved


class _Impostor(asyncssh.SSHServer):
    """Lets everybody try a password, and remembers who came and who tried."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:  # noqa: ARG002  asyncssh's
        self._seen.append("connection")

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002
        self._seen.append("authentication")
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:  # noqa: ARG002
        self._seen.append(password)
        return False


@asynccontextmanager
async def an_impostor(seen: list[str]) -> AsyncIterator[int]:
    """The port of a server with a key of its own; inside a running worker's loop."""
    async with trio_asyncio.open_loop():
        server = await trio_asyncio.aio_as_trio(asyncssh.listen)(
            "127.0.0.1",
            0,
            server_factory=lambda: _Impostor(seen),
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        )
        try:
            yield server.get_port()
        finally:
            server.close()


@pytest.mark.parametrize("known_by", ["pin", "known_hosts", "hostKey", "fingerprint", "nobody"])
async def test_an_impostor_sees_no_authentication_and_no_password(
    known_by: str, tmp_path: Path
) -> None:
    seen: list[str] = []
    real = make_key(tmp_path / "real")
    file = tmp_path / "known_hosts"
    file.touch()
    async with (
        an_impostor(seen) as port,
        running_worker(tmp_path, {"CRONIUM_SSH_KNOWN_HOSTS": str(file)}) as rig,
    ):
        entry = Entry(0, "web", "127.0.0.1", port, "deploy", password="s3cret")
        match known_by:
            case "pin":
                HostKeys(rig.database).pin(Pin("127.0.0.1", port, real, 1))
            case "known_hosts":
                file.write_text(f"[127.0.0.1]:{port} {real}\n")
            case "hostKey":
                entry = dataclasses.replace(entry, host_key=real)
            case "fingerprint":
                entry = dataclasses.replace(entry, host_key=fingerprint(real))
        rig.queue.store.put_server(entry, now_ms())

        report = await run(rig, "web")

    assert outcome(report) == "unreachable"
    if known_by == "nobody":  # so it would have been seen
        assert seen == ["connection", "authentication", "s3cret"]
    else:
        assert set(seen) == {"connection"}
        assert fingerprint(real) in error(report, "web")


# First use and change


async def test_a_key_is_pinned_on_first_use_with_when_by_which_job_and_from_where(
    sshd: Sshd, tmp_path: Path
) -> None:
    before = now_ms()
    async with running_worker(tmp_path) as rig:
        name = put(rig, sshd.server, host="localhost")
        with capture_logs() as logs:
            first = await run(rig, name)
            await run(rig, name)
        (pin,) = pins(rig)

    assert before <= pin.pinned_at <= now_ms()
    line = " ".join(sshd.server.host_key.split()[:2])
    assert pin == Pin(
        "localhost", sshd.server.port, line, pin.pinned_at, first.job.id, sshd.server.host
    )
    (event,) = [each for each in logs if each["event"] == "host_key_pinned"]
    assert (event["fingerprint"], event["address"]) == (fingerprint(line), "127.0.0.1")


@pytest.mark.parametrize("policy", ["strict", "off", "accept-new"])
async def test_what_is_known_otherwise_or_not_looked_at_is_not_pinned(
    policy: str, sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"[{sshd.server.host}]:{sshd.server.port} {sshd.server.host_key}\n")
    environ = {"CRONIUM_SSH_HOST_KEYS": policy, "CRONIUM_SSH_KNOWN_HOSTS": str(file)}
    async with running_worker(tmp_path, environ) as rig:
        report = await run(rig, put(rig, sshd.server))

        assert outcome(report) == "success"
        assert pins(rig) == ()


async def test_a_changed_key_is_unreachable_until_it_is_forgotten_beside_the_running_worker(
    fleet: Fleet, tmp_path: Path
) -> None:
    web, db = fleet(2)
    stranger = make_key(tmp_path / "stranger")
    async with running_worker(tmp_path) as rig:
        names = rig.add(web, db)
        HostKeys(rig.database).pin(Pin(web.host, web.port, stranger, 1))

        refused = await run(rig, *names)
        forgotten = await command(rig, tmp_path, "forget", f"{web.host}:{web.port}")
        accepted = await run(rig, *names)

    assert outcomes(refused) == {web.name: ("unreachable", 255), db.name: ("success", 0)}
    for part in (
        fingerprint(stranger),
        fingerprint(web.host_key),
        f"cronium-worker hosts trust {web.host}:{web.port}",
    ):
        assert part in error(refused, web.name)
    assert (forgotten.returncode, forgotten.stdout) == (0, f"{web.host}:{web.port}\n")
    assert outcomes(accepted) == {web.name: ("success", 0), db.name: ("success", 0)}


async def test_the_way_out_that_the_error_names_is_one(sshd: Sshd, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    async with running_worker(tmp_path) as rig:
        name = put(rig, sshd.server)
        HostKeys(rig.database).pin(Pin(sshd.server.host, sshd.server.port, stranger, 1))
        refused = await run(rig, name)
        _, _, way_out = error(refused, name).partition("cronium-worker hosts ")

        done = await command(rig, tmp_path, *way_out.split(), "--yes")
        accepted = await run(rig, name)

    assert done.returncode == 0
    assert f"in the place of {fingerprint(stranger)}" in done.stderr
    assert outcome(accepted) == "success"


# known_hosts


async def test_what_is_revoked_while_the_worker_runs_is_refused_from_then_on(
    sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("# nothing yet\n")
    async with running_worker(tmp_path, {"CRONIUM_SSH_KNOWN_HOSTS": str(file)}) as rig:
        name = put(rig, sshd.server)
        before = await run(rig, name)
        file.write_text(f"@revoked * {sshd.server.host_key}\n")

        after = await run(rig, name)

    assert (outcome(before), outcome(after)) == ("success", "unreachable")
    shown = fingerprint(sshd.server.host_key)
    assert error(after, name) == f"known_hosts revokes the host key {shown}"


async def test_a_file_that_became_unreadable_lets_nobody_in_and_says_which_line(
    sshd: Sshd, tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"[127.0.0.1]:{sshd.server.port} {sshd.server.host_key}\n")
    async with running_worker(tmp_path, {"CRONIUM_SSH_KNOWN_HOSTS": str(file)}) as rig:
        name = put(rig, sshd.server)
        file.write_text("nonsense\n")

        report = await run(rig, name)

    assert outcome(report) == "unreachable"
    assert "CRONIUM_SSH_KNOWN_HOSTS" in error(report, name)
    assert "line 1" in error(report, name)


async def test_off_looks_at_nothing(sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"@revoked * {sshd.server.host_key}\n")
    async with running_worker(tmp_path, {**OFF, "CRONIUM_SSH_KNOWN_HOSTS": str(file)}) as rig:
        HostKeys(rig.database).pin(
            Pin(sshd.server.host, sshd.server.port, make_key(tmp_path / "other"), 1)
        )

        assert outcome(await run(rig, put(rig, sshd.server))) == "success"


def test_a_worker_does_not_start_on_a_file_with_a_line_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("# fine\n@revoke * ssh-ed25519 AAAA\n")

    done = run_forked(
        ["run"],
        {
            "CRONIUM_API_ENDPOINT": "http://127.0.0.1:9",
            "CRONIUM_API_TOKEN": "t0ken",
            "CRONIUM_STATE_DIR": str(tmp_path / "state"),
            "CRONIUM_SSH_KNOWN_HOSTS": str(file),
        },
    )

    assert done.returncode == 2
    assert "CRONIUM_SSH_KNOWN_HOSTS" in done.stderr
    assert "line 2: Invalid known hosts marker: revoke" in done.stderr


async def test_a_plain_name_says_nothing_against_another_port(sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"127.0.0.1 {make_key(tmp_path / 'other')}\n")
    async with running_worker(tmp_path, {"CRONIUM_SSH_KNOWN_HOSTS": str(file)}) as rig:
        report = await run(rig, put(rig, sshd.server))

        assert outcome(report) == "success"
        assert len(pins(rig)) == 1


# The server's entry in the job


@pytest.mark.parametrize("environ", [{}, STRICT, OFF], ids=["accept-new", "strict", "off"])
@pytest.mark.parametrize("form", ["line", "fingerprint", "one of two"])
async def test_a_given_key_is_trusted_under_every_policy_and_pins_nothing(
    form: str, environ: dict[str, str], sshd: Sshd, tmp_path: Path
) -> None:
    shown, other = sshd.server.host_key, make_key(tmp_path / "other")
    host_key = {
        "line": shown,
        "fingerprint": fingerprint(shown),
        "one of two": f"{fingerprint(other)}\n{shown}\n",
    }[form]
    async with running_worker(tmp_path, environ) as rig:
        HostKeys(rig.database).pin(Pin(sshd.server.host, sshd.server.port, other, 1))

        report = await run(rig, put(rig, sshd.server, host_key))

        assert outcome(report) == "success", error(report, sshd.server.name)
        assert [pin.public_key for pin in pins(rig)] == [other]


@pytest.mark.parametrize("environ", [{}, STRICT, OFF], ids=["accept-new", "strict", "off"])
async def test_another_key_than_the_given_one_is_unreachable_and_the_others_go_on(
    environ: dict[str, str], fleet: Fleet, tmp_path: Path
) -> None:
    web, db, mail = fleet(3)
    wanted = make_key(tmp_path / "wanted")
    file = tmp_path / "known_hosts"
    file.write_text("".join(f"[{s.host}]:{s.port} {s.host_key}\n" for s in (web, db, mail)))
    async with running_worker(tmp_path, {**environ, "CRONIUM_SSH_KNOWN_HOSTS": str(file)}) as rig:
        names = [put(rig, web, wanted), put(rig, db, "hunter2"), put(rig, mail)]

        report = await run(rig, *names)

    assert outcomes(report) == {
        web.name: ("unreachable", 255),
        db.name: ("unreachable", 255),
        mail.name: ("success", 0),
    }
    for part in (fingerprint(wanted), fingerprint(web.host_key), "hostKey"):
        assert part in error(report, web.name)
    assert error(report, db.name).startswith("server entry: hostKey: line 1: neither")


@pytest.fixture
def two_keys(tmp_path: Path) -> dict[str, str]:
    """Options for an sshd that has another host key beside its own."""
    make_key(tmp_path / "rsa", "rsa")
    return {"HostKey": str(tmp_path / "rsa")}


@pytest.mark.parametrize("form", ["line", "fingerprint"])
async def test_the_given_key_may_be_any_of_those_that_the_server_has(
    form: str, two_keys: dict[str, str], tmp_path: Path, openssh: None
) -> None:
    line = public(tmp_path / "rsa")
    with open_sshd(tmp_path / "sshd", options=two_keys) as sshd:
        async with running_worker(tmp_path) as rig:
            name = put(rig, sshd.server, line if form == "line" else fingerprint(line))

            report = await run(rig, name)
            again = await run(rig, name)

    assert (outcome(report), outcome(again)) == ("success", "success"), error(report, name)


# Certificates


@pytest.fixture
def authority(tmp_path: Path, openssh: None) -> str:
    return make_key(tmp_path / "authority")


@asynccontextmanager
async def certified(
    tmp_path: Path, lines: str, principals: str, *options: str, policy: str = "strict"
) -> AsyncIterator[tuple[WorkerRig, Sshd]]:
    """A worker, and a server that shows a certificate of its key; `localhost` on any port.

    In `lines`, `<key>` stands for that key: no other key can have it in its base64.
    """
    make_key(tmp_path / "host")
    certificate = certify(
        tmp_path / "authority", tmp_path / "host", *options, principals=principals
    )
    file = tmp_path / "known_hosts"
    file.write_text(lines.replace("<key>", public(tmp_path / "host")))
    shown = {"HostKey": str(tmp_path / "host"), "HostCertificate": str(certificate)}
    environ = {"CRONIUM_SSH_HOST_KEYS": policy, "CRONIUM_SSH_KNOWN_HOSTS": str(file)}
    with open_sshd(tmp_path / "sshd", options=shown) as sshd:
        async with running_worker(tmp_path, environ) as rig:
            put(rig, sshd.server, host="localhost")
            yield rig, sshd


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
@pytest.mark.parametrize("principals", ["localhost", "web,localhost", "local*"])
async def test_a_certificate_of_a_known_authority_is_trusted_and_not_pinned(
    principals: str, policy: str, authority: str, tmp_path: Path
) -> None:
    lines = f"@cert-authority local* {authority}\n"
    async with certified(tmp_path, lines, principals, policy=policy) as (rig, sshd):
        report = await run(rig, sshd.server.name)

        assert outcome(report) == "success", error(report, sshd.server.name)
        assert pins(rig) == ()


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
@pytest.mark.parametrize(
    ("principals", "options", "reason"),
    [
        ("web", (), "its certificate is for web"),
        ("localhost", ("-V", "20200101:20200201"), "certificate expired"),
        ("localhost", ("-V", "20900101:20910201"), "certificate not yet valid"),
    ],
)
async def test_a_certificate_that_does_not_hold_is_unreachable_and_says_why(
    principals: str,
    options: tuple[str, ...],
    reason: str,
    policy: str,
    authority: str,
    tmp_path: Path,
) -> None:
    lines = f"@cert-authority * {authority}\n"
    async with certified(tmp_path, lines, principals, *options, policy=policy) as (rig, sshd):
        report = await run(rig, sshd.server.name)

        assert outcome(report) == "unreachable"
        assert reason in error(report, sshd.server.name)
        assert pins(rig) == ()


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
@pytest.mark.parametrize("revoked", ["<authority>", "<key>"])
async def test_a_revoked_authority_or_key_is_unreachable(
    revoked: str, policy: str, authority: str, tmp_path: Path
) -> None:
    lines = f"@cert-authority * {authority}\n@revoked * {revoked}\n"
    lines = lines.replace("<authority>", authority)
    async with certified(tmp_path, lines, "localhost", policy=policy) as (rig, sshd):
        report = await run(rig, sshd.server.name)

        assert outcome(report) == "unreachable"
        assert "known_hosts revokes" in error(report, sshd.server.name)


async def test_the_key_of_a_certificate_may_be_known_for_itself(
    authority: str, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other_authority")
    lines = f"@cert-authority * {other}\nlocalhost <key>\n"
    async with certified(tmp_path, lines, "localhost") as (rig, sshd):
        report = await run(rig, sshd.server.name)

        assert outcome(report) == "success", error(report, sshd.server.name)


async def test_a_certificate_of_an_unknown_authority_is_no_reason_to_trust(
    authority: str, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other_authority")
    async with certified(tmp_path, f"@cert-authority * {other}\n", "localhost") as (rig, sshd):
        report = await run(rig, sshd.server.name)

        assert outcome(report) == "unreachable"
        assert "is not in known_hosts" in error(report, sshd.server.name)
