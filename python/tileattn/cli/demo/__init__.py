"""``tileattn demo``: real input. Each family of kernels adds a command."""

from __future__ import annotations

import typer

from tileattn.cli.demo import embed, linear, neighborhood

app = typer.Typer(help="Real input: a language model, a photograph.", no_args_is_help=True)
app.command()(embed.embed)
app.command()(linear.linear)
app.command()(neighborhood.neighborhood)
