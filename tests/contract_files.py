"""The recorded contract: requests and answers of the real Cronium app."""

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "contract"


@cache
def steps(scenario: str) -> list[dict[str, Any]]:
    recorded: dict[str, Any] = json.loads((FOLDER / f"{scenario}.json").read_text())
    found: list[dict[str, Any]] = recorded["steps"]
    return found


def claimed_jobs(scenario: str) -> list[dict[str, Any]]:
    """Every job in the answers to the scenario's claims, in their order."""
    return [
        job
        for step in steps(scenario)
        if "/jobs/queue" in step.get("request", {}).get("path", "")
        and isinstance(step["response"]["body"], dict)
        for job in step["response"]["body"].get("jobs", ())
    ]
