"""The commands `history` and `show`, beside a worker that ran real jobs."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from tests.worker_rig import WorkerRig, running_worker, until_exists, until_idle
from worker.cli import main
from worker.clock import now_ms
from worker.demo.sshd import LocalServer, Sshd
from worker.shown.names import folded as folded_names
from worker.state.directory import open_state

Fleet = Callable[[int], tuple[LocalServer, ...]]


def command(state: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments, env={"CRONIUM_STATE_DIR": str(state)})
    assert result.exit_code == code, result.output
    return result


async def test_a_past_job_is_told_of_in_each_form(fleet: Fleet, tmp_path: Path) -> None:
    servers = fleet(4)
    state = tmp_path / "state"
    async with running_worker(tmp_path) as rig:
        names = rig.add(*servers)
        odd = names[3]
        with trio.fail_after(60):
            report = await rig.run(
                f'echo one; echo two; echo three; echo "key $TOKEN"; '
                f'[ "$CRONIUM_SERVER_NAME" != {odd} ] || {{ echo "\033[2Jodd" >&2; exit 7; }}',
                names,
                environment={"TOKEN": "s3cret-of-the-job"},
            )
            await until_idle(rig)

            # Beside the worker, which has its state open.
            listed = json.loads(command(state, "history", "--failed", "--json").stdout)
            table = command(state, "history").stdout
            shown = command(state, "show", report.job.id).stdout
            told = json.loads(command(state, "show", report.job.id, "--json").stdout)
            folded = command(state, "show", report.job.id, "--fold").stdout
            one = command(state, "show", report.job.id, "--output", odd)
            every = command(state, "show", report.job.id, "--output")

    assert listed == [
        {
            "job_id": report.job.id,
            "event": "test",
            "status": "completed",
            "exit_code": 7,
            "message": report.message,
            "began_at": listed[0]["began_at"],
            "ended_at": listed[0]["ended_at"],
            "servers": listed[0]["servers"],
        }
    ]
    assert sorted(listed[0]["servers"]) == sorted(names)
    assert report.job.id in table
    for word in (report.message, "failed", "the script exited with 7", "█", odd):
        assert word in shown
    assert {each["server"]: each["exit_code"] for each in told["executions"]} == {
        name: 7 if name == odd else 0 for name in names
    }
    assert "s3cret-of-the-job" not in folded
    assert folded.splitlines() == [
        f"{folded_names(names[:3])} (3):",
        "one", "two", "three", "key ***",
        f"{odd} (1), unlike {folded_names(names[:3])}:",
        "@@ -4 +4,3 @@",
        " key ***",
        "+--- stderr ---",
        "+\\x1b[2Jodd",
    ]  # fmt: skip
    assert one.stdout == "one\ntwo\nthree\nkey ***\n"
    assert one.stderr == "\033[2Jodd\n"
    assert every.stdout.splitlines()[0] == f"[{names[0]}] one"


async def test_a_running_job_names_the_servers_that_have_not_ended(
    sshd: Sshd, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    async with running_worker(tmp_path, {"CRONIUM_CANCEL_POLL": "1s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(f"touch {begun}; exec sleep 60", names)
            await until_exists(begun)

            shown = command(tmp_path / "state", "show", job_id).stdout
            listed = json.loads(command(tmp_path / "state", "history", "--json").stdout)

            rig.queue.store.cancel(job_id, now_ms())
            await rig.finished(job_id)

    assert f"running: {names[0]}" in shown
    assert (listed[0]["status"], listed[0]["ended_at"]) == ("running", None)


async def test_a_job_that_was_refused_says_why(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as rig:
        rig.add_entry("web-1", private_key="x")
        with trio.fail_after(60):
            report = await rig.run("true", ["web-1"], directory="a\nb")
            await until_idle(rig)
        shown = command(tmp_path / "state", "show", report.job.id).stdout

    assert "execution.script.workingDirectory: holds a NUL or a line break" in shown


async def _job(rig: WorkerRig, names: list[str]) -> str:
    with trio.fail_after(60):
        report = await rig.run("echo hello", names)
        await until_idle(rig)
    return report.job.id


async def test_no_output_is_kept_where_none_is_to_be(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path, {"CRONIUM_HISTORY_OUTPUT": "0"}) as rig:
        job_id = await _job(rig, rig.add(sshd.server))
        result = command(tmp_path / "state", "show", job_id, "--output")

    assert result.stdout == ""
    assert "no output" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "job_none"], 1, "job_none: this worker's state has no such job"),
        (["show", "job_none", "web-1"], 2, "SERVER goes with --output"),
        (["show", "job_none", "web-1", "--fold"], 2, "--output"),
        (["history", "--limit", "0"], 2, "--limit"),
    ],
)
def test_what_cannot_be_shown_fails_with_the_reason(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    with open_state(tmp_path):
        assert said in command(tmp_path, *arguments, code=code).stderr


def test_a_directory_without_a_state_is_a_fault(tmp_path: Path) -> None:
    assert "there is no state.db" in command(tmp_path, "history", code=2).stderr


async def test_history_costs_no_commit_of_its_own(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        statements: list[str] = []
        connection: sqlite3.Connection = rig.database._connection
        await _job(rig, names)
        connection.set_trace_callback(statements.append)
        await _job(rig, names)
        connection.set_trace_callback(None)

    transactions = " ".join(statements).split("BEGIN IMMEDIATE")
    with_output = [each for each in transactions if "INSERT INTO outputs" in each]
    assert len(with_output) == 1
    assert "INSERT OR REPLACE INTO executions" in with_output[0]
    assert "INSERT INTO outbox" in with_output[0]
