"""``tileattn show``: pictures of a pattern's tiles, and of what a query of a neighborhood sees."""

from __future__ import annotations

import typer

from tileattn.cli.show import neighborhood, tiles

app = typer.Typer(invoke_without_command=True)
app.callback()(tiles.show)
app.command()(neighborhood.neighborhood)
