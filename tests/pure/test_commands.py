"""What every command has."""

from collections.abc import Iterator

import click
import pytest

from worker.cli import main

# Those that a person reads as a table, or as lines.
WITH_JSON = {
    *("check", "exec", "health", "history", "orphans", "show", "status"),
    *("cache list", "hosts list", "outbox list", "queue jobs", "queue show", "runs list"),
}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """All that do something, by their words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


ALL = dict(commands(main))


@pytest.mark.parametrize("name", ALL)
def test_its_help_has_an_example(name: str) -> None:
    assert f"cronium-worker {name}" in (ALL[name].help or "")


def test_what_is_shown_to_people_is_there_for_programs() -> None:
    has_json = {
        name for name, each in ALL.items() if any("--json" in option.opts for option in each.params)
    }

    assert has_json == WITH_JSON


@pytest.mark.parametrize("name", ALL)
def test_each_of_its_options_says_what_it_is(name: str) -> None:
    options = [each for each in ALL[name].params if isinstance(each, click.Option)]

    assert [each.opts[0] for each in options if not each.help] == []


@pytest.mark.parametrize("name", ["cache forget", "runs forget"])
def test_its_usage_does_not_ask_for_what_an_option_stands_for(name: str) -> None:
    command = ALL[name]

    usage = command.get_usage(click.Context(command))

    assert usage.endswith("]...")
