"""The command line: `interp run`, `report`, `view`, …; a command's module has its name.

`listing` holds `list`, `look` holds `show` and `diff`, `study` holds `validate`, `report` also
`schema`.
"""

from interp.cli.program import app, main

__all__ = ["app", "main"]
