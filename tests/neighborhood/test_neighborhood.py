"""The kernels of neighborhood attention against the reference, forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from grid_cases import GridCase, check_grid
from layouts import flipped_batch_order, misaligned, poisoned_borders, strided_last_dim
from torch import Tensor

from tileattn import attention, neighborhood_attention, reference

SHORT, SQUARE, CUBE = (23,), (11, 14), (5, 6, 9)


def options(window: Any, **others: Any) -> dict[str, Any]:
    return {"window": window, **others}


CASES = {
    "1d": GridCase(SHORT, options(5)),
    "1d even window": GridCase(SHORT, options(6)),
    "1d long": GridCase((700,), options(129), batch=1),
    "1d stride": GridCase(SHORT, options(7, stride=3)),
    "1d stride is window": GridCase(SHORT, options(7, stride=7)),
    "1d dilation": GridCase(SHORT, options(4, dilation=3)),
    "1d causal": GridCase(SHORT, options(6, causal=True)),
    "1d everything": GridCase((190,), options(20, stride=7, dilation=3, causal=True), extra=3),
    "1d tokens fewer than a tile": GridCase((2,), options(2)),
    "2d": GridCase(SQUARE, options((3, 5))),
    "2d large window": GridCase((17, 30), options((13, 13)), batch=1),
    "2d whole axis": GridCase(SQUARE, options((11, 4))),
    "2d stride": GridCase(SQUARE, options((5, 6), stride=(2, 5))),
    "2d dilation": GridCase(SQUARE, options((3, 2), dilation=(2, 5))),
    "2d causal on one axis": GridCase(SQUARE, options((3, 5), causal=(False, True))),
    "2d causal": GridCase(SQUARE, options((4, 5), causal=True, stride=(3, 1))),
    "2d blocked": GridCase((16, 24), options((8, 8), stride=(8, 8))),
    "2d perfectly block-sparse": GridCase((48, 32), options((32, 16), stride=(16, 16)), batch=1),
    "2d blocks of several parts": GridCase((48, 40), options((16, 8), stride=(16, 8)), batch=1),
    "2d causal blocks, dilated": GridCase(
        (48, 18), options((8, 6), stride=(8, 6), dilation=(2, 1), causal=True), batch=1
    ),
    "2d wide": GridCase((3, 200), options((2, 70)), batch=1),
    "2d tall": GridCase((200, 3), options((70, 2)), batch=1),
    "3d": GridCase(CUBE, options((3, 3, 3))),
    "3d stride": GridCase(CUBE, options((3, 4, 5), stride=(2, 1, 4))),
    "3d dilation": GridCase(CUBE, options((2, 2, 3), dilation=(2, 3, 1))),
    "3d causal in time": GridCase(CUBE, options((4, 3, 3), causal=(True, False, False))),
    "3d everything": GridCase(
        (6, 7, 11),
        options((3, 2, 5), stride=(2, 2, 3), dilation=(2, 3, 2), causal=(True, False, True)),
        extra=70,
    ),
    "extra keys": GridCase(SQUARE, options((3, 3)), extra=5),
    "extra keys of several tiles": GridCase(SQUARE, options((3, 3)), extra=500, batch=1),
    "extra keys and dilation": GridCase(SQUARE, options((3, 3), dilation=(2, 3)), extra=17),
    "scale": GridCase(SQUARE, options((3, 3), scale=-0.4)),
    "mha": GridCase(SQUARE, options((3, 3)), heads=3, heads_kv=3),
    "mqa": GridCase(SQUARE, options((3, 3)), heads=5, heads_kv=1),
    "empty batch": GridCase(SQUARE, options((3, 3)), batch=0),
    "empty batch, extra keys": GridCase(SQUARE, options((3, 3)), batch=0, extra=4),
}


# Hopper runs the kernels of sm_80.
DEVICES = pytest.mark.parametrize("device", ["cpu", "cuda", "simulated"], indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])


@DEVICES
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.batch])
def test_case(name: str, dtype: torch.dtype, device: str) -> None:
    check_grid(CASES[name], dtype, device)


def test_wide_heads(dtype: torch.dtype) -> None:
    """On CUDA they are refused."""
    wide = GridCase(SQUARE, options((3, 3)), heads=1, heads_kv=1, dim=256, dim_v=8)
    check_grid(wide, dtype, "cpu")
    meta = wide.tensors(torch.float16, "meta")
    with pytest.raises(NotImplementedError, match="on backend 'cuda'"):
        neighborhood_attention(**meta, **wide.options, backend="cuda")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.batch])
def test_empty_batch(name: str, dtype: torch.dtype, torch_device: str) -> None:
    check_grid(CASES[name], dtype, torch_device)


@DEVICES
@DTYPES
def test_all_small_problems_on_one_axis(dtype: torch.dtype, device: str) -> None:
    for length, dilation in itertools.product(range(2, 10), range(1, 4)):
        for window in range(2, length // dilation + 1):
            for stride, causal in itertools.product(range(1, window + 1), (False, True)):
                case = GridCase(
                    (length,),
                    options(window, stride=stride, dilation=dilation, causal=causal),
                    batch=1,
                    heads=1,
                    heads_kv=1,
                    dim=8,
                    dim_v=8,
                )
                check_grid(case, dtype, device)


LAYOUTS = [poisoned_borders, misaligned, strided_last_dim, flipped_batch_order]


def axes_reversed(tensor: Tensor) -> Tensor:
    """The grid's axes lie in memory in the opposite order, heads outside of them."""
    order = list(range(tensor.dim() - 1))[::-1]
    inverse = [order.index(n) for n in range(len(order))]
    return tensor.permute(*order, -1).contiguous().permute(*inverse, -1)


@DEVICES
@DTYPES
@pytest.mark.parametrize("layout", [*LAYOUTS, axes_reversed])
def test_strides_of_inputs(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype, device: str
) -> None:
    spec = options((3, 2, 3), stride=(2, 1, 3), dilation=(1, 2, 1))
    case = GridCase((4, 5, 7), spec, extra=6, layout=layout)
    check_grid(case, dtype, device)


@pytest.mark.parametrize("grid", [(100,), (9, 13), (4, 5, 6)])
def test_whole_window_is_dense_attention(grid: tuple[int, ...]) -> None:
    tensors = GridCase(grid, {}).tensors(torch.float32, "cpu")
    out = neighborhood_attention(**tensors, window=grid)
    flat = {name: tensor.flatten(1, len(grid)) for name, tensor in tensors.items()}
    torch.testing.assert_close(out.flatten(1, len(grid)), attention(**flat))


def test_expanded_incoming_gradient() -> None:
    case = GridCase(SQUARE, options((3, 5)))
    tensors = {n: t.requires_grad_() for n, t in case.tensors(torch.float32, "cpu").items()}
    exact = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
    neighborhood_attention(**tensors, **case.options).sum().backward()
    reference.neighborhood_attention(**exact, **case.options).sum().backward()
    for name, tensor in tensors.items():
        assert tensor.grad is not None and exact[name].grad is not None
        torch.testing.assert_close(tensor.grad.double(), exact[name].grad, rtol=1e-5, atol=1e-5)


def test_gradients_are_bit_equal_from_run_to_run() -> None:
    case = GridCase((30, 30), options((7, 7), dilation=2), extra=3)
    first, second = (check_grid(case, torch.float32, "cpu") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_number_of_threads_does_not_matter(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_grid(CASES["3d everything"], torch.float32, "cpu")
        check_grid(
            GridCase((40, 40), options((9, 9)), batch=1, heads=1, heads_kv=1), torch.float32, "cpu"
        )
    finally:
        torch.set_num_threads(before)
