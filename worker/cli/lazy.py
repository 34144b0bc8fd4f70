"""Groups of commands that import what they call, and no more."""

import gc
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import click


class LazyGroup(click.Group):
    """Imports a command's module when it is needed: `--version`, probes and submitting must be
    quick.

    `modules` has for each command the module with a click command of the same name.
    """

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **named: Any) -> None:  # noqa: ANN401  click's signature
        super().__init__(*arguments, **named)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        if cmd_name not in self._modules:
            return None
        command = getattr(_imported(self._modules[cmd_name]), cmd_name.replace("-", "_"))
        if not isinstance(command, click.Command):
            raise TypeError(cmd_name)
        return command


def _imported(module: str) -> ModuleType:
    """With all that it imports, none of which is garbage, then or later."""
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()
