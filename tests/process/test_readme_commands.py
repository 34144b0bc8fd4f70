"""The README's commands, typed by a newcomer into a clean clone."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.process.worker_process import wait_for
from worker.demo.sshd import Sshd

ROOT = Path(__file__).parents[2]
NOT_CLONED = shutil.ignore_patterns(
    ".git", ".venv", ".state", "__pycache__", ".*_cache", ".hypothesis"
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this tree alone, as a clone has them."""
    folder = tmp_path_factory.mktemp("clone") / "cronium-worker"
    shutil.copytree(ROOT, folder, ignore=NOT_CLONED)
    return folder


def commands(heading: str) -> list[str]:
    """The shell blocks below `heading` in the README."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2]
    return re.findall(r"^```sh\n(.*?)^```", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


def shell(script: str, clone: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if "CRONIUM" not in name}
    return subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=clone,
        # To compile all that is installed takes long, and a tenth of it is used.
        env={**environ, "HOME": str(home), "PIP_NO_COMPILE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_demo_runs_from_a_clean_clone_and_the_second_time_from_the_cache(
    clone: Path, tmp_path: Path
) -> None:
    demo, *_ = commands("Run it")

    first = shell(demo, clone, tmp_path)
    second = shell(demo, clone, tmp_path)

    assert first.returncode == 0, first.stderr
    message = "PARTIAL SUCCESS: 2 of 3 servers succeeded (failed: db-1 exit 7)"
    assert message in first.stdout.splitlines()
    assert "runner cache: 3 deployed, 0 cached" in first.stdout.splitlines()
    assert second.returncode == 0, second.stderr
    assert "runner cache: 0 deployed, 3 cached" in second.stdout.splitlines()
    assert list(tmp_path.rglob("*cronium*")) == []


def test_the_embedded_queue_serves_a_worker_as_the_readme_says(
    clone: Path, tmp_path: Path, sshd: Sshd, spare_port: int
) -> None:
    *_, serve, use = commands("Run it")
    server = sshd.server
    key = tmp_path / "key"
    key.write_text(server.private_key)
    (tmp_path / "backup.sh").write_text("echo backed up\n")
    serve = serve.replace(".venv", "exec .venv").replace("serve", f"serve --port {spare_port}")
    use = (
        use.replace("8370", str(spare_port))
        .replace("--host 10.0.0.5", f"--host {server.host} --port {server.port}")
        .replace("--user deploy", f"--user {server.user}")
        .replace("~/.ssh/id_ed25519", str(key))
        .replace("backup.sh", str(tmp_path / "backup.sh"))
    )
    log = tmp_path / "queue.log"
    # The shell of the newcomer's first terminal; both servers end with the script.
    both = (
        "scripts/setup --runtime 2>/dev/null\n"
        f"( {serve} ) >{log} & queue=$!\n"
        f"until grep -q ready {log}; do sleep 0.1; done\n"
        "trap 'kill $queue $!' EXIT\n"
        f"{use}"
    )

    done = shell(both, clone, tmp_path)

    assert done.returncode == 0, done.stderr
    assert "SUCCESS: 1 of 1 servers succeeded" in done.stderr
    wait_for(lambda: not _processes_of(clone), "the end of the servers")


def _processes_of(clone: Path) -> list[str]:
    """Command lines of what still runs from the clone."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(clone) in line:
                lines.append(line)
    return lines
