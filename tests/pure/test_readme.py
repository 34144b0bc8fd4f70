"""The README says of the settings and of the log what the code says."""

import re
from pathlib import Path

from worker.settings.variables import VARIABLES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def configuration_table() -> str:
    """The table of the README's section on configuration."""
    rows = ["| variable | meaning | expected | default |", "|---|---|---|---|"]
    for variable in VARIABLES:
        default = f"`{variable.default}`" if variable.default else "required" * variable.required
        rows.append(f"| `{variable.name}` | {variable.meaning} | {variable.expected} | {default} |")
    return "\n".join(rows)


def test_the_configuration_table_is_the_one_of_the_code() -> None:
    assert configuration_table() in README.read_text()


def test_every_event_of_the_log_above_debug_is_named() -> None:
    call = re.compile(r'log(?:ger\(\))?\.(?:info|warning|error|exception)\(\s*"(\w+)"')
    events = {
        event
        for file in (ROOT / "worker").rglob("*.py")
        for event in call.findall(file.read_text())
    }

    named = README.read_text().partition("\nEvents: ")[2].partition("\n## ")[0]

    assert {event for event in events if f"`{event}`" not in named} == set()
    assert len(events) > 50
