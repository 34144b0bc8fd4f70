"""The commands of `cronium-worker queue`."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from click.testing import CliRunner, Result

from tests.loopback.openssh import make_key
from worker.api.tokens import Identity, sign
from worker.cli.queue import queue
from worker.clock import now_ms
from worker.queue_server import executions
from worker.queue_server.bodies import CreateExecution, ExecutionRow, UpdateExecution
from worker.queue_server.file import open_database
from worker.queue_server.follow import follow
from worker.queue_server.keys import api_token, open_keyring
from worker.queue_server.leases import Leases
from worker.queue_server.model import Claimant, JobEnd, JobStatus
from worker.queue_server.store import Store
from worker.secret import Secret

WORKER = "worker-1"
NOBODY = ("--host", "h", "--user", "u")


class Commands:
    """Runs commands on one database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "queue.db"

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(queue, arguments, env={"CRONIUM_QUEUE_DB": str(self.database)})
        assert result.exit_code == code, result.output
        return result

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def add_server(self, name: str, *options: str) -> None:
        key = self.file("id", "KEY\n")
        server = ("--host", "127.0.0.1", "--user", "deploy", "--key-file", key)
        self("add-server", name, *server, *options)

    @contextmanager
    def store(self) -> Iterator[Store]:
        store = Store.open(self.database, open_keyring(self.database, {}))
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def leases(self) -> Iterator[Leases]:
        keyring = open_keyring(self.database, {})
        with closing(open_database(self.database, keyring)) as database:
            yield Leases(database, keyring)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    for name in (
        "CRONIUM_ENCRYPTION_KEY",
        "CRONIUM_ENCRYPTION_KEY_FILE",
        "CRONIUM_API_TOKEN",
        "CRONIUM_API_TOKEN_FILE",
        "CRONIUM_JWT_SECRET",
        "CRONIUM_JWT_SECRET_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    return Commands(tmp_path)


def test_an_event_is_submitted_as_it_was_added(commands: Commands) -> None:
    commands.add_server("web-1")
    commands.add_server("web-2")
    script = commands.file("report.py", "print(1)")
    commands(
        "add-event", "report", "--script", script, "--server", "web-2", "--server", "web-1",
        "--env", "A=1", "--env", "B=x=y", "--timeout", "1m30s", "--input", '{"n": 1}',
        "--workdir", "/srv",
    )  # fmt: skip

    job_id = commands("submit", "report", "--env", "A=2", "--priority", "high").stdout.strip()

    with commands.leases() as leases:
        (job,) = leases.claim(WORKER, limit=10, types=None, now=now_ms())
    assert (job["id"], job["priority"]) == (job_id, 10)
    execution = job["execution"]
    assert execution["script"] == {
        "type": "PYTHON",
        "content": "print(1)",
        "workingDirectory": "/srv",
    }
    assert execution["environment"] == {"A": "2", "B": "x=y"}
    assert (execution["timeout"], execution["inputData"]) == (90_000_000_000, {"n": 1})
    assert [server["name"] for server in job["metadata"]["servers"]] == ["web-2", "web-1"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--env", "1A=x"], "'--env': '1A' is not a variable name"),
        (["--env", "A B=1"], "'--env': 'A B' is not a variable name"),
        (["--env", "UID=1"], "'--env': UID is read-only in a shell"),
        (["--env", "A=\0"], "'--env': the value of A holds a NUL"),
        (["--env", "A=\udcff"], "'--env': the value of A is not UTF-8"),
        (["--workdir", "a\nb"], "'--workdir': 'a\\nb' holds a NUL or a line break"),
        (["--workdir", "\udcff"], "'--workdir': '\\udcff' is not UTF-8"),
    ],
)
def test_what_a_worker_would_refuse_is_not_queued(
    option: list[str], said: str, commands: Commands
) -> None:
    commands.add_server("web-1")
    what = ("--script", commands.file("s.sh", "true"), "--server", "web-1", *option)

    assert said in commands("submit", *what, code=2).stderr
    assert said in commands("add-event", "e", *what, code=2).stderr

    assert json.loads(commands("jobs", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add-server", "\udcff", *NOBODY], "'NAME': '\\udcff' is no name"),
        (["add-server", "w", "--host", "a b", "--user", "u"], "'--host': 'a b' is no host"),
        (["add-server", "w", "--host", "h", "--user", "a\nb"], "'--user': 'a\\nb' is no user"),
        (["add-event", " ", "--script", __file__, "--server", "w"], "'NAME': it is empty"),
        (["submit", "--script", __file__, "--server", ""], "'--server': it is empty"),
        (["submit", "\udcff"], "'[EVENT]': '\\udcff' is no name"),
        (["show", ""], "'JOB': it is empty"),
        (["cancel", "\udcff"], "'JOB': '\\udcff' is no id"),
        (["serve", "--host", ""], "'--host': it is empty"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_it_is_of(
    arguments: list[str], said: str, commands: Commands
) -> None:
    assert said in commands(*arguments, code=2).stderr


def test_a_script_may_have_a_name_that_is_not_utf_8(commands: Commands) -> None:
    commands.add_server("web-1")
    script = commands.file("caf\udce9.sh", "true")

    job_id = commands("submit", "--script", script, "--server", "web-1").stdout.strip()

    assert f"{job_id}  caf\ufffd.sh" in commands("show", job_id).stdout


def test_what_sqlite_finds_wrong_is_said_with_the_file(commands: Commands) -> None:
    job_id = _finished_job(commands)
    with closing(sqlite3.connect(commands.database)) as database:
        database.execute("DROP TABLE executions")

    said = commands("show", job_id, code=2).stderr

    assert said == f"cronium-worker: {commands.database}: no such table: executions\n"


def test_a_server_and_an_event_of_the_same_name_are_replaced(commands: Commands) -> None:
    commands.add_server("web-1")
    script = commands.file("hello.sh", "echo hello")
    commands("add-event", "hello", "--script", script, "--server", "web-1")
    password = commands.file("password", "s3cret\n")
    commands(
        "add-server", "web-1", "--host", "10.0.0.9", "--user", "root", "--password-file", password
    )
    commands("add-event", "hello", "--script", script, "--server", "web-1", "--type", "node")
    commands("submit", "hello")

    with commands.leases() as leases:
        (job,) = leases.claim(WORKER, limit=10, types=None, now=now_ms())

    assert job["execution"]["target"]["serverDetails"] == {
        "id": "1",
        "name": "web-1",
        "host": "10.0.0.9",
        "port": 22,
        "username": "root",
        "password": "s3cret",
    }
    assert job["execution"]["script"]["type"] == "NODEJS"
    assert job["metadata"]["eventVersion"] == 2


def test_a_job_for_later_is_claimed_later(commands: Commands) -> None:
    commands.add_server("web-1")
    script = commands.file("hello.sh", "echo hello")
    commands("submit", "--script", script, "--server", "web-1", "--at", "+10m")

    with commands.leases() as leases:
        now = leases.claim(WORKER, limit=10, types=None, now=now_ms())
        then = leases.claim(WORKER, limit=10, types=None, now=now_ms() + 601_000)

    assert (len(now), len(then)) == (0, 1)


def test_show_prints_servers_with_outcome_and_times(commands: Commands) -> None:
    job_id = _finished_job(commands)

    shown = commands("show", job_id).stdout
    output = commands("show", job_id, "--output")
    as_json = json.loads(commands("show", job_id, "--json").stdout)
    listed = json.loads(commands("jobs", "--json").stdout)

    assert "PARTIAL SUCCESS: 1 of 2" in shown
    row = next(line for line in shown.splitlines() if "web-2" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "web-2", "timed_out", "124", "0.12 s", "2.00 s", "over its limit of 2 s",
    ]  # fmt: skip
    assert (output.stdout, output.stderr) == ("[web-1] hello\n", "[web-2] oh\n")
    assert (as_json["exitCode"], as_json["executions"][1]["exitCode"]) == (300, 124)
    assert [job["id"] for job in listed] == [job_id]


def test_wait_shows_the_changes_and_exits_with_the_code(commands: Commands) -> None:
    commands.add_server("web-1")
    commands.add_server("web-2")
    script = commands.file("hello.sh", "echo hello")
    work = threading.Thread(target=_work, args=[commands])
    work.start()

    waited = commands(
        "submit", "--script", script, "--server", "web-1", "--server", "web-2", "--wait", code=255
    )

    work.join()
    lines = waited.stderr.splitlines()
    assert "web-2: timed_out, exit 124, 2.13 s: over its limit of 2 s" in lines
    assert lines[-1].endswith("failed, exit 300: PARTIAL SUCCESS: 1 of 2")


def test_cancel_ends_a_job_once(commands: Commands) -> None:
    commands.add_server("web-1")
    script = commands.file("hello.sh", "echo hello")
    job_id = commands("submit", "--script", script, "--server", "web-1").stdout.strip()

    commands("cancel", job_id)

    assert json.loads(commands("jobs", "--json").stdout)[0]["status"] == "cancelled"
    assert "is over already" in commands("cancel", _finished_job(commands), code=1).stderr


def test_of_a_job_that_runs_the_output_so_far_is_shown(commands: Commands) -> None:
    job_id = _running_job(commands)

    shown = commands("show", job_id, "--output")

    assert shown.stdout == "[web-1] hello\n[web-1] you\n[web-2] hello\n[web-2] you\n"
    assert shown.stderr == f"{job_id} is running: its output so far\n"


def test_output_is_shown_as_text_or_as_json(commands: Commands) -> None:
    job_id = _finished_job(commands)

    assert "give one of" in commands("show", job_id, "--output", "--json", code=2).stderr


def test_the_job_comes_before_its_servers_until_it_is_over(commands: Commands) -> None:
    job_id = _running_job(commands)
    told = []
    with commands.store() as store, commands.leases() as leases:
        lines = follow(store, job_id)
        told += [next(lines) for _ in range(3)]
        store.cancel(job_id, now_ms())
        told.append(next(lines))
        end = JobEnd(JobStatus.CANCELLED, "cancelled", {"exitCode": 260})
        leases.end(job_id, Claimant(WORKER), end, now_ms())
        told += lines

    assert told == [
        f"{job_id}: running by {WORKER}",
        "web-1: running",
        "web-2: running",
        f"{job_id}: cancelled; {WORKER} ends its runs",
        f"{job_id}: cancelled, exit 260",
    ]


@pytest.mark.parametrize("command", ["show", "cancel"])
def test_a_job_that_is_not_there_is_named(command: str, commands: Commands) -> None:
    commands.add_server("web-1")

    assert commands(command, "job_none", code=1).stderr == "Error: there is no job 'job_none'\n"


def test_a_job_is_submitted_without_what_serves_or_connects() -> None:
    # It is what scripts of others call, and those libraries take most of half a second.
    code = (
        "import sys; from worker.cli.queue import queue; queue.get_command(None, 'submit');"
        "print({'hypercorn', 'starlette', 'asyncssh', 'httpx'} & set(sys.modules))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert loaded.stdout == b"set()\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit"], 2, "either an EVENT or --script"),
        (["submit", "none"], 1, "no event 'none'"),
        (["submit", "e", "--server", "web-1"], 2, "--server goes with --script"),
        (["submit", "--script", __file__], 2, "at least one --server"),
        (["submit", "--script", __file__, "--server", "web-9"], 1, "no server 'web-9'"),
        (["submit", "e", "--at", "soon"], 2, "is no time"),
        (["submit", "e", "--at", "+99999999999d"], 2, "is no time"),
        (["submit", "e", "--at", f"+{'9' * 400}d"], 2, "is no time"),
        (["submit", "e", "--at", "9999-12-31T23:59:59-12:00"], 2, "is no time"),
        (
            ["submit", "--script", __file__, "--server", "x", "--input", '"\\ud800"'],
            2,
            "--input is not JSON",
        ),
        (["submit", "--script", __file__, "--server", "x", "--input", 5000 * "["], 2, "--input is"),
        (["submit", "--script", __file__, "--server", "x", "--input", "[NaN]"], 2, "--input is"),
        (["submit", "--script", __file__, "--server", "x", "--input", "1e999"], 2, "--input is"),
        (["submit", "--script", sys.executable, "--server", "x"], 2, "is no text"),
        (["jobs", "--db", ""], 2, "'' is no path"),
        (
            ["add-server", "x", "--host", "h", "--user", "u", "--key-file", sys.executable],
            2,
            "is no text",
        ),
        (["serve", "--token-file", sys.executable], 2, "is no text"),
        (["serve", "--jwt-secret-file", sys.executable], 2, "is no text"),
        (["add-server", "", *NOBODY, "--key-file", __file__], 2, "'NAME': it is empty"),
        (
            ["add-server", "x", *NOBODY, "--user", " ", "--key-file", __file__],
            2,
            "'--user': it is empty",
        ),
        (
            ["add-server", "x", *NOBODY, "--host", "", "--key-file", __file__],
            2,
            "'--host': it is empty",
        ),
        (["add-server", "x", *NOBODY, "--key-file", os.devnull], 2, "the key in /dev/null is emp"),
        (["add-server", "x", *NOBODY, "--password-file", os.devnull], 2, "the password in /dev/n"),
        (["serve", "--port", "99999"], 2, "0<=x<=65535"),
        (["jobs", "--limit", "9" * 30], 2, "is not in the range"),
        (["add-server", "x", "--host", "h", "--user", "u"], 2, "--key-file or --password-file"),
        (["add-event", "e", "--script", __file__, "--timeout", "0"], 2, "is no duration"),
        (["add-event", "e", "--script", __file__, "--timeout", "9" * 30], 2, "is no duration"),
        (["add-event", "e", "--script", __file__, "--env", "A"], 2, "is not NAME=VALUE"),
        (["serve", "--host", "0.0.0.0"], 2, "--tls-cert and --tls-key, or --insecure"),  # noqa: S104 refused
        (["serve", "--tls-cert", __file__], 2, "go together"),
        (
            ["serve", "--tls-cert", __file__, "--tls-key", __file__, "--port", "0"],
            2,
            f"--tls-cert {__file__}, --tls-key {__file__}: cannot be used ([SSL] PEM lib",
        ),
    ],
)
def test_a_mistake_is_named(arguments: list[str], code: int, said: str, commands: Commands) -> None:
    commands.add_server("web-1")

    assert said in commands(*arguments, code=code).stderr


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CRONIUM_ENCRYPTION_KEY": "zz"}, "CRONIUM_ENCRYPTION_KEY: the encryption key must be"),
        (
            {"CRONIUM_ENCRYPTION_KEY_FILE": "/none/such"},
            "CRONIUM_ENCRYPTION_KEY_FILE: '/none/such'",
        ),
        (
            {"CRONIUM_ENCRYPTION_KEY": 32 * "ab", "CRONIUM_ENCRYPTION_KEY_FILE": "/none/such"},
            "CRONIUM_ENCRYPTION_KEY: given twice",
        ),
        ({"CRONIUM_API_TOKEN_FILE": "/none/such"}, "CRONIUM_API_TOKEN_FILE: '/none/such'"),
        ({"CRONIUM_API_TOKEN": "é x"}, "CRONIUM_API_TOKEN: expected a token"),
        (
            {"CRONIUM_JWT_SECRET": 32 * "a", "CRONIUM_JWT_SECRET_FILE": __file__},
            "CRONIUM_JWT_SECRET: given twice",
        ),
    ],
)
def test_a_secret_that_cannot_be_used_is_named(
    environ: dict[str, str], said: str, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    # An address that nobody has: should the secret be taken, it ends all the same.
    assert said in commands("serve", "--host", "192.0.2.1", "--insecure", code=2).stderr


def test_the_key_and_the_token_may_be_in_files(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRONIUM_ENCRYPTION_KEY_FILE", commands.file("key", 32 * "ab" + "\n"))
    monkeypatch.setenv("CRONIUM_API_TOKEN_FILE", commands.file("token", "a-token\n"))
    commands.add_server("web-1")

    assert not commands.database.with_name("queue.db.key").exists()
    token, kept_in = api_token(commands.database, os.environ, None)
    assert (token.reveal(), kept_in) == ("a-token", None)
    # With another key it cannot be opened, so it was that one.
    monkeypatch.setenv("CRONIUM_ENCRYPTION_KEY_FILE", commands.file("key", 32 * "cd"))
    assert "sealed with another key" in commands("jobs", code=2).stderr


@pytest.mark.parametrize("name", ["key", "token"])
def test_a_secret_beside_the_queue_that_is_no_text_is_named(commands: Commands, name: str) -> None:
    (commands.folder / f"queue.db.{name}").write_bytes(b"\xff\xfe")

    said = commands("serve", "--host", "192.0.2.1", "--insecure", code=2).stderr

    assert f"queue.db.{name}: it is no text" in said


def test_what_moves_a_cursor_is_written_out(commands: Commands) -> None:
    commands.add_server("web-1")
    script = commands.file("s.sh", "true")
    commands("add-event", "ev\x1b[2Jil", "--script", script, "--server", "web-1")
    job_id = commands("submit", "ev\x1b[2Jil").stdout.strip()

    for told in (commands("jobs").stdout, commands("show", job_id).stdout):
        assert "ev\\x1b[2Jil" in told
        assert "\x1b" not in told


def test_a_home_is_expanded_that_the_shell_left(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.add_server("web-1")
    monkeypatch.setenv("HOME", str(commands.folder))

    assert json.loads(commands("jobs", "--db", "~/queue.db", "--json").stdout) == []


@pytest.mark.parametrize("command", [("jobs",), ("serve", "--port", "0"), ("show", "job_1")])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("text", "file is not a database"),
        ("other", "it is the database of another program"),
        ("newer", "the database is of version 99, this program knows"),
    ],
)
def test_a_file_that_is_no_queue_is_named_and_left_alone(
    what: str, said: str, command: tuple[str, ...], commands: Commands
) -> None:
    if what == "text":
        commands.database.write_bytes(4000 * b"none")
    else:
        with closing(sqlite3.connect(commands.database)) as database:
            database.execute("CREATE TABLE places (id)")
            database.execute(f"PRAGMA user_version = {99 if what == 'newer' else 0}")

    before = commands.database.read_bytes()

    assert f"{commands.database}: {said}" in commands(*command, code=2).stderr

    assert list(commands.folder.iterdir()) == [commands.database]
    assert commands.database.read_bytes() == before


@pytest.mark.parametrize("command", [("jobs",), ("serve", "--port", "0")])
def test_a_path_that_cannot_be_a_file_is_named(
    command: tuple[str, ...], commands: Commands
) -> None:
    file = commands.file("file", "")

    below = commands(*command, "--db", f"{file}/queue.db", code=2).stderr
    directory = commands(*command, "--db", str(commands.folder), code=2).stderr
    unseen = commands(*command, "--db", str(commands.folder / (300 * "x")), code=2).stderr

    assert f"'--db': '{file}' is no directory" in below
    assert f"'--db': File '{commands.folder}' is a directory" in directory
    assert unseen.endswith("x: File name too long\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs"],
        ["show", "job_1"],
        ["cancel", "job_1"],
        ["submit", "backup"],
        ["add-event", "backup", "--script", __file__, "--server", "web-1"],
    ],
)
def test_a_queue_that_is_not_there_is_named_and_not_made(
    arguments: list[str], commands: Commands
) -> None:
    said = commands(*arguments, code=2).stderr

    assert f"{commands.database}: there is no queue" in said
    assert list(commands.folder.iterdir()) == []


async def test_serve_says_where_keeps_a_token_and_ends_on_a_signal(commands: Commands) -> None:
    arguments = ["serve", "--db", str(commands.database), "--port", "0"]
    command = [sys.executable, "-c", "from worker.cli.queue import queue; queue()", *arguments]
    answers = []

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_started, command)
            address = (await process.stdout.receive_some()).decode().removeprefix("queue ready at ")
            token = (commands.folder / "queue.db.token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}", "X-Orchestrator-ID": WORKER}
            async with httpx.AsyncClient(base_url=address.strip() + "/api/internal") as client:
                refused = await client.get("/jobs/queue")

                async def poll() -> None:
                    waiting = {**headers, "Prefer": "wait=30"}
                    answer = await client.get("/jobs/queue", headers=waiting, timeout=10)
                    answers.append(answer.json())

                async with trio.open_nursery() as polls:
                    for _ in range(3):
                        polls.start_soon(poll)
                    await trio.sleep(0.3)
                    process.terminate()
                    signalled = trio.current_time()
                assert await process.wait() == 0

    assert trio.current_time() - signalled < 5
    assert refused.status_code == 401
    assert answers == [{"jobs": [], "count": 0}] * 3
    assert (await process.stderr.receive_some()).decode() == (
        f"the token is in {commands.folder / 'queue.db.token'}\n"
        "no runtime API: neither --jwt-secret-file nor CRONIUM_JWT_SECRET is given\n"
    )
    assert commands.database.stat().st_mode & 0o777 == 0o600
    await process.stdout.aclose()
    await process.stderr.aclose()


@pytest.mark.parametrize("given_as", ["option", "variable", "file variable"])
async def test_serve_has_the_runtime_api_when_it_is_given_the_secret(
    given_as: str, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "no-more-than-20-char"  # noqa: S105  opens nothing
    file = commands.file("secret", secret + "\n")
    arguments = ["serve", "--db", str(commands.database), "--port", "0"]
    match given_as:
        case "option":
            # An option goes before what the environment has.
            monkeypatch.setenv("CRONIUM_JWT_SECRET", "another-secret-of-the-environment")
            arguments += ["--jwt-secret-file", file]
        case "variable":
            monkeypatch.setenv("CRONIUM_JWT_SECRET", secret)
        case _:
            monkeypatch.setenv("CRONIUM_JWT_SECRET_FILE", file)
    command = [sys.executable, "-c", "from worker.cli.queue import queue; queue()", *arguments]
    identity = Identity("job_none", "exec_1", "local", "1", 30)
    token = sign(identity, Secret(secret), now=now_ms() // 1000).reveal()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_started, command)
            address = (await process.stdout.receive_some()).decode().removeprefix("queue ready at ")
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=address.strip(), headers=headers) as client:
                answer = await client.get("/executions/exec_1/input")
            process.terminate()

    # The secret fits, as the queue has come to look for the job.
    assert answer.json()["message"] == "the token's job is not one of this queue"
    stderr = (await process.stderr.receive_some()).decode()
    assert stderr == f"the token is in {commands.folder / 'queue.db.token'}\n"
    await process.stdout.aclose()
    await process.stderr.aclose()


@pytest.mark.parametrize(
    ("secret", "said"),
    [("", "shorter than 16"), ("short\n", "shorter than 16"), ("line\nbreak" * 4, "a line break")],
)
def test_a_secret_that_is_none_stops_the_start(secret: str, said: str, commands: Commands) -> None:
    file = commands.file("secret", secret)

    # An address that nobody has: should the secret be taken, it ends all the same.
    nowhere = ("--host", "192.0.2.1", "--insecure")
    result = commands("serve", *nowhere, "--jwt-secret-file", file, code=2)

    assert file in result.stderr
    assert said in result.stderr


async def _started(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        task_status.started(process)
        await process.wait()
    finally:
        process.kill()


def test_a_job_over_its_limit_is_told_apart_from_one_that_failed(commands: Commands) -> None:
    commands.add_server("web-1")
    script = commands.file("slow.sh", "sleep 9")
    job_id = commands("submit", "--script", script, "--server", "web-1").stdout.strip()
    end = JobEnd(JobStatus.FAILED, "timeout", {"exitCode": 124})
    with commands.store() as store, commands.leases() as leases:
        leases.claim(WORKER, limit=1, types=None, now=now_ms())
        leases.end(job_id, Claimant(WORKER), end, now_ms())
        told = list(follow(store, job_id))

    assert told == [f"{job_id}: timeout, exit 124"]
    assert f"{job_id}  slow.sh  timeout, exit 124" in commands("show", job_id).stdout
    assert "timeout" in commands("jobs").stdout
    # As the app has it.
    assert json.loads(commands("jobs", "--json").stdout)[0]["status"] == "failed"


def _finished_job(commands: Commands) -> str:
    commands.add_server("web-1")
    commands.add_server("web-2")
    script = commands.file("hello.sh", "echo hello")
    job_id = commands(
        "submit", "--script", script, "--server", "web-1", "--server", "web-2"
    ).stdout.strip()
    _work(commands)
    return job_id


def _running_job(commands: Commands) -> str:
    """On two servers, of which each has printed something."""
    commands.add_server("web-1")
    commands.add_server("web-2")
    script = commands.file("hello.sh", "echo hello")
    both = ("--server", "web-1", "--server", "web-2")
    job_id = commands("submit", "--script", script, *both).stdout.strip()
    with commands.leases() as leases:
        leases.claim(WORKER, limit=1, types=None, now=now_ms())
        rows = [
            ExecutionRow(
                id=f"exec_{number}",
                create=CreateExecution(server_id=number, server_name=f"web-{number}"),
                update=UpdateExecution(status="RUNNING", output="hello\nyou\n"),
            )
            for number in (1, 2)
        ]
        leases.start(job_id, Claimant(WORKER), now_ms(), rows=rows)
    return job_id


def _work(commands: Commands) -> None:
    """What a worker reports of the next job: one server fine, one over its limit."""
    with commands.store() as store, commands.leases() as leases:
        jobs = leases.claim(WORKER, limit=1, types=None, now=now_ms())
        while not jobs:
            jobs = leases.claim(WORKER, limit=1, types=None, now=now_ms())
        job_id = jobs[0]["id"]
        for number, code in ((1, 0), (2, 124)):
            execution_id = f"exec_{job_id}_{number}_0"
            create = CreateExecution(job_id=job_id, server_id=number, server_name=f"web-{number}")
            update = UpdateExecution(
                status="TIMEOUT" if code else "COMPLETED",
                exit_code=code,
                error="over its limit of 2 s" if code else None,
                setup_duration=120,
                execution_duration=2000,
                cleanup_duration=10,
                total_duration=2130,
                execution_metadata={"outcome": "timed_out" if code else "success"},
            )
            with store.database.transaction() as tx:
                executions.create(tx, execution_id, create, now_ms())
                executions.update(tx, execution_id, update, now_ms())
        end = JobEnd(
            JobStatus.FAILED,
            "failed",
            {"exitCode": 300, "metrics": {"message": "PARTIAL SUCCESS: 1 of 2"}},
            stdout="[web-1] hello\n",
            stderr="[web-2] oh\n",
        )
        leases.end(job_id, Claimant(WORKER), end, now_ms())


def test_a_server_may_be_given_its_host_key(commands: Commands) -> None:
    fingerprint, line = "SHA256:" + "A" * 43, make_key(commands.folder / "host")
    commands.add_server("web-1", "--host-key", fingerprint, "--host-key", f"{line} root@web-1")
    commands.add_server("web-2")
    script = commands.file("hello.sh", "true")

    commands("submit", "--script", script, "--server", "web-1", "--server", "web-2")

    with commands.leases() as leases:
        (job,) = leases.claim(WORKER, limit=10, types=None, now=now_ms())
    first, second = job["metadata"]["servers"]
    assert first["hostKey"] == f"{fingerprint}\n{line}"
    assert "hostKey" not in second


def test_a_host_key_that_is_none_is_refused(commands: Commands) -> None:
    key = commands.file("id", "KEY\n")
    server = ("add-server", "web-1", "--host", "127.0.0.1", "--user", "deploy", "--key-file", key)

    result = commands(*server, "--host-key", "hunter2", code=2)

    assert "--host-key" in result.stderr
    assert "hunter2" not in result.stderr
