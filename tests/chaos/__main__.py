"""`scripts/chaos`: a run, its progress and its verdict."""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from tests.chaos.run import Verdict, run

SHOWN = 30


@click.command
@click.option("--minutes", type=click.FloatRange(min=0.05), default=1.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--as-app", is_flag=True, help="Claims have no tokens, as those of the app.")
@click.option("--keep", is_flag=True, help="Keep the folder though nothing was found.")
def main(minutes: float, seed: int, as_app: bool, keep: bool) -> None:
    """Kill and cut at random, and audit what has become of the jobs.

    The same seed gives the same jobs and the same faults at the same times; what the processes
    are doing then is not the same.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"cronium-chaos-{seed}-"))
    click.echo(f"seed {seed}, {minutes:g} minutes, in {folder}")
    verdict = run(folder, seed=seed, seconds=minutes * 60, echo=click.echo, as_app=as_app)
    for line in verdict.table():
        click.echo(line)
    if verdict.is_good and not keep:
        shutil.rmtree(folder)
    else:
        _tell(verdict, folder)
    click.echo(verdict.last_line())
    sys.exit(not verdict.is_good)


def _tell(verdict: Verdict, folder: Path) -> None:
    texts = [*verdict.problems, *(f"{each.fact}: {each.text}" for each in verdict.findings)]
    (folder / "findings").write_text("\n".join(texts) + "\n")
    for text in texts[:SHOWN]:
        click.echo(text)
    click.echo(f"{len(texts)} findings; logs, states and servers are kept in {folder}")


if __name__ == "__main__":
    main()
