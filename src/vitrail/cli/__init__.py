"""The command line: `vitrail ask …`. It computes nothing; a command imports what it needs when it runs."""
