"""The command line, `tinyops` or `python -m tinyops`: one file per command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from tinyops.cli import info

# Commands that need more than torch and numpy: name -> (module with main(arguments) -> int, help).
# The module is imported when its command is used.
COMMANDS = {
    "data": ("tinyops.cli.data", "Make data sets."),
    "demo": ("tinyops.cli.demo", "Find a thousand people in a picture drawn for it."),
    "detect": ("tinyops.cli.detect", "Find tiny objects in images of any size."),
    "pretrain": ("tinyops.cli.pretrain", "Train a backbone on small images."),
    "train": ("tinyops.cli.train", "Train a detector."),
    "eval": ("tinyops.cli.eval", "Measure detections against a data set."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(prog="tinyops", description="Tiny-object detection.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    command = commands.add_parser("info", help=info.__doc__, description=info.__doc__)
    command.set_defaults(run=info.run)
    for name, (_module, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser.parse_args(arguments).run()


def _run(name: str, arguments: Sequence[str]) -> int:
    try:
        module = importlib.import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == "tinyops":
            raise
        message = f'`tinyops {name}` needs the package {missing}: pip install "tinyops[cli]"'
        print(message, file=sys.stderr)
        return 2
    return module.main(arguments)
