import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked import run_forked

MESSAGE = "PARTIAL SUCCESS: 2 of 3 servers succeeded (failed: db-1 exit 7)"


def processes_of(directory: Path) -> list[str]:
    """The processes that name something in `directory`, in their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in told:
            found.append(f"{process.name}: {told!r}")
    return found


@contextmanager
def demo(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-m", "worker", "demo", "--dir", str(directory), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def play(directory: Path, *options: str) -> tuple[int, list[str]]:
    with demo(directory, *options) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output.splitlines()


def test_without_sshd_the_second_demo_finds_the_runner_where_the_first_deployed_it(
    tmp_path: Path,
) -> None:
    first = play(tmp_path / "demo", "--no-sshd")
    second = play(tmp_path / "demo", "--no-sshd")

    for code, lines in (first, second):
        assert code == 0, "\n".join(lines)
        assert MESSAGE in lines
        assert "[db-1] the last backup is older than a day" in lines
        assert "[web-2] all well" in lines
    assert "runner cache: 3 deployed, 0 cached" in first[1]
    assert "runner cache: 0 deployed, 3 cached" in second[1]
    assert processes_of(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_the_table_has_an_outcome_an_exit_code_and_three_times_for_each_server(
    tmp_path: Path,
) -> None:
    code, lines = play(tmp_path / "demo", "--servers", "2")

    assert code == 0
    rows = [re.split(r"[ │]+", line.strip(" │")) for line in lines if line.count(" ms") == 3]
    assert [row[:3] for row in rows] == [["web-1", "success", "0"], ["db-1", "failed", "7"]]


def test_what_the_table_has_is_there_in_a_narrow_terminal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    code, lines = play(tmp_path / "demo", "--servers", "1")

    assert code == 0
    assert not [line for line in lines if "…" in line]


def test_what_is_kept_can_be_talked_to_and_ends_on_a_signal(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("echo again; exit 3\n")
    database = str(tmp_path / "demo" / "queue.db")
    submit = (sys.executable, "-P", "-m", "worker", "queue", "submit", "--db", database, "--wait")

    with demo(tmp_path / "demo", "--servers", "2", "--keep") as process:
        assert process.stdout is not None
        assert any("until Ctrl-C" in line for line in process.stdout)
        submitted = subprocess.run(
            [*submit, "--script", str(script), "--server", "web-1"], timeout=20, check=False
        )
        assert any(line == "[web-1] again\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0

    assert submitted.returncode == 3
    assert processes_of(tmp_path) == []


def test_a_demo_that_is_interrupted_leaves_no_process(tmp_path: Path) -> None:
    with demo(tmp_path / "demo") as process:
        assert process.stdout is not None
        assert any(line.startswith("[web-1]") for line in process.stdout)
        process.terminate()
        assert process.wait(20) == 130

    assert processes_of(tmp_path) == []


def test_two_demos_do_not_share_a_directory(tmp_path: Path) -> None:
    with demo(tmp_path / "demo", "--keep") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("queue at")
        code, lines = play(tmp_path / "demo")

    assert code == 1
    assert "another demo is running" in lines[0]


def test_a_directory_with_files_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")

    code, lines = play(tmp_path, "--fresh")

    assert code == 1
    assert "files of others" in lines[0]
    assert os.listdir(tmp_path) == ["mine"]  # noqa: PTH208  names are all that matters


def test_a_home_is_expanded_that_the_shell_left(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()

    done = run_forked(["demo", "--dir", "~/mine"], {"HOME": str(tmp_path)})

    assert done.returncode == 1
    assert f"{tmp_path}/mine has files of others" in done.stdout


@pytest.mark.parametrize(
    ("directory", "code", "said"),
    [
        ("", 2, "'--dir': '' is no path"),
        (os.devnull, 2, "'--dir': '/dev/null' is no directory"),
        (f"{__file__}/demo", 2, f"'--dir': '{__file__}' is no directory"),
        ("/proc/demo", 1, "demo: /proc/demo: No such file or directory\n"),
    ],
)
def test_a_directory_that_cannot_be_is_named(directory: str, code: int, said: str) -> None:
    done = run_forked(["demo", "--dir", directory], {})

    assert done.returncode == code
    assert said in done.stdout + done.stderr
