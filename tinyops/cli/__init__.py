"""The command line, `tinyops` or `python -m tinyops`: one file per command."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

# Name -> (module with main(arguments) -> int, help). The module is imported when its command is
# used: all but info need more than torch and numpy.
Commands = Mapping[str, tuple[str, str]]
COMMANDS: Commands = {
    "info": ("tinyops.cli.info", "Print versions, what was built, and which kernels are used."),
    "data": ("tinyops.cli.data", "Make, convert and look at data sets."),
    "demo": ("tinyops.cli.demo", "Find a thousand people in a picture drawn for it."),
    "detect": ("tinyops.cli.detect", "Find tiny objects in images of any size."),
    "pretrain": ("tinyops.cli.pretrain", "Train a backbone on small images."),
    "train": ("tinyops.cli.train", "Train a detector."),
    "eval": ("tinyops.cli.eval", "Measure detections against a data set."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command("tinyops", "Tiny-object detection.", COMMANDS, arguments)


def run_command(
    program: str, description: str | None, commands: Commands, arguments: Sequence[str]
) -> int:
    """Run the command that the first argument names; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    table = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (_module, text) in commands.items():
        table.add_parser(name, help=text, add_help=False)
    name = parser.parse_args(arguments[:1]).command
    try:
        module = importlib.import_module(commands[name][0])
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == "tinyops":
            raise
        message = f'`{program} {name}` needs the package {missing}: pip install "tinyops[cli]"'
        print(message, file=sys.stderr)
        return 2
    return module.main(arguments[1:])
