"""The embedded queue as a process that can be killed and started again on its database."""

import socket
import subprocess

from tests.process.worker_process import COMMAND, Site, wait_for


class QueueProcess:
    """On the port that the site has when this is made."""

    def __init__(self, site: Site, *, lease_seconds: float) -> None:
        self.port = site.port
        self._command = [
            *(*COMMAND, "queue", "serve"),
            *("--db", str(site.folder / "queue.db"), "--port", str(self.port)),
            *("--lease", f"{lease_seconds:g}s"),
        ]
        self._environment = site.environment("none", {})
        self._log = site.folder / "queue.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def wait_serving(self) -> None:
        wait_for(self._answers, f"the queue; see {self._log}")

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True
