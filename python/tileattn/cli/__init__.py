"""The command ``tileattn``: one module or folder per subcommand."""

from __future__ import annotations

import typer

from tileattn.cli import bench, demo, info, plan, show, verify

app = typer.Typer(
    help="Fused tiled attention kernels: what runs here, is it right, how fast is it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(info.info)
app.command()(verify.verify)
app.command()(bench.bench)
app.add_typer(show.app, name="show")
app.command()(plan.plan)
app.add_typer(demo.app, name="demo")


def main() -> None:
    """Runs the command line; exits with 0, 1 (a check failed), 2 (bad usage) or 130 (Ctrl-C)."""
    try:
        app(prog_name="tileattn")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
