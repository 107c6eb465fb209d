"""Make, convert and look at data sets; one file per command."""

from collections.abc import Sequence

from tinyops.cli import Commands, run_command

# Name -> (module with main(arguments) -> int, help), as in tinyops.cli.
COMMANDS: Commands = {
    "anchors": ("tinyops.cli.data_anchors", "Find anchors that fit the objects of a data set."),
    "convert": ("tinyops.cli.data_convert", "Convert a data set to another format."),
    "stats": ("tinyops.cli.data_stats", "Count objects by class, size and shape; anchor coverage."),
    "synth": ("tinyops.cli.data_synth", "Draw TinySea, a synthetic set of tiny people."),
    "tile": (
        "tinyops.cli.data_tile",
        "Cut a data set into tiles, and merge what was found in them.",
    ),
    "view": ("tinyops.cli.data_view", "Show images with their boxes on one page."),
}


def main(arguments: Sequence[str]) -> int:
    """Run `tinyops data <arguments>`; returns the exit code."""
    return run_command("tinyops data", __doc__, COMMANDS, arguments)
