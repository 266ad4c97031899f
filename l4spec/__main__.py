"""`python -m l4spec`, the same as `l4spec`: what torchrun starts."""

from l4spec.cli import main

main()
