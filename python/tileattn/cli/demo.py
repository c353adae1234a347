"""``tileattn demo``: real input. Each family of kernels adds a command."""

from __future__ import annotations

import typer

from tileattn.cli.demo_embed import embed
from tileattn.cli.demo_linear import linear
from tileattn.cli.demo_neighborhood import neighborhood

app = typer.Typer(help="Real input: a language model, a photograph.", no_args_is_help=True)
app.command()(embed)
app.command()(linear)
app.command()(neighborhood)
