"""What options of commands are given as."""

from datetime import datetime
from pathlib import Path

import click

from worker.clock import now_ms
from worker.values import parse_duration

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


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
        if not seconds:
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
                return now_ms() + int(parse_duration(text[1:]) * 1000)
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
            return now_ms() - int(parse_duration(text) * 1000)
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
    return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)


class Assignment(click.ParamType[tuple[str, str]]):
    name = "name=value"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text
