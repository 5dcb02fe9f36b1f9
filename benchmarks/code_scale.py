"""Huffman coding at the size of VGG-16: 138 million 8-bit symbols, and a pruned layer.

symbols, narrow: normally distributed weights rounded to 8 bits, with a standard deviation of 40 and
5 steps; uniform: all 256 values alike often, which no code shortens. weights: VGG-16's largest
layer with 8% of its weights kept, of 31 values, with run lengths. One thread, CPU time, median; the
first round is not counted. Everything is decoded and compared.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.alone import each_alone, peak_kb, timed

SYMBOLS = 138_357_544
WEIGHTS = 4096 * 25088
KEPT = 0.08
SPREADS = {"symbols": 40.0, "narrow": 5.0, "uniform": None}
LEAST_MB_S = 100.0
CASES = (*SPREADS, "weights")


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a case."""
    yield from each_alone("code_scale", names or list(CASES), "1" if quick else "3")


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Bits a symbol, and how fast."""
    from fxloom.coding import decode_weights, encode_weights
    from fxloom.huffman_stream import decode, encode

    rng = np.random.default_rng(0)
    if case == "weights":
        weights = np.zeros(WEIGHTS, np.float32)
        where = rng.integers(0, WEIGHTS, round(KEPT * WEIGHTS))
        weights[where] = np.rint(rng.standard_normal(where.size) * 4).clip(-15, 15) * 0.01
        record = _measured(lambda: encode_weights(weights), decode_weights, weights, rounds)
        return {"case": case, "symbols": WEIGHTS, **record}
    spread = SPREADS[case]
    if spread is None:
        symbols = rng.integers(0, 256, SYMBOLS, np.uint8)
    else:
        normal = rng.standard_normal(SYMBOLS, np.float32)
        symbols = np.rint(normal * spread + 128).clip(0, 255).astype(np.uint8)
    record = _measured(lambda: encode(symbols), lambda data: decode(data, SYMBOLS), symbols, rounds)
    return {"case": case, "symbols": SYMBOLS, **record}


def _measured(
    encode: Callable[[], Any], decode: Callable[[Any], Any], expected: Any, rounds: int
) -> dict[str, Any]:
    encoding, decoding = [], []
    for _ in range(rounds + 1):
        coded, seconds = timed(encode)
        encoding.append(seconds)
        found, seconds = timed(lambda coded=coded: decode(coded))
        decoding.append(seconds)
        assert np.array_equal(found, expected)
    bits = coded.bits if hasattr(coded, "bits") else 8 * len(coded)
    return {
        "bits": bits / expected.size,
        "encode_s": median(encoding[1:]),
        "decode_s": median(decoding[1:]),
        "peak_gb": peak_kb() / 2**20,
    }


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates, which are for symbols."""
    shown = Table(title="Huffman codes at the size of VGG-16: one thread, CPU time")
    for title in ("case", "symbols", "bits each", "encode", "decode", "memory"):
        shown.add_column(title, justify="left" if title == "case" else "right")
    for record in records:
        speeds = []
        for key in ("encode_s", "decode_s"):
            speed = record["symbols"] / record[key] / 1e6
            gate = f" (>= {LEAST_MB_S:g})" if record["case"] in SPREADS else ""
            speeds.append(f"{record[key]:.2f} s, {speed:.0f} M/s{gate}")
        shown.add_row(
            record["case"],
            f"{record['symbols'] / 1e6:.1f} M",
            f"{record['bits']:.3f}",
            *speeds,
            f"{record['peak_gb']:.2f} GB peak",
        )
    return shown


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
