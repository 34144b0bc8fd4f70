"""The main job, end to end: queue, worker, real sshd."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from tests.worker_rig import entry_of, outcomes, running_worker, until_exists, worker_on
from worker.api.client import QueueClient
from worker.api.wire import RowBody
from worker.demo.sshd import LocalServer, Sshd
from worker.queue_server.model import ScriptType

Fleet = Callable[[int], tuple[LocalServer, ...]]

MIB = 1024 * 1024


async def test_one_job_on_three_servers_is_a_partial_success_when_one_fails(
    fleet: Fleet, tmp_path: Path
) -> None:
    servers = fleet(3)
    async with running_worker(tmp_path) as rig:
        names = rig.add(*servers)

        with trio.fail_after(60):
            report = await rig.run(
                f'echo "to stdout on $CRONIUM_SERVER_NAME"; echo "to stderr" >&2; '
                f'[ "$CRONIUM_SERVER_NAME" != {names[1]} ] || exit 7',
                names,
            )

    message = f"PARTIAL SUCCESS: 2 of 3 servers succeeded (failed: {names[1]} exit 7)"
    assert report.job.status == "completed"
    assert report.exit_code == 7
    assert report.message == message
    assert outcomes(report) == {
        names[0]: ("success", 0),
        names[1]: ("failed", 7),
        names[2]: ("success", 0),
    }
    lines = report.stdout.splitlines()
    assert sorted(lines[:-1]) == sorted(f"[{name}] to stdout on {name}" for name in names)
    assert lines[-1] == f"[cronium] {message}"
    assert report.stderr.splitlines()[0] == f"[cronium] {message}"
    assert {row.status for row in report.executions} == {"COMPLETED", "FAILED"}
    assert all(row.completed_at is None for row in report.executions)


async def test_a_job_on_one_server_takes_the_same_way(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("echo hello", names)

    assert (report.job.status, report.exit_code) == ("completed", 0)
    assert report.stdout == f"[{names[0]}] hello\n[cronium] SUCCESS: 1 of 1 servers succeeded\n"
    assert report.stderr == ""
    (row,) = report.executions
    assert row.id == f"exec_{report.job.id}_{row.server_id}_0"
    assert (row.output, row.exit_code) == ("hello\n", 0)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (ScriptType.BASH, 'echo "$GREETING ${BASH_VERSION:+bash}"'),
        (ScriptType.PYTHON, "import os, sys; print(os.environ['GREETING'], 'python')"),
        (ScriptType.NODEJS, "console.log(process.env.GREETING, 'node')"),
    ],
)
async def test_bash_python_and_node_scripts_run(
    kind: ScriptType, content: str, sshd: Sshd, tmp_path: Path
) -> None:
    greeting = 'it\'s "quoted" $(not run)\nand `ünïcode` \\n'
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run(content, names, kind=kind, environment={"GREETING": greeting})

    word = {ScriptType.PYTHON: "python", ScriptType.NODEJS: "node"}.get(kind, "bash")
    assert report.executions[0].output == f"{greeting} {word}\n"


async def test_the_script_is_told_where_it_runs_and_gets_its_input(
    sshd: Sshd, tmp_path: Path
) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run(
                "import json, os\n"
                "names = 'JOB_ID EXECUTION_ID EVENT_ID SERVER_ID SERVER_NAME WORK_DIR'.split()\n"
                "print(json.dumps([[os.environ['CRONIUM_' + n] for n in names], os.getcwd(),\n"
                "    json.load(open(os.environ['CRONIUM_INPUT_FILE']))]))",
                names,
                kind=ScriptType.PYTHON,
                directory=str(directory),
                input_data={"answer": [42]},
            )

    (row,) = report.executions
    assert row.output is not None
    told, cwd, given = json.loads(row.output)
    assert told == [
        report.job.id, row.id, str(report.job.event_id), str(row.server_id), names[0],
        str(directory),
    ]  # fmt: skip
    assert cwd == str(directory)
    assert given == {"answer": [42]}


@pytest.mark.parametrize(
    ("printed", "reported"),
    [
        ("printf 'no newline'", "no newline"),
        (r"printf '\377\376 broken \303\050'", "�� broken �("),
        (r"printf 'a\000b\n'", "ab\n"),
        (r"printf 'progress 1\rprogress 2\n\n\n'", "progress 1\rprogress 2\n\n\n"),
        ("true", ""),
    ],
)
async def test_output_is_byte_exact_but_for_what_the_api_cannot_take(
    printed: str, reported: str, sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run(printed, names)

    assert report.executions[0].output == reported


async def test_a_line_of_10_mb_is_reported_as_its_first_and_last_half(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run(
                "printf start; head -c 10000000 /dev/zero | tr '\\000' x; echo end", names
            )

    output = report.executions[0].output
    assert output is not None
    left_out = 10_000_009 - MIB
    marker = f"\n[cronium] ... {left_out} bytes left out ...\n"
    assert output == "start" + "x" * (MIB // 2 - 5) + marker + "x" * (MIB // 2 - 4) + "end\n"
    assert report.stdout.startswith(f"[{names[0]}] startxxx")


async def test_the_two_streams_stay_apart(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run("for i in 1 2 3; do echo out$i; echo err$i >&2; done", names)

    name = names[0]
    assert report.stdout.startswith(f"[{name}] out1\n[{name}] out2\n[{name}] out3\n")
    assert report.stderr == f"[{name}] err1\n[{name}] err2\n[{name}] err3\n"


async def test_fifty_servers_in_one_job(fleet: Fleet, tmp_path: Path) -> None:
    servers = fleet(50)
    async with running_worker(tmp_path) as rig:
        names = rig.add(*servers)

        with trio.fail_after(120):
            report = await rig.run('echo "$CRONIUM_SERVER_NAME"', names)

    assert report.message == "SUCCESS: 50 of 50 servers succeeded"
    assert {row.output for row in report.executions} == {f"{name}\n" for name in names}


async def test_a_known_server_is_not_deployed_to_again_even_by_a_worker_started_anew(
    sshd: Sshd, tmp_path: Path
) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            first = await rig.run("true", names)
            second = await rig.run("true", names)

    async with running_worker(tmp_path) as anew:
        with trio.fail_after(60):
            third = await anew.run("true", names)

    sources = [entry_of(report, names[0])["runner"] for report in (first, second, third)]
    assert sources == ["deployed", "cached", "cached"]


async def test_jobs_at_once_on_one_server_deploy_once(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        ids = [rig.submit("true", names) for _ in range(5)]
        reports = []
        with trio.fail_after(60):
            await trio.lowlevel.checkpoint()
            for job_id in ids:
                reports.append(await rig.finished(job_id))  # noqa: PERF401  a comprehension hides the wait from the linter

    sources = [entry_of(report, names[0])["runner"] for report in reports]
    assert sorted(map(str, sources)) == ["cached"] * 4 + ["deployed"]


async def test_a_runner_that_was_deleted_or_changed_is_deployed_again(
    sshd: Sshd, tmp_path: Path
) -> None:
    root = sshd.server.home / ".cache" / "cronium"
    environ = {"CRONIUM_RUNNER_VERIFY_AFTER": "0"}
    async with running_worker(tmp_path, environ) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            await rig.run("true", names)
            (artifact,) = root.glob("runner-*")

            artifact.unlink()
            deleted = await rig.run("echo deleted", names)
            artifact.write_text(artifact.read_text() + "# changed\n")
            changed = await rig.run("echo changed", names)

    assert deleted.executions[0].output == "deleted\n"
    assert changed.executions[0].output == "changed\n"
    assert "# changed" not in artifact.read_text()


async def test_nothing_is_left_once_a_job_was_reported(sshd: Sshd, tmp_path: Path) -> None:
    root = sshd.server.home / ".cache" / "cronium"
    async with running_worker(tmp_path, {"CRONIUM_SSH_IDLE_TIMEOUT": "0s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            report = await rig.run("echo hello", names)

            while list((root / "runs").iterdir()):
                await trio.sleep(0.02)
            while sshd.processes():
                await trio.sleep(0.02)

        assert [file.name for file in (root / "forgotten").iterdir()] == [report.executions[0].id]
        assert rig.rows("SELECT * FROM outbox") == []


async def test_a_malformed_job_fails_alone_with_the_field_named(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            bad = rig.submit("true", names, environment={"NOT-A-NAME": "x"})
            good = rig.submit("true", names)
            failed, succeeded = await rig.finished(bad), await rig.finished(good)

    assert failed.job.status == "failed"
    assert "execution.environment: 'NOT-A-NAME' is not a variable name" in failed.stderr
    assert succeeded.job.status == "completed"


async def test_sealed_environment_values_are_opened_with_the_operators_key(
    sshd: Sshd, tmp_path: Path
) -> None:
    environ = {"CRONIUM_ENCRYPTION_KEY": os.urandom(32).hex()}
    async with running_worker(tmp_path, environ) as rig:
        names = rig.add(sshd.server)

        with trio.fail_after(60):
            report = await rig.run(
                'echo "$SEALED $SEALED" | tr "[:lower:] " "[:upper:]-"; echo "$SEALED"',
                names,
                environment={"SEALED": "plain text"},
            )

    assert report.executions[0].output == "PLAIN-TEXT-PLAIN-TEXT\n***\n"


async def test_a_cancelled_job_ends_its_runs_and_keeps_what_they_printed(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.service.HEARTBEAT_SECONDS", 0.1)
    mark = tmp_path / "started"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(f"echo begun; touch {mark}; sleep 600", names)
            await until_exists(mark)

            rig.queue.store.cancel(job_id, 0)
            report = await rig.finished(job_id)

    assert report.job.status == "cancelled"
    assert outcomes(report) == {names[0]: ("cancelled", 130)}
    assert report.executions[0].output == "begun\n"


async def test_a_job_that_the_drain_cuts_short_goes_back_to_the_queue_and_its_run_goes_on(
    sshd: Sshd, tmp_path: Path
) -> None:
    mark, go = tmp_path / "started", tmp_path / "go"
    async with running_worker(tmp_path) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(
                f"echo x >>{mark}; echo before; until [ -e {go} ]; do sleep 0.05; done; echo after",
                names,
            )
            await until_exists(mark)
            rig.drain.set()
            await rig.until(job_id, "queued")
            go.touch()

            async with worker_on(rig.queue, tmp_path / "state-2") as second:
                report = await second.finished(job_id)

    assert report.executions[0].output == "before\nafter\n"
    assert mark.read_text() == "x\n"


async def test_a_row_shows_what_its_script_prints_while_it_runs(sshd: Sshd, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo first; echo oops >&2; until [ -e {go} ]; do sleep 0.05; done; echo last"
    async with running_worker(tmp_path, {"CRONIUM_LIVE_OUTPUT": "1s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit(script, names)
            while not (rows := rig.queue.store.report(job_id).executions) or not rows[0].output:
                await trio.sleep(0.05)
            during = rig.queue.store.report(job_id)
            go.touch()
            after = await rig.finished(job_id)

    assert during.executions[0].output == "first\n\n--- STDERR ---\noops\n"
    assert during.executions[0].status == "running"
    assert during.job.status == "running"
    assert after.executions[0].output == "first\nlast\n\n--- STDERR ---\noops\n"
    assert after.executions[0].status == "COMPLETED"


async def test_live_output_never_comes_after_the_final_row_nor_holds_up_the_job(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    put_rows, complete = QueueClient.put_rows, QueueClient.complete

    async def slow_live(
        self: QueueClient, job_id: str, rows: Sequence[RowBody], *, claim: str
    ) -> None:
        (row,) = rows
        said = json.loads(bytes(row.update or b"{}"))
        told.append(("begun", said["status"]))
        if "output" in said:
            await trio.sleep(1.5)  # the script ends meanwhile
        await put_rows(self, job_id, rows, claim=claim)
        told.append(("heard", said["status"]))

    async def final(self: QueueClient, job_id: str, body: bytes, *, claim: str | None) -> None:
        (row,) = json.loads(body)["executions"]
        told.append(("begun", row["update"]["status"]))
        await complete(self, job_id, body, claim=claim)
        told.append(("heard", row["update"]["status"]))

    monkeypatch.setattr(QueueClient, "put_rows", slow_live)
    monkeypatch.setattr(QueueClient, "complete", final)
    async with running_worker(tmp_path, {"CRONIUM_LIVE_OUTPUT": "2s"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            report = await rig.run("echo first; sleep 3; echo last", names)

    assert report.executions[0].output == "first\nlast\n"
    assert told[-2:] == [("begun", "COMPLETED"), ("heard", "COMPLETED")]
    assert ("heard", "running") in told


async def test_live_output_can_be_left_out(sshd: Sshd, tmp_path: Path) -> None:
    async with running_worker(tmp_path, {"CRONIUM_LIVE_OUTPUT": "0"}) as rig:
        names = rig.add(sshd.server)
        with trio.fail_after(60):
            job_id = rig.submit("echo first; sleep 4", names)
            await trio.sleep(3)
            during = rig.queue.store.report(job_id)
            await rig.finished(job_id)

    assert not during.executions[0].output
