"""`cronium-worker demo`: one job on a few servers, all on this machine."""

import os
import sys
from functools import partial
from pathlib import Path

import click
import trio
from rich.console import Console

from worker.cli.parameters import Place
from worker.demo.play import Setting, play


@click.command("demo")
@click.option(
    "--servers", type=click.IntRange(1, 50), default=3, show_default=True, help="How many."
)
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C; say how to talk to it.")
@click.option("--fresh", is_flag=True, help="Forget the demos before, and what they deployed.")
@click.option("--no-sshd", is_flag=True, help="Use the SSH server in Python even if sshd is there.")
@click.option(
    "--dir",
    "directory",
    type=Place(is_directory=True),
    help="All that is written goes here.  [default: .state/demo in a checkout]",
)
def demo(servers: int, keep: bool, fresh: bool, no_sshd: bool, directory: Path | None) -> None:
    """Run one job on a few servers of this machine, from queue to result.

    Starts an embedded queue, SSH servers and a worker, and ends them. The last server's script
    fails on purpose. A second demo finds the runner where the first one deployed it.

    \b
    Example:
      cronium-worker demo --servers 10
    """
    setting = Setting(
        directory=(directory or _default_directory()).resolve(),
        size=servers,
        keep=keep,
        fresh=fresh,
        use_sshd=not no_sshd,
    )
    sys.exit(trio.run(partial(play, setting, Console(highlight=False))))


def _default_directory() -> Path:
    if Path("scripts/demo").exists() and Path("worker/demo").exists():
        return Path(".state/demo")
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(os.path.expanduser(home)) / "cronium-worker" / "demo"  # noqa: PTH111  Path's raises without a home
