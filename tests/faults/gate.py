"""A login shell that sees what the worker asks of a server and can hold it."""

import os
import shlex
from contextlib import suppress
from pathlib import Path

SCRIPT = """\
#!/bin/sh
# Called by sshd as: gate -c COMMAND
place={place}
command=$2
set -f
set -- $2
case $1.$# in
sh.1) verb=deploy ;;
sh.*) verb=$3 ;;
*) verb=other ;;
esac
echo "$verb" >>"$place/seen"
[ ! -p "$place/$verb" ] || read -r _ 2>/dev/null <"$place/$verb"
exec "$SHELL" -c "$command"
"""


class Gate:
    """`shell` is for `login_shell` of an sshd; the verbs are the runner's, and `deploy`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        script = folder / "gate"
        script.write_text(SCRIPT.format(place=shlex.quote(str(folder))))
        script.chmod(0o755)
        self.shell = str(script)

    def seen(self, verb: str) -> int:
        """How often it was asked for; a call that is held has been."""
        with suppress(FileNotFoundError):
            return (self._folder / "seen").read_text().splitlines().count(verb)
        return 0

    def hold(self, verb: str) -> None:
        """Stop every such call until `release`, before the server's shell gets it."""
        os.mkfifo(self._folder / verb)

    def release(self, verb: str) -> None:
        held, opened = self._folder / verb, self._folder / f"{verb}.released"
        with suppress(FileNotFoundError):
            held.rename(opened)  # those to come find none
            os.close(os.open(opened, os.O_RDWR))  # those that wait for a writer have had one
            opened.unlink()
