"""`python -m vitrail`, the same as the command `vitrail`."""

from vitrail.cli import run

if __name__ == "__main__":
    run()
