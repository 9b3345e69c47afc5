"""argparse with errors of one line, for the commands that need no jsonargparse."""

import argparse
import difflib
import re
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they are said in one line; a wrong choice gets the nearest."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage.

        Raises:
            ValueError: Always.
        """
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", wrong.group(2))
            if near := difflib.get_close_matches(wrong.group(1), choices, n=2):
                message = f"{message}. Did you mean {' or '.join(near)}?"
        raise ValueError(message)
