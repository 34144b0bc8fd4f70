"""What options of commands are given as."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from worker.clock import now_ms
from worker.remote.payload import directory_fault, variable_fault
from worker.values import parse_duration

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
MOST_ROWS = 1_000_000
# A century, and the end of the year 9999 in UTC epoch milliseconds: no date says more.
MOST_SECONDS = 100 * 366 * 86400.0
LATEST_MS = 253_402_214_400_000

# What a script is written in, in the words of `--type`; with any other suffix it is bash.
_TYPES = {".py": "python", ".js": "node", ".mjs": "node", ".cjs": "node"}


class Place(click.Path):
    """A path that need not be there yet; `~` is the home wherever it comes from."""

    def __init__(self, *, is_directory: bool) -> None:
        super().__init__(path_type=Path, file_okay=not is_directory, dir_okay=is_directory)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401  click's signature
        if not str(value).strip() or "\0" in str(value):
            self.fail(f"{value!r} is no path", param, ctx)
        path = Path(os.path.expanduser(value))  # noqa: PTH111  its own raises without a home
        super().convert(path, param, ctx)
        place = path.absolute()
        way = place.parents if self.file_okay else (place, *place.parents)
        found = next(above for above in way if os.path.lexists(above))
        if not os.path.isdir(found):  # noqa: PTH112  Path's raises where it may not look
            self.fail(f"'{found}' is no directory", param, ctx)
        return path


def text_of(file: Path) -> str:
    """Raises UsageError where it cannot be read, or is no text."""
    try:
        return file.read_text()
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file} is no text: {error}") from error


def type_of(script: Path) -> str:
    """What it is written in by its file's suffix: bash, python or node."""
    return _TYPES.get(script.suffix, "bash")


def is_unicode(text: str) -> bool:
    """Bytes of an argument that are not UTF-8 come as halves of surrogate pairs; JSON and SQLite
    have no place for them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(str(value))
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= MOST_SECONDS:
            self.fail(f"{value!r} is no duration: 30s, 5m, 1h30m or seconds", param, ctx)
        return seconds


class Moment(click.ParamType[int]):
    """A point in time, as UTC epoch milliseconds."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        try:
            if text.startswith("+"):
                return _within_dates(now_ms() + parse_duration(text[1:]) * 1000)
            return _epoch_ms(text)
        except ValueError:
            self.fail(
                f"{text!r} is no time: 2026-11-23T18:00, 2026-11-23T18:00Z or +10m", param, ctx
            )


class Since(click.ParamType[int]):
    """A point in time that has been, as UTC epoch milliseconds."""

    name = "duration|time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        try:
            return _within_dates(now_ms() - parse_duration(text) * 1000)
        except ValueError:
            pass
        try:
            return _epoch_ms(text)
        except ValueError:
            self.fail(
                f"{text!r} is no time: 10m, 2026-11-23T18:00 or 2026-11-23T18:00Z", param, ctx
            )


def _epoch_ms(text: str) -> int:
    """Without an offset it is this machine's time. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    try:
        return _within_dates(moment.astimezone().timestamp() * 1000)
    except OverflowError as error:
        raise ValueError(text) from error


def _within_dates(moment_ms: float) -> int:
    if not 0 <= moment_ms <= LATEST_MS:
        raise ValueError(moment_ms)
    return int(moment_ms)


class Assignment(click.ParamType[tuple[str, str]]):
    """A variable that a shell could export; of Unicode alone, where that is `only_unicode`."""

    name = "name=value"

    def __init__(self, *, only_unicode: bool = False) -> None:
        self._only_unicode = only_unicode

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        # The name alone: a value may be a secret.
        if fault := variable_fault(name, text):
            self.fail(fault, param, ctx)
        if self._only_unicode and not is_unicode(text):
            self.fail(f"the value of {name} is not UTF-8", param, ctx)
        return name, text


class Name(click.ParamType[str]):
    """What something is known by, such as an id; `is_fit` is what more it has to be."""

    def __init__(self, name: str = "name", is_fit: Callable[[str], bool] = bool) -> None:
        self.name = name
        self._is_fit = is_fit

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        if not text.strip():
            self.fail("it is empty", param, ctx)
        if "\0" in text or not is_unicode(text) or not self._is_fit(text):
            self.fail(f"{text!r} is no {self.name}", param, ctx)
        return text


class Directory(click.ParamType[str]):
    """One on a server; empty for none."""

    name = "directory"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        directory = str(value)
        if fault := directory_fault(directory):
            self.fail(f"{directory!r} {fault}", param, ctx)
        if not is_unicode(directory):
            self.fail(f"{directory!r} is not UTF-8", param, ctx)
        return directory
