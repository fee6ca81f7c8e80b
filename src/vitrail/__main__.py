"""`python -m vitrail`, the same as the command `vitrail`."""

from vitrail.cli.main import run

if __name__ == "__main__":
    run()
