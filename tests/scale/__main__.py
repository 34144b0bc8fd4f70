"""`scripts/scale`: whether more workers do more, and nothing twice."""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from tests.bench.bench import CannotMeasureError
from tests.scale.run import Stage, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workers", default="1,2,4", show_default=True, help="How many, stage by stage.")
@click.option("--servers", type=click.IntRange(1, 500), default=40, show_default=True)
@click.option("--jobs", type=click.IntRange(1, 10_000), default=80, show_default=True)
def main(workers: str, servers: int, jobs: int) -> None:
    """Run the same jobs with one, two and four worker processes on one queue, and again with one
    of them killed amid its work.

    Exits with 1 if a script was started twice or not at all, or a byte of output was lost.
    """
    counts = [int(each) for each in workers.split(",") if each.isdigit() and int(each)]
    if not counts:
        raise click.UsageError("--workers: expected numbers from 1 up, with commas between them")
    folder = Path(tempfile.mkdtemp(prefix="cronium-scale-"))
    try:
        stages = run(
            folder, counts, servers=servers, jobs=jobs, echo=lambda line: click.echo(line, err=True)
        )
    except CannotMeasureError as error:
        raise click.ClickException(str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for stage in stages:
        click.echo(_line(stage, stages[0]))
        for fault in stage.faults:
            click.echo(f"  {fault}", err=True)
    sys.exit(any(stage.faults for stage in stages))


def _line(stage: Stage, first: Stage) -> str:
    who = f"{stage.workers} workers{', one killed' if stage.has_killed else ''}"
    ratio = stage.jobs_per_second / first.jobs_per_second
    shares = ", ".join(map(str, stage.shares))
    return (
        f"{who:<22} {stage.jobs} jobs in {stage.seconds:5.1f} s ({ratio:.1f} x), "
        f"by worker {shares}; {len(stage.faults)} faults"
    )


if __name__ == "__main__":
    main()
