"""The README says of the settings what the code says."""

from pathlib import Path

from worker.settings import VARIABLES

README = Path(__file__).parents[2] / "README.md"


def configuration_table() -> str:
    """The table of the README's section on configuration."""
    rows = ["| variable | meaning | expected | default |", "|---|---|---|---|"]
    for variable in VARIABLES:
        default = f"`{variable.default}`" if variable.default else "required" * variable.required
        rows.append(f"| `{variable.name}` | {variable.meaning} | {variable.expected} | {default} |")
    return "\n".join(rows)


def test_the_configuration_table_is_the_one_of_the_code() -> None:
    assert configuration_table() in README.read_text()
