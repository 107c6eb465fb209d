"""The command line, `tinyops` or `python -m tinyops`: one file per command."""

import argparse
from collections.abc import Sequence

from tinyops.cli import info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tinyops", description="Tiny-object detection.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    command = commands.add_parser("info", help=info.__doc__, description=info.__doc__)
    command.set_defaults(run=info.run)
    return parser.parse_args(arguments).run()
