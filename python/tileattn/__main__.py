"""``python -m tileattn``: the same as the command ``tileattn``."""

from tileattn.cli import main

main()
