"""What becomes of a command that asks for something at a terminal."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.process.worker_process import COMMAND

CTRL_C, CTRL_D = b"\x03", b"\x04"
ASKING = {
    "confirmation": (("outbox", "drop", "1"), b"[y/N]: "),
    "password": (("check", "--server", "deploy@127.0.0.1", "--ask-password"), b"Password: "),
}


def answered(
    arguments: tuple[str, ...], asked: bytes, answer: bytes, home: Path
) -> tuple[int, str]:
    """The exit code, and what was said, after `answer` to what is `asked`."""
    ours, theirs = os.openpty()
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    # A terminal of its own, as a password is asked for at /dev/tty; what a shell starts in the
    # background ignores Ctrl-C.
    alone = ("setsid", "--ctty", "env", "--default-signal=INT")
    with subprocess.Popen(
        [*alone, *COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    ) as process:
        try:
            os.close(theirs)
            said = b""
            while not said.endswith(asked):
                said += os.read(ours, 4096)
            code, deadline = None, time.monotonic() + 30
            while code is None:
                assert time.monotonic() < deadline
                # Once more where it came just before Python began to read: that is not told of it.
                os.write(ours, answer)
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(2)
            return code, (said + os.read(ours, 4096)).decode()
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize(("key", "code"), [(CTRL_C, 130), (CTRL_D, 1)], ids=["Ctrl-C", "Ctrl-D"])
def test_ctrl_c_at_a_question_is_told_apart_from_no_answer(
    asking: str, key: bytes, code: int, tmp_path: Path
) -> None:
    arguments, asked = ASKING[asking]

    exit_code, said = answered(arguments, asked, key, tmp_path)

    assert exit_code == code
    assert said.endswith("Aborted!\r\n")
