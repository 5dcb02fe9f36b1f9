"""The networks of the survey table have their published sizes, counted without any weights."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.architectures import (
    IMAGENET,
    MILLION,
    Architecture,
    GoogLeNet,
    vgg16_average,
)
from benchmarks.architectures_small import CIFAR, LENETS, RESNET_34

ALL = (*IMAGENET, *CIFAR, RESNET_34)


def sizes(of: Architecture) -> tuple[int, int, Tensor]:
    """Parameters, multiply-adds and outputs, as PyTorch counts them, of tensors without data."""
    with torch.device("meta"):
        model = of.make().eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            out = model(torch.empty(1, *of.shape))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, out


@pytest.mark.parametrize("of", ALL, ids=lambda of: of.name)
def test_sizes_are_the_published_ones(of: Architecture) -> None:
    parameters, macs, out = sizes(of)
    assert out.shape in ((1, 1000), (1, 10))
    assert of.parameters is not None
    assert of.macs is not None
    assert of.parameters.agrees(parameters)
    assert of.macs.doubt or of.macs.agrees(macs)


@pytest.mark.parametrize("of", LENETS, ids=lambda of: of.name)
def test_lenets_have_exactly_as_many_weights_as_published(of: Architecture) -> None:
    with torch.device("meta"):
        weights = sum(p.numel() for p in of.make().parameters() if p.dim() > 1)
    assert of.parameters is not None
    assert weights == of.parameters.value


def test_a_published_count_that_is_in_doubt_does_not_agree() -> None:
    doubted = [of.macs for of in ALL if of.macs is not None and of.macs.doubt]
    found = [sizes(of)[1] for of in ALL if of.macs is not None and of.macs.doubt]
    assert len(doubted) == 4
    assert not any(count.agrees(ours) for count, ours in zip(doubted, found, strict=True))


def test_auxiliary_classifiers_come_beside_the_main_one() -> None:
    of = Architecture("GoogLeNet", lambda: GoogLeNet(auxiliary=True), (3, 224, 224))
    parameters, _, out = sizes(of)
    assert [tuple(each.shape) for each in out] == [(1, 1000)] * 3
    main = next(each.parameters for each in IMAGENET if each.name == "GoogLeNet")
    assert main is not None
    assert parameters > main.value + 6 * MILLION


def test_an_average_leaves_the_convolutions_of_vgg16() -> None:
    of = Architecture("VGG-16", vgg16_average, (3, 224, 224))
    assert sizes(of)[0] == 14_714_688 + 513_000
