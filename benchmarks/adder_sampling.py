"""Costs of adder graphs from samples beside those of the whole graphs, and the time of both.

`python -m benchmarks.adder_sampling`; random weights (normal, clipped, seed 0) in the shapes of
ResNet-50 and in some others, inputs of 8 bits. CPU time, one thread.
"""

import time

import numpy as np

from fxloom.adder_graph import adder_cost
from fxloom.adder_sampling import estimated_cost
from fxloom.fixed_point import IntArray
from fxloom.program import narrowest

OTHERS = [(512, 512, 6, 0.5), (256, 2048, 4, 0.0), (4608, 512, 8, 0.9), (300, 300, 16, 0.0),
          (64, 4096, 2, 0.0), (20000, 16, 8, 0.0), (16, 20000, 8, 0.5)]  # fmt: skip


def resnet50() -> list[tuple[int, int]]:
    """Shapes of all its weight matrices: [inputs of a window, outputs]."""
    shapes, channels = [(147, 64)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(channels, width), (9 * width, width), (width, 4 * width)]
            shapes += [(channels, 4 * width)] if block == 0 else []
            channels = 4 * width
    return [*shapes, (2048, 1000)]


def weights(n_in: int, n_out: int, bits: int, zeros: float, seed: int) -> IntArray:
    """Normal, with three and a half standard deviations in the range of that many bits."""
    rng = np.random.default_rng(seed)
    largest = 2 ** (bits - 1) - 1
    found = np.clip(np.round(rng.normal(0, (largest + 1) / 3.5, (n_in, n_out))), -largest, largest)
    found[rng.random(found.shape) < zeros] = 0
    return narrowest(found.astype(np.int64))


def main() -> None:
    matrices = [weights(*shape, 8, 0.0, 0) for shape in resnet50()]
    begin = time.process_time()
    sampled = [estimated_cost(matrix, 0, 255) for matrix in matrices]
    print(f"ResNet-50, 8 bits: {time.process_time() - begin:.2f} s from samples")
    begin = time.process_time()
    exact = [adder_cost(matrix, 0, 255) for matrix in matrices]
    print(f"ResNet-50, 8 bits: {time.process_time() - begin:.2f} s whole")
    errors = [100 * (s.luts / e.luts - 1) for s, e in zip(sampled, exact, strict=True)]
    total = 100 * (sum(s.luts for s in sampled) / sum(e.luts for e in exact) - 1)
    print(f"LUTs: layers {min(errors):+.2f}% to {max(errors):+.2f}%, total {total:+.2f}%")
    for number, shape in enumerate(OTHERS):
        matrix = weights(*shape, number)
        whole, part = adder_cost(matrix, 0, 255), estimated_cost(matrix, 0, 255)
        off = 100 * (part.luts / whole.luts - 1)
        print(f"{shape}: {whole} whole, {part} sampled, LUTs {off:+.2f}%")
    matrix = weights(256, 256, 8, 0.0, 0)
    begin = time.process_time()
    adder_cost(matrix, 0, 255)
    print(f"256 x 256, 8 bits: {time.process_time() - begin:.3f} s whole")


if __name__ == "__main__":
    main()
