"""The command line: `interp run`, `report`, `view`, `store`, …; a command is a function, grouped by
what it is about.
"""

from interp.cli.commands import app, main

__all__ = ["app", "main"]
