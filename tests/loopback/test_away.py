"""Servers, and resolvers, that take a question and never answer it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from tests.faults.door import reset
from tests.worker_rig import (
    drop_connections,
    entry_of,
    outcomes,
    running_worker,
    until,
    until_exists,
    until_idle,
)
from worker.demo.sshd import LocalServer, Sshd, open_sshd
from worker.dispatch.setup import START_ATTEMPTS
from worker.remote import connection

Fleet = Callable[[int], tuple[LocalServer, ...]]


@contextmanager
def unanswered_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names below `.example`, as they are asked for: nobody answers that before the end."""
    asked: list[str] = []
    is_over = threading.Event()
    ask = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401  as the system has it
        if str(host).endswith(".example"):
            asked.append(host)
            is_over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return ask(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield asked
    finally:
        is_over.set()


async def test_names_that_no_resolver_answers_hold_up_no_other_server(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = int(trio.to_thread.current_default_thread_limiter().total_tokens)
    nowhere = [f"web-{number}.example" for number in range(threads + 5)]
    async with running_worker(tmp_path) as rig:
        names = rig.add(*fleet(1))
        for name in nowhere:
            rig.add_entry(name, host=name, password="wrong")
        with unanswered_names(monkeypatch) as asked:
            rig.submit("true", nowhere)
            await until(lambda: len(asked) >= threads)
            with trio.fail_after(10):
                report = await rig.run("true", names)

    assert outcomes(report) == {names[0]: ("success", 0)}


async def serve_all_but(
    muted: int, server: LocalServer, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """A way to `server` that takes one connection, of this number, and never says a word on it."""
    count = 0

    async def visit(client: trio.SocketStream) -> None:
        nonlocal count
        count += 1
        if count == muted:
            await trio.sleep_forever()
        there = await trio.open_tcp_stream(server.host, server.port)
        async with client, there, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, client, there)
            nursery.start_soon(pass_on, there, client)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listener.socket.getsockname()[1])
    await trio.serve_listeners(visit, [listener])


async def pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)
    await source.aclose()
    await sink.aclose()


async def test_a_login_that_is_never_answered_does_not_keep_a_run_from_being_heard_of(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LOGIN_SECONDS", 1.0)
    begun = tmp_path / "begun"
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_all_but, 2, sshd.server)
        async with running_worker(tmp_path) as rig:
            user, key = sshd.server.user, sshd.server.private_key
            rig.add_entry("web", port=port, username=user, private_key=key)
            with trio.fail_after(25):
                job = rig.submit(f"echo one; touch {begun}; sleep 1; echo two", ["web"])
                await until_exists(begun)
                drop_connections(rig)
                report = await rig.finished(job)
        nursery.cancel_scope.cancel()

    assert outcomes(report) == {"web": ("success", 0)}
    assert [row.output for row in report.executions] == ["one\ntwo\n"]


class Firewall:
    """A way to `server` on which a firewall that was restarted knows nothing of older connections:
    each is reset when something comes over it."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self.count = self.unknown = 0

    def restart(self) -> None:
        self.unknown = self.count

    async def serve(self, task_status: trio.TaskStatus[int]) -> NoReturn:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(self._visit, [listener])

    async def _visit(self, client: trio.SocketStream) -> None:
        self.count += 1
        number = self.count
        there = await trio.open_tcp_stream(self._server.host, self._server.port)
        async with client, there, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, there, client)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for data in client:
                    if number <= self.unknown:
                        reset(client)
                        break
                    await there.send_all(data)
            nursery.cancel_scope.cancel()


async def test_however_many_kept_connections_have_died_a_job_gets_a_new_one(
    openssh: None, tmp_path: Path
) -> None:
    most = {"MaxSessions": "1"}  # so that each run has a connection to itself
    with open_sshd(tmp_path / "sshd", options=most) as sshd:
        firewall = Firewall(sshd.server)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(firewall.serve)
            # No run waits on them: a start over one that does would be tried until the setup limit.
            async with running_worker(tmp_path, {"CRONIUM_RUNNER_VERIFY_AFTER": "0s"}) as rig:
                user, key = sshd.server.user, sshd.server.private_key
                rig.add_entry("web", port=port, username=user, private_key=key)
                with trio.fail_after(40):
                    for job in [rig.submit("sleep 2", ["web"]) for _ in range(5)]:
                        await rig.finished(job)
                    await until_idle(rig)
                    kept = rig.service._pool.now.idle
                    firewall.restart()
                    report = await rig.run("echo done", ["web"])
            nursery.cancel_scope.cancel()

    assert kept > START_ATTEMPTS
    assert outcomes(report) == {"web": ("success", 0)}, entry_of(report, "web")["error"]


async def test_a_resolver_that_is_away_for_a_moment_costs_no_execution(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = fleet(1)
    ask = socket.getaddrinfo
    failures = iter(range(2))

    def look_up(host: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401  as the system has it
        if host != "web.example":
            return ask(host, *rest, **named)
        if next(failures, None) is not None:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return ask(server.host, *rest, **named)

    async with running_worker(tmp_path) as rig:
        rig.add_entry(
            "web",
            host="web.example",
            port=server.port,
            username=server.user,
            private_key=server.private_key,
        )
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with trio.fail_after(20):
            report = await rig.run("true", ["web"])

    assert outcomes(report) == {"web": ("success", 0)}, entry_of(report, "web")["error"]
