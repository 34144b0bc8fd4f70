"""`cronium-worker queue`: the embedded queue, its servers, events and jobs."""

import click

from worker.cli.queue.add_server import add_server
from worker.cli.queue.jobs import cancel, jobs, show, submit
from worker.cli.queue.scripts import add_event
from worker.cli.queue.serve import serve_command


@click.group()
def queue() -> None:
    """An embedded queue: the Cronium app's queue API over one SQLite file.

    \b
    Example:
      cronium-worker queue serve &
      cronium-worker queue add-server web-1 --host 10.0.0.5 --user deploy --key-file ~/.ssh/id
      cronium-worker queue submit --script hello.sh --server web-1 --wait
    """


for command in (serve_command, add_server, add_event, submit, jobs, show, cancel):
    queue.add_command(command)
