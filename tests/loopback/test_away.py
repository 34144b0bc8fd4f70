"""Servers, and resolvers, that take a question and never answer it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.worker_rig import outcomes, running_worker, until
from worker.demo.sshd import LocalServer

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
