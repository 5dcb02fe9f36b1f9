"""What the fits of the estimator are made from: features of a product with a constant matrix.

benchmarks/fit_csynth.py computes them for other people's syntheses, the estimator for programs, by
the same functions.
"""

from math import ceil

LUTS_OF_DSP = 55
"""What a DSP block is worth in LUTs (Sun et al. 2024, arXiv 2405.00645)."""

ADDER_OVERHEAD = 7
"""LUTs of an adder of C synthesis beyond one a bit."""

NO_DSP_BITS = 6
"""Weights of at most so many bits take no DSP block with the Latency strategy: none of 36 layers
with 2 to 6 bits did, in syntheses for a U250, and all with 8 bits and more did."""


def latency_lut(
    nonzero: int, accumulator: int, in_luts: int, product_bits: int
) -> dict[str, float]:
    """Latency strategy. nonzero: weights; accumulator: bits; in_luts: products that no DSP block
    forms, of product_bits = bits of input x bits of weight."""
    return {
        "adder_bits": nonzero * (accumulator + ADDER_OVERHEAD),
        "product_bits": in_luts * product_bits,
    }


def latency_ff(nonzero: int, outputs: int, accumulator: int, reuse: int) -> dict[str, float]:
    """Latency strategy: a register for every sum of two, one fewer than weights an output."""
    bits = max(nonzero - outputs, 0) * accumulator
    return {"bits": bits, "bits_unshared": bits if reuse == 1 else 0}


SIZES = range(32, 257)
"""Inputs and outputs of the layers that the fits of the Resource strategy were made on."""

LEAST_REUSE = 2
"""Of these layers, times the inputs."""


def is_seen(n_in: int, n_out: int, reuse: int) -> bool:
    """Whether the fits of the Resource strategy were made on layers such as this one."""
    return n_in in SIZES and n_out in SIZES and reuse >= LEAST_REUSE * n_in


def resource_lut(
    n_in: int, n_out: int, reuse: int, data: int, accumulator: int
) -> dict[str, float]:
    """Resource strategy with reuse > 1. data, accumulator: bits of an input and of a sum.

    A multiplier adds to one of reuse / n_in sums; where these are more than two, C synthesis builds
    a choice among all sums, up to the next power of two.
    """
    multipliers = ceil(n_in * n_out / reuse)
    chooses = reuse > 2 * n_in
    return {
        "layer": 1,
        "input_bits": n_in * data,
        "sum_bits": n_out * accumulator,
        "choice_bits": multipliers * accumulator * (1 << (n_out - 1).bit_length()) * chooses,
        "selection_bits": multipliers * accumulator * (not chooses),
    }


def resource_ff(
    n_in: int, n_out: int, reuse: int, width: int, accumulator: int
) -> dict[str, float]:
    """Resource strategy with reuse > 1. width: bits of a weight."""
    multipliers = ceil(n_in * n_out / reuse)
    return {"layer": 1, "sum_bits": n_out * accumulator, "weight_bits": multipliers * width}


SPARSE_BOUNDS = (0.5, 3.0)
"""Around what is counted for kernels of lanes, which nobody has synthesised."""


def sparse_lut(lanes: int, inputs: int, outputs: int, data: int, accumulator: int) -> float:
    """LUTs of the sparse kernel in C synthesis, twice what is counted: a lane chooses one of all
    inputs (a third of a LUT a bit), multiplies and adds; every output adds up its spans.

    Of the circulant kernel as well, with its multipliers for lanes, each of which chooses one of as
    many inputs as the lane reaches blocks."""
    lane = inputs * data / 3 + accumulator
    return 2 * (lanes * lane + (lanes + outputs) * accumulator)
