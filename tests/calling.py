"""What the tests of every command share: how it is called, and that a failure leaves nothing behind."""

import numpy as np
from click.testing import CliRunner

from hdcrf.commands.main import commands


class Command:
    """A command by its name, to be called with arguments of any kind."""

    def __init__(self, name):
        self.name = name

    def invoke(self, *arguments):
        return CliRunner().invoke(commands, [self.name, *map(str, arguments)])

    def succeed(self, *arguments, code=0):
        result = self.invoke(*arguments)
        assert result.exit_code == code, result.output
        return result

    def refuse(self, *arguments, code=2):
        """Return the message of a call that must fail, and print no result."""
        result = self.invoke(*arguments)
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        return result.stderr


def contents(folder):
    """Return the bytes of each file but those that a test named bad*."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if "bad" not in str(path.relative_to(folder))}


def member(name, array):
    with np.load(name) as archive:
        return archive[array]
