"""``tileattn demo``: real models on real input. Each family of kernels adds a command."""

from __future__ import annotations

import typer

from tileattn.cli.demo_embed import embed
from tileattn.cli.demo_linear import linear

app = typer.Typer(help="Real models on real input, beside the stock kernels.", no_args_is_help=True)
app.command()(embed)
app.command()(linear)
