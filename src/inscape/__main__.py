"""``python -m inscape``."""

from inscape.cli import main

main()
