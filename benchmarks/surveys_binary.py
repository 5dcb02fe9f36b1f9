"""XNOR-Net's speed-up of a convolution (Rastegari et al. 2016, arXiv 1603.05279, section 4.1).

A processor computes 64 binary multiply-adds at once and one other operation on every output, here
the bias: fxloom's binary weights are powers of two, so that not even a scale is multiplied. Both
are counted in the program that lowering makes of the quantized convolution.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import nn

import fxloom
from benchmarks.surveys_rows import Row, counted
from fxloom.coding import account
from fxloom.passes import Quantize

FAMILY = "binary weights"
CHANNELS, KERNEL, SIZE = 256, 3, 14
AT_ONCE = 64
_SOURCE = "Rastegari et al. 2016, arXiv 1603.05279, section 4.1 (64cN / (cN + 64)) and abstract"


def rows() -> Iterator[Row]:
    """Of the convolution that the paper names: 256 channels, 3 x 3, images of 14 x 14."""
    torch.manual_seed(0)
    model = nn.Conv2d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2).eval()
    x = (torch.randn(4, CHANNELS, SIZE, SIZE) > 0).float()
    graph = fxloom.capture(model, x[:2])
    step = Quantize(weight_format="binary", weight_rounding="nearest", activations=1)
    quantized = fxloom.Recipe([step]).run(graph, fxloom.Data.of(x)).graph
    program = fxloom.lower(quantized)
    (weights,) = [each.data for each in program.constants.values() if each.data.ndim == 4]
    (convolution,) = [instr for instr in program.instrs if instr.op.name == "conv"]
    assert len(np.unique(weights)) == 2
    assert program.inputs[0].value.type.width == 1
    macs, outputs = counted(quantized).macs, prod(convolution.result.shape)
    network, setting = f"convolution {KERNEL}x{KERNEL}, {CHANNELS} channels", "binary"
    speed = macs / (macs / AT_ONCE + outputs)
    note = f"{macs:,} binary multiply-adds, {outputs:,} outputs"
    yield Row(FAMILY, network, setting, "speed-up", 62.27, speed, _SOURCE, note=note)
    ours = 1 / account(weights).rate
    note = "all that is stored counted"
    yield Row(FAMILY, network, setting, "compression", 32, ours, _SOURCE, note=note)
