"""``tileattn demo neighborhood``: patches of a photograph look for their like around them.

There is no trained model: queries and keys are hand-made descriptors of patches, one head for
colour and one for texture, and values are the patches' pixels, so that the output is the
photograph with each patch replaced by a mean of similar ones (as in non-local means).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

import tileattn
from tileattn.cli import console, grids, machine, timing
from tileattn.cli.pictures import import_pyplot
from tileattn.reference import neighborhood_mask

PHOTOS = ("chelsea", "astronaut", "coffee")  # inside scikit-image's wheel
HEADS = ("colour", "texture")
PATCH = 4  # pixels on a side
DIM = 16
SHARPNESS = 12.0  # factor of the cosine of two descriptors
LARGEST_ERROR = 1e-5


def neighborhood(
    photo: Annotated[str, typer.Option(help=", ".join(PHOTOS))] = "chelsea",
    size: Annotated[int, typer.Option(min=32, help="pixels of the longer side")] = 320,
    window: Annotated[int, typer.Option(min=2, help="patches on a side")] = 21,
    query: Annotated[str | None, typer.Option(help="row x column of a patch, e.g. 20x30")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="of measuring")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write")] = Path(
        "attention.png"
    ),
) -> None:
    """Neighborhood attention on a photograph: one query's weights as a picture, checked and timed.

    Patches of 4 x 4 pixels are the tokens. Two heads compare them by colour and by texture; there
    is no trained model. The exit code is 1 if the kernel disagrees with the reference.

    Example: tileattn demo neighborhood --photo astronaut --query 14x34
    """
    if threads is not None:
        torch.set_num_threads(threads)
    import_pyplot()
    pixels = _photo(photo, size)
    descriptors, patches = _descriptors(pixels), _patches(pixels)
    grid = tuple(descriptors.shape[1:3])
    if window > min(grid):
        console.fail(f"window is {window}; it must fit the grid of patches, {grids.shape(grid)}", 2)
    place = grids.numbers("query", query) if query else [length // 2 for length in grid]
    if len(place) != 2 or place[0] >= grid[0] or place[1] >= grid[1]:
        console.fail(f"query is {query}; it must be a place among {grids.shape(grid)} patches", 2)

    def attend(backend: str | None) -> tuple[Tensor, Tensor]:
        return tileattn.neighborhood_attention(
            descriptors,
            descriptors,
            patches,
            window=window,
            scale=SHARPNESS,
            return_lse=True,
            backend=backend,
        )

    out, lse = attend(None)
    weights = _weights(descriptors, lse, place, window)
    console.out.print(
        f"{photo}: {math.prod(grid)} patches on a grid of {grids.shape(grid)}, {len(HEADS)} heads, "
        f"window {window}x{window}"
    )
    passed = _compare(out, lse, attend("reference"), weights)
    _time(attend, seconds)
    _draw(pixels, _picture(out.mean(-2)), weights, place, window, output)
    console.out.print(f"wrote {output}", markup=False)
    if not passed:
        raise typer.Exit(1)


def _photo(name: str, size: int) -> Tensor:
    """[3, height, width] in [0, 1], sides multiples of PATCH; offline."""
    if name not in PHOTOS:
        console.fail(f"photo is {name!r}; allowed: {', '.join(PHOTOS)}", 2)
    try:
        from skimage import data
    except ImportError:
        console.fail("the photographs are scikit-image's: pip install 'tileattn[demo]'", 2)
    whole: Tensor = torch.from_numpy(getattr(data, name)()).movedim(-1, 0).float() / 255
    factor = size / max(whole.shape[1:])
    sides = [max(1, round(n * factor / PATCH)) * PATCH for n in whole.shape[1:]]
    small = F.interpolate(whole[None], sides, mode="bilinear", antialias=True)[0]
    return small.clamp(0, 1)


def _patches(pixels: Tensor) -> Tensor:
    """[1, rows, columns, heads, 3 * PATCH ** 2]: the pixels of each patch, for every head."""
    folded = F.pixel_unshuffle(pixels[None], PATCH).movedim(1, -1)
    return folded[..., None, :].expand(*folded.shape[:-1], len(HEADS), -1)


def _picture(patches: Tensor) -> Tensor:
    """[1, rows, columns, 3 * PATCH ** 2] as a picture [3, height, width]."""
    return F.pixel_shuffle(patches.movedim(-1, 1), PATCH)[0]


def _descriptors(pixels: Tensor) -> Tensor:
    """[1, rows, columns, heads, DIM], of length one.

    Colour: means of the patch's quadrants. Texture: how much brightness changes in each of eight
    directions, in the 3 x 3 and the 7 x 7 patches around it. Each entry is standardised over the
    photograph; colour is filled up with zeros.
    """
    colour = F.pixel_unshuffle(F.avg_pool2d(pixels, PATCH // 2)[None], 2)
    dy, dx = torch.gradient(pixels.mean(0))
    strength, direction = torch.hypot(dx, dy), torch.atan2(dy, dx)
    sector = ((direction / (2 * math.pi) + 0.5) * 8).long().clamp(max=7)
    changes = F.one_hot(sector, 8).movedim(-1, 0) * strength
    changes = F.avg_pool2d(changes[None], PATCH)
    texture = [
        F.avg_pool2d(changes, n, stride=1, padding=n // 2, count_include_pad=False) for n in (3, 7)
    ]
    made = []
    for entries in (colour, torch.cat(texture, 1)):
        mean = entries.mean((2, 3), keepdim=True)
        deviation = entries.std((2, 3), keepdim=True).clamp(min=1e-6)
        standard = F.normalize((entries - mean) / deviation, dim=1)
        made.append(F.pad(standard, (0, 0, 0, 0, 0, DIM - standard.shape[1])))
    return torch.stack(made, 1).movedim(2, -1).movedim(1, -2).contiguous()


def _weights(descriptors: Tensor, lse: Tensor, place: list[int], window: int) -> Tensor:
    """[heads, rows, columns]: the weights of one query, from the kernel's log-sum-exp."""
    row, column = place
    grid = tuple(descriptors.shape[1:3])
    seen = neighborhood_mask(grid, window)[row * grid[1] + column].unflatten(0, grid)
    query = descriptors[0, row, column]
    scores = SHARPNESS * torch.einsum("xyhd,hd->hxy", descriptors[0], query)
    weights: Tensor = torch.exp(scores - lse[0, row, column, :, None, None]) * seen
    return weights


def _compare(out: Tensor, lse: Tensor, expected: tuple[Tensor, Tensor], weights: Tensor) -> bool:
    """Prints how kernel and reference agree; whether they do."""
    differences = {
        "out": float((out - expected[0]).abs().max()),
        "lse, relative": float(((lse - expected[1]) / expected[1]).abs().max()),
        "sum of the query's weights, from 1": float((weights.sum((1, 2)) - 1).abs().max()),
    }
    for name, difference in differences.items():
        good = console.verdict(difference <= LARGEST_ERROR)
        console.out.print(f"  {good}  {name}: off by {difference:.1e}, at most {LARGEST_ERROR:.0e}")
    return max(differences.values()) <= LARGEST_ERROR


def _time(attend: Callable[[str | None], object], seconds: float) -> None:
    """Prints the time of the kernel and of the reference, taking turns."""
    functions = {"kernel": lambda: attend(None), "reference": lambda: attend("reference")}
    with console.progress(1, "time") as tell:
        found = timing.interleave(functions, "cpu", seconds, tell)
    numeric = ("median ms", "min ms", "speed")
    made = console.table("", *numeric, right=numeric)
    for name, measured in found.items():
        made.add_row(
            name,
            f"{measured.median * 1e3:.2f}",
            f"{measured.minimum * 1e3:.2f}",
            f"{found['reference'].median / measured.median:.1f}x",
        )
    where = f"{machine.cpu_name()}, {torch.get_num_threads()} threads"
    console.show(f"Forward on {where}, {found['kernel'].rounds} rounds in turn", made)


def _draw(
    pixels: Tensor, mean: Tensor, weights: Tensor, place: list[int], window: int, output: Path
) -> None:
    pyplot = import_pyplot()
    from matplotlib.patches import Rectangle

    height, width = pixels.shape[1:]
    titles = ("photograph, query and window", *(f"weights by {h}" for h in HEADS), "output")
    figure, axes = pyplot.subplots(
        1, len(titles), figsize=(3 * len(titles), 3 * height / width + 0.4), layout="constrained"
    )
    seen = (weights > 0).any(0).nonzero()
    first, last = seen.min(0).values * PATCH, (seen.max(0).values + 1) * PATCH
    for a, title, picture in zip(axes, titles, (pixels, pixels, pixels, mean), strict=True):
        a.imshow(picture.movedim(0, -1).clamp(0, 1).numpy(), extent=(0, width, height, 0))
        a.set_title(title, fontsize=9)
        a.set_axis_off()
    for a, head in zip(axes[1:], weights, strict=False):
        a.imshow([[(0.0, 0.0, 0.0, 0.6)]], extent=(0, width, height, 0))  # darkens
        strength = (head / head.max()).sqrt().numpy()  # small weights would be invisible
        a.imshow(strength, cmap="inferno", alpha=strength, extent=(0, width, height, 0))
    for a in axes[:-1]:
        y, x = (n * PATCH for n in place)
        a.add_patch(Rectangle((x, y), PATCH, PATCH, fill=False, color="cyan"))
        corner, size = (int(first[1]), int(first[0])), (last - first).tolist()
        a.add_patch(Rectangle(corner, size[1], size[0], fill=False, color="white", linestyle=":"))
    figure.savefig(output, dpi=100)
    pyplot.close(figure)
