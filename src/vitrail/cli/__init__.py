"""The command line: `vitrail ask …`. It computes nothing; a command imports what it needs when it runs."""

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line with the process's arguments and exit with its status, interrupted at any moment."""
    try:
        from vitrail.cli.main import main

        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
