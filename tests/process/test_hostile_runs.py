"""What others have prepared on a server, and names that mean harm."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    Server,
    message,
    new_id,
    payload,
    serving,
    wait_until,
)
from worker.api.wire import BadJob, JobBody, decode_claim
from worker.dispatch.plan import Plan, plan_job
from worker.remote.payload import Payload, run_message

SOMEBODY = 12345
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as somebody else")


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        yield one


# Roots and run directories of others


def a_prepared_run(root: Path) -> str:
    """One that looks as if it had ended well, with somebody's words in it."""
    run_id = new_id()
    run = root / "rooms" / "1-x"
    (run / "calls").mkdir(parents=True)
    (root / "runs").mkdir()
    (root / "runs" / run_id).write_text("1-x\n")
    (run / f"for.{run_id}").write_text("1.1.boot.1-x\n")
    (run / "exit.0.exit.1.1").touch()
    (run / "out").write_text("forged\n")
    (run / "err").write_text("")
    # Whoever served it by this would run what another wrote.
    (run / "artifact").write_text("0123456789ab\n")
    (root / "runner-0123456789ab").write_text("touch $HOME/pwned; echo pwned\n")
    return run_id


def listing(place: Path) -> list[tuple[str, int, int, float]]:
    """All that is there, and when it was changed."""
    found = ((path, path.lstat()) for path in sorted([place, *place.rglob("*")]))
    return [(str(path), info.st_mode, info.st_uid, info.st_mtime) for path, info in found]


@pytest.mark.parametrize("kind", ["link", pytest.param("another's", marks=as_root)])
def test_no_verb_reads_or_writes_a_root_that_another_has_prepared(
    kind: str, server: Server
) -> None:
    run_id = a_prepared_run(server.root)
    elsewhere = server.home / "elsewhere"
    if kind == "link":
        server.root.rename(elsewhere)
        server.root.symlink_to(elsewhere)
    else:
        for path in (server.root, *server.root.rglob("*")):
            os.lchown(path, SOMEBODY, SOMEBODY)
        elsewhere = server.root
    before = listing(elsewhere)

    attached = server.ask("attach", run_id, "0", "0")
    signalled = server.ask("signal", run_id, "cancel")
    answered = server.ask("answer", run_id, "call", "0")
    listed = server.ask("list")
    started = server.call("run")
    started.send(message(run_id, payload(b"touch $HOME/pwned")))

    assert (attached[0], signalled[0], answered[0]) == (66, 66, 66)
    assert attached[1].out == b""
    assert not any("pwned" in head or run_id in head for head in listed[1].heads)
    assert started.finish() == 69
    assert "refused" in started.complaint
    assert listing(elsewhere) == before
    assert not (server.home / "pwned").exists()


@as_root
@pytest.mark.parametrize("link", ["runs", "runs/ID", "rooms"])
def test_nothing_is_written_through_a_link_in_a_root_that_was_open_to_all(
    link: str, dash: Server
) -> None:
    run_id = new_id()
    trap = dash.home / "trap"
    trap.mkdir()
    os.chown(trap, SOMEBODY, SOMEBODY)
    dash.root.chmod(0o777)
    planted = dash.root / link.replace("ID", run_id)
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(trap)
    os.lchown(planted, SOMEBODY, SOMEBODY)

    call = dash.call("run")
    call.send(message(run_id, payload(b"touch $HOME/pwned")))

    assert call.finish() == 69
    assert list(trap.iterdir()) == []
    assert not (dash.home / "pwned").exists()


def test_nobody_else_can_look_into_a_run(dash: Server) -> None:
    run_id = new_id()
    old = os.umask(0)
    try:
        dash.root.chmod(0o700)
        gate = dash.home / "gate"
        os.mkfifo(gate)
        call = dash.start(run_id, payload(b'echo hello; cat "$HOME/gate"'))
        wait_until(lambda: (dash.directory(run_id) / "out").stat().st_size, "it has printed")
        modes = {
            stat.S_IMODE(path.stat().st_mode) & 0o077
            for path in dash.directory(run_id).rglob("*")
            if not path.is_symlink()
        }
        gate.write_bytes(b"")
        call.finish()
    finally:
        os.umask(old)

    assert modes == {0}


# Names

HOSTILE = (
    "../../x", "..", "-rf", "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", 'a"b', "a b",
    "a\nb", "a\\", "*", "~root", "\x1b[2J", "x" * 300, "日本", "/etc/passwd", "exec_1_2_0",
)  # fmt: skip
HOSTILE_IDS = [name for name in HOSTILE if name not in ("-rf", "exec_1_2_0")]


# An id that begins with a dash is one: it never stands without `exec_` or a path before it.
@pytest.mark.parametrize("run_id", [*HOSTILE_IDS, ".", "a/b"])
def test_a_run_whose_id_means_harm_is_refused_by_every_verb(run_id: str, dash: Server) -> None:
    before = listing(dash.home)
    call = dash.call("run")
    call.send(message(run_id, payload(b"touch $HOME/pwned")))

    assert call.finish() == 64
    for arguments in (
        ("attach", run_id, "0", "0"),
        ("signal", run_id, "cancel"),
        ("answer", run_id, "call", "0"),
        ("forget", run_id),
    ):
        status, asked = dash.ask(*arguments)
        assert status == 64, arguments
        assert asked.out == b""
    assert listing(dash.home) == before


def claimed(**server: object) -> Plan:
    """What is made of a claim with such a server."""
    details = {"id": "1", "host": "web", "username": "deploy", "password": "x", **server}
    job = {
        "id": "job_1",
        "type": "ssh",
        "execution": {
            "target": {"type": "server", "serverDetails": details},
            "script": {"type": "BASH", "content": SHOW},
        },
    }
    (body,) = decode_claim(json.dumps({"jobs": [job]}).encode())
    assert isinstance(body, JobBody), body
    return plan_job(body, sealing_key=None, max_execution_seconds=60)


SHOW = 'printf "%s|%s|%s" "$CRONIUM_SERVER_NAME" "$CRONIUM_SERVER_ID" "$CRONIUM_EXECUTION_ID"'


@pytest.mark.parametrize("name", HOSTILE)
def test_a_server_whose_name_or_id_means_harm_is_only_called_so(name: str, dash: Server) -> None:
    plan = claimed(id=name, name=name)
    (execution,) = plan.executions
    payload = Payload(
        interpreter=plan.interpreter,
        script=plan.script,
        environment=plan.environment_of(execution),
        directory=plan.directory,
        input=plan.input,
        output_limit_bytes=1 << 20,
    )

    call = dash.call("run")
    call.send(run_message(execution.id, 60, payload).data)

    assert call.finish() == 0
    shown, server_id, run_id = call.out.decode().split("|")
    assert server_id == name
    assert shown == "".join(each if each.isprintable() else "?" for each in name)[:100]
    assert run_id == execution.id
    assert dash.directory(execution.id).parent == dash.root / "rooms"
    assert [path.name for path in (dash.root / "runs").iterdir()] == [execution.id]
    # Else it is walked through while the payload is removed.
    wait_until(lambda: not dash.supervisors(), "it has left")
    assert list(dash.home.rglob("pwned")) == []


@pytest.mark.parametrize("job_id", HOSTILE_IDS)
def test_a_job_whose_id_means_harm_is_none(job_id: str) -> None:
    job = {
        "id": job_id,
        "type": "ssh",
        "execution": {"target": {}, "script": {"type": "BASH", "content": ""}},
    }

    (body,) = decode_claim(json.dumps({"jobs": [job]}).encode())

    assert isinstance(body, BadJob)
    assert body.id is None
    assert "$.id" in body.fault
