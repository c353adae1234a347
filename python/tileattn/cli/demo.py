"""``tileattn demo``: real models on real input. Each family of kernels adds a command."""

from __future__ import annotations

import typer

from tileattn.cli.demo_embed import embed

app = typer.Typer(help="Real models on real input, beside the stock kernels.", no_args_is_help=True)
app.command()(embed)


@app.callback()
def _demos() -> None:
    """Keeps `embed` a subcommand while it is the only one."""
