"""Every row of the table of outcomes, on a real sshd."""

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
import trio

from tests.conftest import Account
from tests.worker_rig import WorkerRig, entry_of, outcomes, running_worker, until_exists, until_idle
from worker.clock import now_ms
from worker.demo.sshd import LocalServer, Sshd, open_sshd
from worker.queue_server.model import JobReport

Fleet = Callable[[int], tuple[LocalServer, ...]]


def told(report: JobReport, name: str) -> str:
    """What an operator reads of that server."""
    return str(entry_of(report, name)["error"])


async def test_a_script_over_its_limit_is_timed_out_with_its_output_kept(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("echo begun; sleep 60", names, timeout_seconds=1)

    assert outcomes(report) == {names[0]: ("timed_out", 124)}
    assert (report.job.status, report.job.outcome) == ("failed", "timeout")
    assert report.executions[0].output == "begun\n"
    assert told(report, names[0]) == "the script was over its limit of 1 s"


@pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("KILL", 137)])
async def test_death_by_a_signal_is_a_failure_with_its_number(
    signal: str, code: int, sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run(f"kill -{signal} $$", names)

    assert outcomes(report) == {names[0]: ("failed", code)}
    assert told(report, names[0]) == f"the script was ended by signal {code - 128}"


async def test_a_run_over_its_output_limit_is_a_failure_with_137(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path, {"CRONIUM_RUN_MAX_OUTPUT": "1MiB"}) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("while :; do head -c 100000 /dev/zero; sleep 0.01; done", names)

    assert outcomes(report) == {names[0]: ("failed", 137)}
    assert told(report, names[0]) == "the run printed more than its limit of 1048576 bytes"


async def test_a_refused_key_is_unreachable_and_the_other_servers_go_on(
    fleet: Fleet, tmp_path: Path
) -> None:
    good, bad = fleet(2)
    async with running_worker(tmp_path) as rig:
        rig.add(good)
        stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
        rig.add_entry(
            bad.name, host=bad.host, port=bad.port, username=bad.user, private_key=stranger
        )

        with trio.fail_after(60):
            report = await rig.run("true", [good.name, bad.name])

    assert outcomes(report) == {good.name: ("success", 0), bad.name: ("unreachable", 255)}
    assert told(report, bad.name) == f"{bad.user}@{bad.host}:{bad.port} refused the credential"


@pytest.fixture
def black_hole() -> Iterator[tuple[str, int]]:
    """An address that drops every packet that would open a connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


async def test_a_dead_port_and_a_black_hole_are_unreachable(
    spare_port: int, black_hole: tuple[str, int], tmp_path: Path
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    async with running_worker(tmp_path, {"CRONIUM_SETUP_TIMEOUT": "2s"}) as rig:
        rig.add_entry("dead", port=spare_port, private_key=key)
        rig.add_entry("silent", host=black_hole[0], port=black_hole[1], private_key=key)

        with trio.fail_after(60):
            report = await rig.run("true", ["dead", "silent"])

    assert outcomes(report) == {"dead": ("unreachable", 255), "silent": ("unreachable", 255)}
    # Told even where the limit ends the tries.
    assert told(report, "dead").startswith(f"127.0.0.1:{spare_port} refused the connection")
    assert told(report, "silent") == "setup was over its limit of 2 s while connecting"
    assert (report.job.status, report.exit_code) == ("failed", 510)


async def test_a_server_that_is_no_ssh_server_is_unreachable(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    async with running_worker(tmp_path) as rig, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def speak(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        nursery.start_soon(trio.serve_listeners, speak, listeners)
        rig.add_entry("web", port=listeners[0].socket.getsockname()[1], private_key=key)

        with trio.fail_after(60):
            report = await rig.run("true", ["web"])
        nursery.cancel_scope.cancel()

    assert outcomes(report) == {"web": ("unreachable", 255)}


async def test_an_entry_without_a_credential_is_unreachable_and_counted(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        rig.add_entry("bare")

        with trio.fail_after(60):
            report = await rig.run("true", [*names, "bare"])

    assert outcomes(report) == {names[0]: ("success", 0), "bare": ("unreachable", 255)}
    assert "neither a private key nor a password" in told(report, "bare")


async def test_a_host_that_shows_another_key_is_refused_with_both_fingerprints(
    tmp_path: Path, openssh: None
) -> None:
    async with running_worker(tmp_path) as rig:
        with trio.fail_after(60):
            with open_sshd(tmp_path / "first") as first:
                names = rig.add(first.server)
                await rig.run("true", names)
                port, pinned = first.server.port, first.server.host_key
            with open_sshd(tmp_path / "second", port=port) as second:
                rig.add(second.server)
                report = await rig.run("true", names)
                offered = second.server.host_key

    assert outcomes(report) == {names[0]: ("unreachable", 255)}
    for line in (pinned, offered):
        assert asyncssh.import_public_key(line).get_fingerprint() in told(report, names[0])


async def test_strict_host_keys_take_only_what_known_hosts_has(
    fleet: Fleet, tmp_path: Path
) -> None:
    known, unknown = fleet(2)
    file = tmp_path / "known_hosts"
    file.write_text(f"[{known.host}]:{known.port} {known.host_key}\n")
    environ = {"CRONIUM_SSH_HOST_KEYS": "strict", "CRONIUM_SSH_KNOWN_HOSTS": str(file)}
    async with running_worker(tmp_path, environ) as rig:
        names = rig.add(known, unknown)

        with trio.fail_after(60):
            report = await rig.run("true", names)

    assert outcomes(report) == {known.name: ("success", 0), unknown.name: ("unreachable", 255)}
    assert "is not in known_hosts" in told(report, unknown.name)


async def test_a_root_that_is_a_link_is_not_deployed_to(sshd: Sshd, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = sshd.server.home / ".cache"
    cache.mkdir()
    (cache / "cronium").symlink_to(elsewhere)
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("true", names)

    assert outcomes(report) == {names[0]: ("not_deployed", 126)}
    assert "is a link" in told(report, names[0])
    assert list(elsewhere.iterdir()) == []


async def test_a_home_that_cannot_be_written_is_no_obstacle(sshd: Sshd, tmp_path: Path) -> None:
    (sshd.server.home / ".cache").write_text("a file in the place of the directory")
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("echo hello", names)
            # What it leaves there, it would leave to the whole machine.
            await until_idle(rig)

    assert report.executions[0].output == "hello\n"


async def test_a_shell_that_refuses_commands_is_not_deployed(tmp_path: Path, openssh: None) -> None:
    with open_sshd(tmp_path / "sshd", options={"ForceCommand": "echo go away; exit 1"}) as sshd:
        async with running_worker(tmp_path) as rig:
            names = rig.add(sshd.server)

            with trio.fail_after(60):
                report = await rig.run("true", names)

    assert outcomes(report) == {names[0]: ("not_deployed", 126)}
    assert "go away" in told(report, names[0])


@pytest.mark.parametrize("place", ["runs", "rooms"])
async def test_a_run_whose_claim_or_spool_is_deleted_is_lost_with_the_output_received(
    place: str, sshd: Sshd, tmp_path: Path
) -> None:
    mark = tmp_path / "started"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(f"echo begun; touch {mark}; sleep 30", names)
            await until_exists(mark)
            await _printed(rig, job_id)

            shutil.rmtree(sshd.server.home / ".cache" / "cronium" / place)
            sshd.kill_sessions()
            report = await rig.finished(job_id)

    assert outcomes(report) == {names[0]: ("lost", 125)}
    assert report.executions[0].output == "begun\n"


async def test_a_run_that_was_forgotten_is_not_started_again(sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "starts"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        await rig.run("true", names)
        with trio.fail_after(60):
            job_id = rig.submit(f"echo x >>{mark}", names, at=now_ms() + 500)
            server_id = rig.queue.store.report(job_id).job.payload["target"]["serverId"]
            forgotten = sshd.server.home / ".cache" / "cronium" / "forgotten"
            forgotten.mkdir(exist_ok=True)
            (forgotten / f"exec_{job_id}_{server_id}_0").touch()

            report = await rig.finished(job_id)

    assert outcomes(report) == {names[0]: ("lost", 125)}
    assert "forgotten" in told(report, names[0])
    assert not mark.exists()


async def test_a_connection_that_is_cut_costs_not_one_byte(sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "lines"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(
                f"for i in $(seq 100); do echo line $i; echo . >>{mark}; sleep 0.02; done", names
            )
            for _ in range(3):
                await until_exists(mark)
                await trio.sleep(0.3)
                sshd.kill_sessions()
            report = await rig.finished(job_id)

    assert report.executions[0].output == "".join(f"line {i}\n" for i in range(1, 101))
    assert mark.read_text() == ".\n" * 100


async def test_password_authentication(
    password_account: Account, open_path: Path, tmp_path: Path
) -> None:
    options = {"PasswordAuthentication": "yes"}
    name = password_account.name
    with open_sshd(open_path / "sshd", user=name, options=options) as sshd:
        async with running_worker(tmp_path) as rig:
            entry = {"host": sshd.server.host, "port": sshd.server.port, "username": name}
            rig.add_entry("right", **entry, password=password_account.password)  # type: ignore[arg-type]  # a plain dict of mixed values
            rig.add_entry("wrong", **entry, password="wrong")  # type: ignore[arg-type]

            with trio.fail_after(60):
                right = await rig.run("id -un", ["right"])
                wrong = await rig.run("id -un", ["wrong"])

    assert right.executions[0].output == f"{name}\n"
    assert outcomes(wrong) == {"wrong": ("unreachable", 255)}


async def test_a_key_with_a_passphrase(sshd: Sshd, tmp_path: Path) -> None:
    server = sshd.server
    key = asyncssh.import_private_key(server.private_key)
    locked = key.export_private_key(passphrase="open sesame").decode()
    async with running_worker(tmp_path) as rig:
        entry = {"host": server.host, "port": server.port, "username": server.user}
        rig.add_entry("right", **entry, private_key=locked, passphrase="open sesame")  # type: ignore[arg-type]  # a plain dict of mixed values
        rig.add_entry("wrong", **entry, private_key=locked, passphrase="close")  # type: ignore[arg-type]
        rig.add_entry("none", **entry, private_key=locked)  # type: ignore[arg-type]

        with trio.fail_after(60):
            report = await rig.run("true", ["right", "wrong", "none"])

    assert outcomes(report) == {
        "right": ("success", 0),
        "wrong": ("unreachable", 255),
        "none": ("unreachable", 255),
    }
    assert told(report, "wrong") == "the private key's passphrase is wrong"
    assert told(report, "none") == "the private key needs a passphrase"


@pytest.mark.parametrize("shell", ["fish", "csh", "zsh", "dash", "busybox sh", "mksh", "yash"])
async def test_any_login_shell_will_do(shell: str, tmp_path: Path, openssh: None) -> None:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"there is no {shell} here")
    with open_sshd(tmp_path / "sshd", login_shell=shell) as sshd:
        async with running_worker(tmp_path) as rig:
            names = rig.add(sshd.server)

            with trio.fail_after(60):
                report = await rig.run('echo "it works"; exit 3', names)

    assert outcomes(report) == {names[0]: ("failed", 3)}
    assert report.executions[0].output == "it works\n"


async def test_start_up_files_may_print_what_they_like(sshd: Sshd, tmp_path: Path) -> None:
    (sshd.server.home / ".bashrc").write_text(
        "echo Welcome; echo; printf 'cronium h deadbeef 1 0123456789ab\\n'; printf 'no newline'\n"
    )
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("echo hello", names)

    assert report.executions[0].output == "hello\n"


async def _printed(rig: WorkerRig, job_id: str) -> None:
    """Until the worker has announced the run, a second after its start: it has its output then."""
    while {row.status for row in rig.queue.store.report(job_id).executions} != {"running"}:
        await trio.sleep(0.02)
