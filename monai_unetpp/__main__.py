# SPDX-License-Identifier: Apache-2.0
"""The command line: ``monai-unetpp COMMAND``, or ``python -m monai_unetpp COMMAND``.

A user's mistake, or a report of scans that failed, ends in ``error: ...`` on stderr and exit status 2; any
other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_unetpp._version import __version__
from monai_unetpp.commands import COMMANDS
from monai_unetpp.errors import quiet_libraries


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: Arguments without the program's name; by default those of the process.

    Raises:
        SystemExit: with status 2 on a mistake or if scans failed, 0 after ``--help`` and ``--version``.
    """
    as_module = Path(sys.argv[0]).name == "__main__.py"
    program = "python -m monai_unetpp" if as_module else "monai-unetpp"
    parser = argparse.ArgumentParser(program, description="Tools around UNet++ for MONAI.")
    parser.add_argument("--version", action="version", version=f"monai-unetpp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, declare in COMMANDS.items():
        child = commands.add_parser(
            name, help=declare.__doc__, description=declare.__doc__, allow_abbrev=False
        )
        child.set_defaults(run=declare(child))
    args, words = parser.parse_known_args(arguments)
    if words and not hasattr(args, "words"):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    quiet_libraries()
    args.words = words
    try:
        result = args.run(args)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if getattr(result, "failed", None):
        parser.exit(2, f"error: {result}\n")
    sys.stdout.write(f"{result}\n" if result != "" else "")


if __name__ == "__main__":
    main()
