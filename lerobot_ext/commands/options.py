"""Command-line options of the commands that have no YAML, with complaints that are sentences."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from lerobot_ext.errors import UserError


class Options(argparse.ArgumentParser):
    """argparse that raises its complaints as `UserError`, and names the nearest option for one that does not exist.

    Args:
        command: The word after `lerobot-ext`.
        kwargs: As argparse's.
    """

    def __init__(self, command: str, **kwargs) -> None:
        super().__init__(prog=f"lerobot-ext {command}", allow_abbrev=False, **kwargs)
        self.command = command

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """The options in `args`.

        Raises:
            UserError: For one that does not exist, or a value that cannot be.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(name, known, n=1)
            self.error(f"there is no option '{name}'" + (f", did you mean '{near[0]}'?" if near else ""))
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have printed with its usage.

        Raises:
            UserError: Always.
        """
        raise UserError(
            f"{self.command}: {message.rstrip('.')}; `lerobot-ext {self.command} --help` lists the options."
        )
