"""`scripts/bench`: which rows, how many rounds, and what is made of them."""

import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from tests.bench import curve
from tests.bench.bench import Bench, CannotMeasureError, Experiment
from tests.bench.clients import install_peers
from tests.bench.experiments import EXPERIMENTS
from tests.bench.rows import Measured, Row, Target, unmeasured
from tests.bench.table import as_json, show

ROWS = {row.name: row for experiment in EXPERIMENTS for row in experiment.rows}
GROUPS = {experiment.name: experiment for experiment in EXPERIMENTS}
WIDTH = 150


def _all_rows() -> str:
    """For the end of `--help`."""
    lines = ["\b", "Rows, and the groups that are measured together:"]
    for experiment in EXPERIMENTS:
        lines.append(f"  {experiment.name}")
        for row in experiment.rows:
            target = f" (target {row.target})" if row.target else ""
            lines.append(f"    {row.name}: {row.meaning}, {row.unit}{target}")
    return "\n".join(lines)


class RowNames(click.ParamType[frozenset[str]]):
    """A row, or all rows of a group."""

    name = "name"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> frozenset[str]:
        name = str(value)
        if name in GROUPS:
            return frozenset(row.name for row in GROUPS[name].rows)
        if name not in ROWS:
            self.fail(f"there is no row {name!r}; see --help", param, ctx)
        return frozenset([name])


class RowTarget(click.ParamType[tuple[str, float]]):
    name = "row=bound"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        name, _, bound = str(value).partition("=")
        row = ROWS.get(name)
        if row is None or row.target is None:
            self.fail(f"there is no row {name!r} with a target; see --help", param, ctx)
        try:
            number = float(bound)
        except ValueError:
            self.fail(f"{bound!r} is no number", param, ctx)
        return name, number


@click.command(epilog=_all_rows(), context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=RowNames())
@click.option(
    "--servers",
    type=click.IntRange(2, 1000),
    help="In a fan-out.  [default: 200, and 20 with --quick]",
)
@click.option("--rounds", type=click.IntRange(1), help="[default: 5, and 1 with --quick]")
@click.option("--quick", is_flag=True, help="Small sizes, to see that it works; not for figures.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option(
    "--svg", "svg_file", type=click.Path(path_type=Path), help="Draw the fan-out curve there."
)
@click.option("--check", is_flag=True, help="Exit with 1 if a row misses its target.")
@click.option(
    "--target", "targets", type=RowTarget(), multiple=True, help="Another bound; repeatable."
)
@click.option(
    "--with-peers",
    is_flag=True,
    help="Install other tools into a scratch environment, .state/bench-peers, and measure them.",
)
def main(
    names: tuple[frozenset[str], ...],
    servers: int | None,
    rounds: int | None,
    quick: bool,
    json_file: Path | None,
    svg_file: Path | None,
    check: bool,
    targets: tuple[tuple[str, float], ...],
    with_peers: bool,
) -> None:
    """Measure what the worker costs; all rows, or those named.

    Each figure is the median of its rounds. Programs that are compared take turns.
    """
    folder = Path(tempfile.mkdtemp(prefix="cronium-bench-"))
    bench = Bench(
        folder,
        servers=servers or (20 if quick else 200),
        rounds=rounds or (1 if quick else 5),
        quick=quick,
        wanted=frozenset().union(*names) if names else frozenset(ROWS),
        peers=Path(".state/bench-peers").absolute(),
        say=lambda line: click.echo(line, err=True),
    )
    rows: list[tuple[Row, Measured]] = []
    try:
        if with_peers:
            install_peers(bench.peers, bench.say)
        for experiment in EXPERIMENTS:
            if bench.wants(*(row.name for row in experiment.rows)):
                rows += _rows(experiment, bench, dict(targets))
        if svg_file is not None:
            svg_file.write_text(curve.measure(bench))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows, Console(width=WIDTH))
    if json_file is not None:
        json_file.write_text(as_json(rows))
    sys.exit(check and any(got.meets(row.target) is False for row, got in rows))


def _rows(
    experiment: Experiment, bench: Bench, bounds: dict[str, float]
) -> list[tuple[Row, Measured]]:
    """The wanted rows of one experiment; a fault of the set-up is a row without a value."""
    wanted = [row for row in experiment.rows if row.name in bench.wanted]
    began = time.monotonic()
    try:
        results = experiment.run(bench)
    except CannotMeasureError as error:
        results = unmeasured([row.name for row in wanted], str(error))
    bench.say(f"{experiment.name}: {time.monotonic() - began:.1f} s")
    found = {result.name: result for result in results}
    return [(_bounded(row, bounds), found[row.name]) for row in wanted if row.name in found]


def _bounded(row: Row, bounds: dict[str, float]) -> Row:
    if row.target is None or row.name not in bounds:
        return row
    return replace(row, target=Target(bounds[row.name], row.target.at_least))


if __name__ == "__main__":
    main()
