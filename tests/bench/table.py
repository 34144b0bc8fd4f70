"""Rows as text for people and as JSON for programs."""

import json
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.rows import Measured, Row

Rows = Sequence[tuple[Row, Measured]]

_JUDGED = {True: "[green]ok[/]", False: "[red]missed[/]", None: ""}


def table(rows: Rows) -> Table:
    made = Table(box=box.SIMPLE_HEAD)
    for heading in ("row", "median", "min - max", "n", "unit", "target", "", "of what"):
        is_number = heading in ("median", "min - max", "n", "target")
        made.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number)
    for row, got in rows:
        spread = " - ".join(_number(row, end) for end in _ends(got.samples))
        made.add_row(
            row.name,
            "-" if got.value is None else _number(row, got.value),
            spread,
            str(len(got.samples) or ""),
            row.unit,
            str(row.target or ""),
            _JUDGED[got.meets(row.target)],
            f"{row.meaning}; {got.note}" if got.note else row.meaning,
        )
    return made


def show(rows: Rows, console: Console) -> None:
    console.print(table(rows))
    missed = [row.name for row, got in rows if got.meets(row.target) is False]
    if missed:
        console.print(f"missed: {', '.join(missed)}")


def as_json(rows: Rows) -> str:
    """`ok` is null where there is nothing to judge: no target, or no value."""
    told: Mapping[str, object] = {
        "rows": [
            {
                "name": row.name,
                "value": got.value,
                "unit": row.unit,
                "target": None if row.target is None else str(row.target),
                "ok": got.meets(row.target),
            }
            for row, got in rows
        ]
    }
    return json.dumps(told, indent=2) + "\n"


def _ends(samples: tuple[float, ...]) -> tuple[float, ...]:
    return (min(samples), max(samples)) if len(samples) > 1 else ()


def _number(row: Row, value: float) -> str:
    return f"{value:.{row.digits}f}"
