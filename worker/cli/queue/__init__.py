"""`cronium-worker queue`: the embedded queue, its servers, events and jobs."""

import click

from worker.cli.lazy import LazyGroup

COMMANDS = {
    "serve": "worker.cli.queue.serve",
    "add-server": "worker.cli.queue.add_server",
    "add-event": "worker.cli.queue.scripts",
    "submit": "worker.cli.queue.jobs",
    "jobs": "worker.cli.queue.jobs",
    "show": "worker.cli.queue.jobs",
    "cancel": "worker.cli.queue.jobs",
}


@click.group(cls=LazyGroup, modules=COMMANDS)
def queue() -> None:
    """An embedded queue: the Cronium app's queue API over one SQLite file.

    \b
    Example:
      cronium-worker queue serve &
      cronium-worker queue add-server web-1 --host 10.0.0.5 --user deploy --key-file ~/.ssh/id
      cronium-worker queue submit --script hello.sh --server web-1 --wait
    """
