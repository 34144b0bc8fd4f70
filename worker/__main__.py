"""`python -m worker` is `cronium-worker`."""

from worker.cli import main

main()
