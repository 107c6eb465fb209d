"""Make, convert and look at data sets; one file per command."""

from collections.abc import Sequence

from tinyops.cli import Commands, run_command

# Name -> (module with main(arguments) -> int, help), as in tinyops.cli.
COMMANDS: Commands = {
    "convert": ("tinyops.cli.data_convert", "Convert a data set to another format."),
    "synth": ("tinyops.cli.data_synth", "Draw TinySea, a synthetic set of tiny people."),
}


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data <arguments>`; returns the exit code."""
    return run_command("tinyops data", __doc__, COMMANDS, arguments)
