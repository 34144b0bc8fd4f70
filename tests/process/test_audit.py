"""Where secrets lie while a job runs, and after it: where they belong, and nowhere else."""

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.process.worker_process import Site, open_site, wait_for
from worker.demo.sshd import Sshd

JWT_SECRET = f"jwt-{secrets.token_hex(16)}"
MULTI_LINE = "\n".join(f"line-{number}-{secrets.token_hex(8)}" for number in range(3))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(
        tmp_path,
        CRONIUM_ENCRYPTION_KEY=secrets.token_hex(32),
        CRONIUM_STATE_KEY=secrets.token_hex(32),
        CRONIUM_JWT_SECRET=JWT_SECRET,
    ) as site:
        site.environ = {**site.environ, "CRONIUM_RUNTIME_URL": f"http://127.0.0.1:{site.port}"}
        yield site


def encoded(marker: str) -> list[bytes]:
    """The marker as it is, and in base64 with nothing, one and two bytes before it."""
    data = marker.encode()
    # The first and last characters depend on what stands beside it.
    return [data, *(base64.b64encode(bytes(shift) + data)[4:-4] for shift in range(3))]


def places(where: Mapping[str, bytes], markers: Mapping[str, str]) -> list[str]:
    """Each place that holds a marker, in whatever form."""
    return [
        f"{name} in {place}"
        for name, marker in markers.items()
        for place, content in where.items()
        if any(form in content for form in encoded(marker))
    ]


def files_below(*folders: Path) -> dict[str, bytes]:
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def processes_as_others_see_them() -> dict[str, bytes]:
    """Every process with what it shows of its arguments and environment to another user."""
    listed = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ps", "auxeww"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    return {f"ps, line {number}": line for number, line in enumerate(listed.stdout.splitlines())}


def arguments_of_all() -> dict[str, bytes]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[str(path)] = path.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
    return found


def environment_of(pid: int) -> dict[str, bytes]:
    return {f"the environment of {pid}": Path(f"/proc/{pid}/environ").read_bytes()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can look with another's eyes")
def test_no_secret_is_found_where_it_does_not_belong(
    site: Site, sshd: Sshd, tmp_path: Path
) -> None:
    key_line = sshd.server.private_key.splitlines()[3]
    markers = {
        "the password": f"pw-{secrets.token_hex(12)}",
        "the sealed value": f"sealed-{secrets.token_hex(12)}",
        "the added mask": f"added-{secrets.token_hex(12)}",
        "a line of a value": MULTI_LINE.splitlines()[1],
        "a line of the key": key_line,
        "the API's token": site.environment("", {})["CRONIUM_API_TOKEN"],
        "the JWT secret": JWT_SECRET,
        "the encryption key": site.environ["CRONIUM_ENCRYPTION_KEY"],
        "the state's key": site.environ["CRONIUM_STATE_KEY"],
        "a token": base64.b64encode(b'{"alg":"HS256"').decode()[:16],
    }
    go, half, pid = (tmp_path / name for name in ("go", "half", "pid"))
    # What it prints it reads from files, for a script is no secret.
    (tmp_path / "secrets").write_text(
        f"::add-mask::{markers['the added mask']}\nafter {markers['the added mask']}\n"
        f"{sshd.server.private_key}"
    )
    script = f"""
        echo $$ >{pid}
        cat {tmp_path}/secrets
        printf '%s' "${{DB_PASSWORD:0:9}}"; sleep 0.3; echo "${{DB_PASSWORD:9}}"
        printf '%s' "xy$DB_PASSWORD$SEALED" | base64
        echo "$LINES_TOKEN" >&2
        cronium.output "{{\\"password\\": \\"$DB_PASSWORD\\"}}"
        cronium.getVariable missing || echo "$SEALED is not a variable"
        echo >{half}
        until [ -e {go} ]; do sleep 0.05; done
        sed -n 's/^after /the same: /p' {tmp_path}/secrets
        exit 3
    """
    site.start_queue()
    name = site.add(sshd.server)
    site.forks = False
    first = site.start_worker(LOGGING_LEVEL="debug")
    job_id = site.submit(
        script,
        name,
        environment={
            "DB_PASSWORD": markers["the password"],
            "SEALED": markers["the sealed value"],
            "LINES_TOKEN": MULTI_LINE,
        },
    )
    wait_for(half.exists, "the script's first half")
    wait_for(lambda: b"is not a variable" in first.log_file.read_bytes(), "what it printed")

    state = tmp_path / "state"
    during = files_below(state) | processes_as_others_see_them() | arguments_of_all()
    own = environment_of(int(pid.read_text()))
    first.process.kill()
    first.wait()
    left = files_below(state)
    second = site.start_worker(LOGGING_LEVEL="debug")
    second.wait_for_event("job_taken_up")
    go.touch()
    report = site.finished(job_id)
    second.wait_for_event("cleanup_ended")
    second.process.terminate()
    assert second.wait() == 0
    after = files_below(state, sshd.server.home) | {
        "the first log": first.log_file.read_bytes(),
        "the second log": second.log_file.read_bytes(),
        "the queue's file": (tmp_path / "queue.db").read_bytes(),
        "the queue's log": (tmp_path / "queue.db-wal").read_bytes()
        if (tmp_path / "queue.db-wal").exists()
        else b"",
        "the report": repr(report).encode(),
    }

    # What a search would find, it finds where the secret belongs.
    assert {found.split(" in ")[0] for found in places(own, markers)} == {
        "the password",
        "the sealed value",
        "a line of a value",
    }
    output = report.executions[0].output or ""
    assert "***" in output
    assert "the same: ***" in output
    assert report.executions[0].exit_code == 3
    assert places(during, markers) == []
    assert places(left, markers) == []
    assert places(after, markers) == []
