"""`python -m interp.cli` is `interp`."""

from interp.cli.program import main

main()
