"""A host key as an argument of a command."""

import click

from worker.remote.given_keys import GivenKey, parse_given_key


class HostKeyText(click.ParamType[GivenKey]):
    name = "key|fingerprint"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> GivenKey:
        if isinstance(value, GivenKey):
            return value
        try:
            return parse_given_key(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
