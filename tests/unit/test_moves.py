"""gather as an operator of graphs, and the windows that adaptive pools lay."""

import torch
from torch.nn import functional

from fxloom.adaptive import windows
from fxloom.moves import GATHER


def test_gather_takes_entries_and_its_gradient_adds_up() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(GATHER(x, 1, [2, 0, 2]), x[:, [2, 0, 2]])
    assert torch.autograd.gradcheck(lambda t: GATHER(t, 1, [2, 0, 2]), x)


def test_windows_of_one_size_are_those_of_adaptive_pools() -> None:
    for size in range(1, 12):
        x = torch.rand(1, 1, size, dtype=torch.float64)
        for count in range(1, 14):
            kernel, stride, indices = windows(size, count)
            laid = x if indices is None else x[..., indices]
            got = functional.max_pool1d(laid, kernel, stride)
            torch.testing.assert_close(got, functional.adaptive_max_pool1d(x, count))

            kernel, stride, indices = windows(size, count, size)
            padded = functional.pad(x, (0, 1))
            laid = x if indices is None else padded[..., indices]
            ones = functional.pad(torch.ones_like(x), (0, 1))
            counts = ones[..., :size] if indices is None else ones[..., indices]
            got = functional.avg_pool1d(laid, kernel, stride)
            got = got / functional.avg_pool1d(counts, kernel, stride)
            torch.testing.assert_close(got, functional.adaptive_avg_pool1d(x, count))
