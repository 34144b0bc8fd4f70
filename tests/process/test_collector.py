"""The worker's process: how often Python looks through it for garbage."""

import subprocess
import sys

PROGRAM = """
import gc
import click
from worker.cli import main
from worker.cli.run import spare_the_collector

main.get_command(click.Context(main), "run")
spare_the_collector()
looks = []
gc.callbacks.append(lambda phase, info: looks.append(info["generation"]))
for _ in range(100_000):
    garbage = []
    garbage.append(garbage)
print(gc.get_freeze_count(), len(looks) // 2, max(looks))
"""


def test_garbage_is_looked_for_seldom_and_not_in_what_was_imported() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    ).stdout
    imported, looks, oldest = map(int, said.split())

    assert imported > 50_000
    # It is still looked for: 100,000 that nobody else would find.
    assert 10 <= looks <= 25
    assert oldest == 1
