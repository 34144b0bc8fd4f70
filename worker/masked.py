"""An execution's result without its secrets."""

from dataclasses import replace
from typing import Any

import msgspec

from worker.dispatch.result import ServerResult
from worker.masking import Masker


def mask_result(result: ServerResult, masker: Masker) -> ServerResult:
    return replace(
        result,
        error=result.error and masker.mask_text(result.error),
        script_output=result.script_output and mask_json(result.script_output, masker),
    )


def mask_json(text: bytes, masker: Masker) -> bytes:
    """The same JSON, with secrets masked in its texts, and numbers that are secrets."""
    value = msgspec.json.decode(text)
    masked = _masked(value, masker)
    return text if masked == value else msgspec.json.encode(masked)


def _masked(value: Any, masker: Masker) -> Any:  # noqa: ANN401  any JSON value
    match value:
        case dict():
            return {masker.mask_text(name): _masked(each, masker) for name, each in value.items()}
        case list():
            return [_masked(each, masker) for each in value]
        case str():
            return masker.mask_text(value)
        case bool() | None:
            return value
        case _:
            number = str(value)
            masked = masker.mask_text(number)
            return value if masked == number else masked
