"""The command line: `interp run`, `report`, `view`, …; each command's module has its name.

But `listing` holds `list`, `look` holds `show` and `diff`, `study` holds `validate`, and `schemas`
holds `schema`; `events` has the lines of `interp run --json`.
"""

from interp.cli.program import app, main

__all__ = ["app", "main"]
