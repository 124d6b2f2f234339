"""`python -m interp.cli` is `interp`."""

from interp.cli.commands import main

main()
