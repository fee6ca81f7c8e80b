"""Command line, `vitrail ask …`; a command imports its modules when it runs."""

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line with the process's arguments and exit with its status, also on Ctrl-C at any time."""
    try:
        from vitrail.cli.main import main

        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
