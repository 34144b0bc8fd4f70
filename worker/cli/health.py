"""`cronium-worker health`: whether the worker on a state directory is well."""

import json
import os

import click

from worker.cli.exits import EXIT_CONFIGURATION, EXIT_FAILED, fail
from worker.errors import SettingsError
from worker.settings.environment import load_state_dir
from worker.vitals import health as health_of


@click.command
@click.option("--live", "wanted", flag_value="live", help="Its loops go round; nothing else.")
@click.option(
    "--ready", "wanted", flag_value="ready", default="ready", help="And the API answers. [default]"
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def health(wanted: str, as_json: bool) -> None:
    """Say whether the worker on CRONIUM_STATE_DIR is well: 0 if it is, 1 if not.

    The worker touches `heartbeat` there every 15 s while its polls, its outbox and its event loop
    all go on, and `ready` while the API answers. Restart it where --live fails; where only --ready
    does, that is of no use. A probe that asks every few seconds costs less as

    \b
      test -n "$(find "$CRONIUM_STATE_DIR/heartbeat" -mmin -1)"

    \b
    Example:
      cronium-worker health --live
    """
    try:
        directory = load_state_dir(os.environ)
    except SettingsError as error:
        fail(str(error), EXIT_CONFIGURATION)
    found = health_of(directory, is_ready=wanted == "ready")
    if as_json:
        click.echo(json.dumps({"healthy": found.is_well, "fault": found.fault}))
    elif found.is_well:
        click.echo("healthy")
    if found.fault is not None:
        fail(found.fault, EXIT_FAILED)
