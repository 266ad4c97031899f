"""`python -m l4spec.cli`, the same as `l4spec`."""

from l4spec.cli import main

main()
