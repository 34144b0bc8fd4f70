"""The runner as it is shipped: one version of it, named by its content."""

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Artifact:
    content: bytes = field(repr=False)
    installer: str = field(repr=False)
    sha256: str

    @property
    def version(self) -> str:
        return self.sha256[:12]

    def install_script(self, nonce: str) -> bytes:
        """A POSIX sh script, for the stdin of `sh`, that carries the runner and installs it."""
        filled = (
            self.installer.replace("@NONCE@", nonce)
            .replace("@NAME@", f"runner-{self.version}")
            .replace("@SHA256@", self.sha256)
        )
        before, after = filled.split("@ARTIFACT@\n")
        return before.encode() + self.content + after.encode()


def load_artifact() -> Artifact:
    here = files("worker.remote")
    content = (here / "runner.sh").read_bytes()
    installer = (here / "install.sh").read_text()
    return Artifact(content, installer, hashlib.sha256(content).hexdigest())
