"""`cronium-worker hosts`: the host keys that a worker has pinned."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import click
import trio

from worker.cli.exits import EXIT_FAILED, EXIT_UNAVAILABLE, fail
from worker.cli.host_key import HostKeyText
from worker.cli.printing import print_json, print_table
from worker.cli.running import name_account, run
from worker.cli.state import opened_state
from worker.clock import now_ms, rfc3339
from worker.errors import ConnectError, HostKeyError
from worker.remote.address import Address, parse_address
from worker.remote.given_keys import GivenKey, fingerprint
from worker.remote.scan import host_key_with, shown_host_key
from worker.state.host_keys import HostKeys, Pin

ANSWER_SECONDS = 20.0


class Server(click.ParamType[Address]):
    name = "host[:port]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return parse_address(str(value))
        except ValueError:
            self.fail(f"{value!r} is not HOST, HOST:PORT or [HOST]:PORT", param, ctx)


@click.group()
def hosts() -> None:
    """The host keys that this worker has pinned.

    With CRONIUM_SSH_HOST_KEYS=accept-new a worker pins the key that a server shows first, and
    refuses any other from then on. These commands take the state from CRONIUM_STATE_DIR and need
    no other setting. A worker may be running on it, and heeds them from its next connection on.

    \b
    Examples:
      cronium-worker hosts list
      cronium-worker hosts trust web-1:2222
      cronium-worker hosts forget web-1 '[fd00::5]:2222'
    """


@hosts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_command(as_json: bool) -> None:
    """List what is pinned: for which server, when, by which job, and at which address.

    \b
    Example:
      cronium-worker hosts list --json
    """
    with _pins() as pins:
        found = pins.all()
    if as_json:
        print_json([_row(pin) for pin in found])
        return
    print_table(
        ("server", "algorithm", "fingerprint", "pinned", "by", "from"),
        [
            (
                str(Address(pin.host, pin.port)),
                _algorithm(pin),
                fingerprint(pin.public_key),
                rfc3339(pin.pinned_at),
                pin.job_id or "hand",
                pin.address or "",
            )
            for pin in found
        ],
    )


@hosts.command("trust")
@click.argument("server", type=Server(), metavar="HOST[:PORT]")
@click.argument("key", type=HostKeyText(), required=False, metavar="[KEY|FINGERPRINT]")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
def trust(server: Address, key: GivenKey | None, yes: bool) -> None:
    """Pin a server's host key in the place of what is pinned.

    Given the line of a public key, that is pinned without a connection. Given a SHA256:
    fingerprint, the server is asked for the key that has it. Given neither, the key that it shows
    is pinned once you have said yes. Nothing is proved to the server in either case.

    \b
    Examples:
      cronium-worker hosts trust web-1
      cronium-worker hosts trust web-1:2222 SHA256:Jc1xp0Hb3jEzCB/q7NVlcaD1iYkLXwXCC9mtNjqqe1E
      cronium-worker hosts trust web-1 "$(cat ssh_host_ed25519_key.pub)"
    """
    if key is None and not yes and not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal to ask at: give the key, its fingerprint, or --yes"
        )
    with _pins() as pins:
        pinned = pins.pinned(server.host, server.port)
        new = _new_pin(server, key)
        shown = fingerprint(new.public_key)
        if key is None:
            click.echo(f"{server} at {new.address} shows {_algorithm(new)} {shown}", err=True)
        if pinned is not None and pinned.public_key == new.public_key:
            click.echo(f"{server}: {_told(pinned)}, as before", err=True)
        else:
            if pinned is not None:
                click.echo(f"{server}: in the place of {_told(pinned)}", err=True)
            if key is None and not yes and not click.confirm("Trust this key?", err=True):
                fail(f"{server}: nothing was changed", EXIT_FAILED)
            pins.replace(new)
    click.echo(f"{server} {_algorithm(new)} {shown}")


@hosts.command("forget")
@click.argument("servers", type=Server(), nargs=-1, required=True, metavar="HOST[:PORT]...")
def forget(servers: tuple[Address, ...]) -> None:
    """Unpin servers' host keys: the next key that each of them shows is pinned.

    \b
    Example:
      cronium-worker hosts forget web-1 web-1:2222
    """
    with _pins() as pins:
        unknown = [each for each in servers if not pins.forget(each.host, each.port)]
    for server in servers:
        if server not in unknown:
            click.echo(str(server))
    if unknown:
        fail("\n".join(f"{server}: no key is pinned" for server in unknown), EXIT_FAILED)


def _new_pin(server: Address, key: GivenKey | None) -> Pin:
    if key is not None and key.line is not None:
        return Pin(server.host, server.port, key.line, now_ms())
    name_account()
    try:
        return run(partial(_shown_pin, server, key))
    except HostKeyError as error:
        fail(str(error), EXIT_FAILED)
    except ConnectError as error:
        fail(str(error), EXIT_UNAVAILABLE)
    except trio.TooSlowError:
        fail(f"{server} does not answer", EXIT_UNAVAILABLE)


async def _shown_pin(server: Address, key: GivenKey | None) -> Pin:
    with trio.fail_after(ANSWER_SECONDS):
        if key is None:
            shown = await shown_host_key(server)
        else:
            shown = await host_key_with(server, [key.fingerprint])
    return Pin(server.host, server.port, shown.public_line, now_ms(), address=shown.address)


@contextmanager
def _pins() -> Iterator[HostKeys]:
    with opened_state() as database:
        yield HostKeys(database)


def _told(pin: Pin) -> str:
    by = f"by {pin.job_id}" if pin.job_id else "by hand"
    return f"{fingerprint(pin.public_key)}, pinned {rfc3339(pin.pinned_at)} {by}"


def _algorithm(pin: Pin) -> str:
    return pin.public_key.split(" ", 1)[0]


def _row(pin: Pin) -> dict[str, object]:
    return {
        "host": pin.host,
        "port": pin.port,
        "algorithm": _algorithm(pin),
        "fingerprint": fingerprint(pin.public_key),
        "public_key": pin.public_key,
        "pinned_at": rfc3339(pin.pinned_at),
        "job_id": pin.job_id,
        "address": pin.address,
    }
