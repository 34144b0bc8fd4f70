"""The installer: one artifact on one server, whole or not at all."""

import concurrent.futures
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.runner_rig import (
    ARTIFACT,
    INSTALLER,
    NAME,
    SHA256,
    SHELLS,
    SOURCE,
    Server,
    serving,
)


@pytest.fixture(params=SHELLS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, request.param) as one:
        one.runner.unlink()
        shutil.rmtree(one.helpers)
        yield one


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, "dash") as one:
        one.runner.unlink()
        shutil.rmtree(one.helpers)
        yield one


def text(*, sha256: str = SHA256) -> str:
    return (
        INSTALLER.read_text()
        .replace("@NONCE@", "n1")
        .replace("@NAME@", NAME)
        .replace("@SHA256@", sha256)
        .replace("@ARTIFACT@\n", ARTIFACT.content.decode())
    )


def install(
    server: Server, *, script: str | None = None, path: str | None = None
) -> "subprocess.CompletedProcess[str]":
    environment = server.environment()
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [str(server.bin / "sh")],
        input=text() if script is None else script,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def files(server: Server) -> list[str]:
    return sorted(path.name for path in server.root.iterdir())


def helpers(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


SHIPPED = helpers(SOURCE.parent / "helpers")


def test_it_puts_the_artifact_there_and_says_where(server: Server) -> None:
    done = install(server)

    assert (done.returncode, done.stdout) == (0, f"\ncronium d n1 {server.runner}\n")
    assert server.runner.read_bytes() == ARTIFACT.content
    assert server.runner.stat().st_mode & 0o777 == 0o600
    assert files(server) == [server.helpers.name, NAME]
    assert helpers(server.helpers) == SHIPPED
    assert server.helpers.stat().st_mode & 0o777 == 0o700


def test_what_is_there_and_whole_is_not_written_again(dash: Server) -> None:
    install(dash)
    before = dash.runner.stat()

    assert install(dash).returncode == 0

    assert (dash.runner.stat().st_ino, dash.runner.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


def test_what_is_there_and_differs_is_replaced(server: Server) -> None:
    server.runner.write_text("cut o")

    assert install(server).returncode == 0

    assert server.runner.read_bytes() == ARTIFACT.content


def test_helpers_that_are_missing_are_put_there_again(server: Server) -> None:
    install(server)
    (server.helpers / "python" / "cronium.py").unlink()
    (server.helpers / "cronium.bash").write_text("")

    assert install(server).returncode == 0

    assert helpers(server.helpers) == SHIPPED


def test_without_a_digest_tool_an_artifact_that_was_cut_off_is_not_installed(
    server: Server,
) -> None:
    only = server.home / "only"
    only.mkdir()
    for name in ("[", "cat", "chmod", "id", "mkdir", "mv", "printf", "rm", "sed"):
        source = shutil.which(name)
        assert source is not None
        (only / name).symlink_to(source)
    (only / "sh").symlink_to(server.bin / "sh")
    whole = ARTIFACT.content.decode()
    # Not by the name under which other tests put the whole one into the roots outside of home.
    script = text().replace(NAME, "runner-0123456789ab")

    for size in (whole.index("===python"), len(whole) - 3):
        done = install(server, script=script.replace(whole, whole[:size] + "\n"), path=str(only))

        assert done.stdout.startswith("\ncronium f n1 ")
        assert files(server) == []


def test_a_wrong_digest_leaves_nothing_and_says_why(dash: Server) -> None:
    # The other roots are tried too, and refuse it as well.
    done = install(dash, script=text(sha256="0" * 64))

    assert done.returncode == 73
    assert done.stdout.startswith("\ncronium f n1 ")
    assert "wrong digest" in done.stdout
    assert files(dash) == []


def test_an_installer_that_was_cut_off_leaves_nothing(server: Server) -> None:
    whole = text()
    for size in (500, len(whole) // 2, len(whole) - 60):
        done = install(server, script=whole[:size])
        assert "cronium d" not in done.stdout
        assert files(server) == []


def test_a_root_that_is_a_link_is_refused(server: Server) -> None:
    elsewhere = server.home / "elsewhere"
    server.root.rename(elsewhere)
    server.root.symlink_to(elsewhere)

    done = install(server)

    assert done.returncode == 69
    assert done.stdout == f"\ncronium f n1 {server.root} is a link: refused\n"
    assert list(elsewhere.iterdir()) == []


def test_a_root_that_others_can_read_is_closed(dash: Server) -> None:
    dash.root.chmod(0o755)

    install(dash)

    assert dash.root.stat().st_mode & 0o777 == 0o700


def test_installers_at_the_same_time_do_no_harm(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: install(server), range(8)))

    assert {done.returncode for done in results} == {0}
    assert server.runner.read_bytes() == ARTIFACT.content
    assert files(server) == [server.helpers.name, NAME]
    assert helpers(server.helpers) == SHIPPED


def test_without_a_usable_home_the_next_root_is_taken(dash: Server) -> None:
    dash.root.rmdir()
    dash.root.parent.rmdir()
    dash.root.parent.write_text("a file where the directory should be")

    done = install(dash)

    there = Path(f"/var/tmp/cronium-{os.getuid()}") / NAME  # noqa: S108
    assert done.stdout == f"\ncronium d n1 {there}\n"
    assert helpers(there.with_name(dash.helpers.name)) == SHIPPED
    there.unlink(missing_ok=True)  # other tests go there too
    shutil.rmtree(there.with_name(dash.helpers.name), ignore_errors=True)


@pytest.mark.parametrize("tool", ["sha256sum", "shasum", "openssl", "busybox", None])
def test_any_digest_tool_will_do(dash: Server, tool: str | None) -> None:
    only = dash.home / "only"
    only.mkdir()
    for name in ("cat", "chmod", "id", "mkdir", "mv", "perl", "rm", "sed", "sh", tool):
        if name is not None:
            source = subprocess.run(["which", name], capture_output=True, text=True, check=True)
            (only / name).symlink_to(source.stdout.strip())

    assert install(dash, path=str(only)).returncode == 0

    assert dash.runner.read_bytes() == ARTIFACT.content
