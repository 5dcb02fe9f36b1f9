"""What the FIFOs between the layers of a streamed project take besides the layers."""

from math import ceil, log2

from fxloom.logic import bram18, buffer_bits
from fxloom.program import Program
from fxloom.stream_schedule import StreamSchedule

SHIFTED_BITS, SHIFTED_DEPTH = 1024, 2
"""Smaller FIFOs are shift registers, larger ones block memory (AMD UG1399, config_storage fifo)."""


def fifo_note(program: Program, schedule: StreamSchedule) -> str:
    """A sentence: how many there are, what they hold, and what that takes."""
    luts = blocks = packs = 0
    for layer in schedule.layers:
        width = layer.shape[-1] * program.value(layer.values[-1]).type.width
        for channel in layer.outputs:
            if channel not in schedule.depths:
                continue
            depth = schedule.depths[channel].written
            packs += depth
            luts += 2 * ceil(log2(depth)) + 4  # two pointers, full and empty
            if width * depth <= SHIFTED_BITS or depth <= SHIFTED_DEPTH:
                luts += buffer_bits(depth, width)
            else:
                blocks += bram18(depth, width)
    return (
        f"FIFOs: {len(schedule.depths)} channels with room for {packs:,} packs, besides the layers "
        f"about {luts:,} LUT and {blocks:,} BRAM18 (rule: shift registers up to {SHIFTED_BITS} "
        "bits; not yet compared with a synthesis)"
    )
