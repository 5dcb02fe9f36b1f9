"""What a student is told to have in common with its teacher: scores, values of layers, attention.

Scores: Hinton et al. 2015 (arXiv 1503.02531), section 2. Values of layers: FitNets, Romero et al.
2015 (arXiv 1412.6550), section 2.2. Attention: Zagoruyko and Komodakis 2017 (arXiv 1612.03928),
section 3.1. All tensors have their samples first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from fxloom.passes.losses import PROBABILITY_FLOOR

RIDGE = 1e-3
"""Share of the mean square of a student's values that is added to their squares in a fit."""
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def scores(output: Tensor, *, probabilities: bool) -> Tensor:
    """Outputs [N, classes, ...] as scores before a softmax, but for a number that a sample's all
    share. probabilities: whether a softmax came last."""
    return torch.log(output.clamp(min=0) + PROBABILITY_FLOOR) if probabilities else output


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far softened probabilities are from the teacher's, as Kullback-Leibler divergence, times
    the squared temperature, by which softening makes its gradients smaller.

    student, teacher: scores [N, classes, ...]. Returns the mean over samples and places.
    """
    softened = (x / temperature for x in (teacher.to(student.dtype), student))
    wanted, got = (x.log_softmax(1) for x in softened)
    divergence = functional.kl_div(got, wanted, reduction="none", log_target=True).sum(1)
    return divergence.mean() * temperature**2


def hint_loss(guided: Tensor, hint: Tensor) -> Tensor:
    """Half the mean squared distance of a student's layer, as its regressor has it, from the
    teacher's. The mean rather than the paper's sum: a weight fits layers of any size."""
    return functional.mse_loss(guided, hint.to(guided.dtype)) / 2


def regressor_shape(guided: Sequence[int], hint: Sequence[int]) -> tuple[int, ...]:
    """The weights of the layer that makes of a student's values something to compare with the
    teacher's.

    guided, hint: shapes of the values of a sample, student's and teacher's. Of two axes: a linear
    layer on the last axis of the values. Of more: a convolution without padding, whose kernel is 1
    where maps are equally large and else makes the student's as small as the teacher's (section
    2.2). Raises ValueError with the reason where there is none.
    """
    if len(guided) != len(hint) or len(guided) > 4:
        raise ValueError("required as many axes for both, at most channels and three more")
    is_sequence = len(guided) == 2 and guided[0] == hint[0]
    if len(guided) == 1 or is_sequence:
        return hint[-1], guided[-1]
    kernel = [1 + mine - wanted for mine, wanted in zip(guided[1:], hint[1:], strict=True)]
    if min(kernel) < 1:
        raise ValueError(
            "required a student's layer whose maps are at least as large as the teacher's"
        )
    return hint[0], guided[0], *kernel


def fitted_weights(guided: Tensor, hint: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Weights and biases of a regressor of kernel 1 that bring a student's values nearest to the
    teacher's, in squares; a little ridge keeps them small where samples are few."""
    if len(shape) > 2:
        guided, hint = guided.movedim(1, -1), hint.movedim(1, -1)
    x, y = (values.reshape(-1, values.shape[-1]).double() for values in (guided, hint))
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(x.dtype).tiny)
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=x.dtype), x.T @ y)
    weight, bias = solved.T, y_mean - x_mean @ solved
    return weight.reshape(tuple(shape)).float(), bias.float()


def fresh_weights(shape: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Weights and biases as torch draws them for its layers, from the seed alone."""
    bound = prod(shape[1:]) ** -0.5
    generator = torch.Generator().manual_seed(seed)
    weight, bias = (
        torch.empty(size).uniform_(-bound, bound, generator=generator)
        for size in (tuple(shape), (shape[0],))
    )
    return weight, bias


def attention(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Where a layer looks: squares added up over its channels, of length 1 for every sample.

    values: [N, channels, ...]. sizes: of the map; another size is interpolated to it, as the paper
    allows. Returns [N, positions].
    """
    found = values.square().sum(1, keepdim=True)
    if tuple(found.shape[2:]) != tuple(sizes):
        mode = _INTERPOLATION[len(sizes)]
        found = functional.interpolate(found, tuple(sizes), mode=mode, align_corners=False)
    return functional.normalize(found.flatten(1))


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two maps: what the authors' own program takes, for which the
    paper's weight is 1000."""
    return functional.mse_loss(student, teacher.to(student.dtype))
