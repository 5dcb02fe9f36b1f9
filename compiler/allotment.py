"""What a layer gets of the strategy, the reuse factor and the kernel that a target asks for.

The backend builds what is allotted here and the estimate counts it, so that they cannot disagree.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from fxloom.target import LayerSettings, Strategy


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a layer gets of what was asked for.

    note: why strategy or reuse factor are something else, empty where they are not; kernel: dense,
    or one of fxloom.kernels, and of that only: lanes, parts that work side by side; bits that it
    keeps in memory; products, multiplications for one position; form, where it has several. why:
    what speaks for the kernel.
    """

    strategy: Strategy
    reuse: int
    note: str = ""
    kernel: str = "dense"
    lanes: int = 0
    bits: int = 0
    products: int = 0
    form: str = ""
    why: str = field(default="", compare=False)

    @property
    def is_dense(self) -> bool:
        return self.kernel == "dense"


def allot(kind: str, n_in: int, n_out: int, wanted: LayerSettings, io: str) -> Allotment:
    """Strategy and reuse factor of a layer with a constant n_in x n_out matrix.

    kind: hls4ml's class, anything else being a kernel of fxloom. Used by the backend and by the
    estimate, so that they cannot disagree.
    """
    if wanted.strategy == "latency" or kind not in ("Dense", "Conv2D"):
        # One multiplier for all weights: more would only make the layer wait.
        reuse = min(wanted.reuse, n_in * n_out)
        notes = []
        if wanted.strategy != "latency":
            notes.append(f"resource asked for, latency given: there is no Resource {kind}")
        if reuse != wanted.reuse:
            notes.append(f"reuse {wanted.reuse} asked for, {reuse} is the largest")
        return Allotment("latency", reuse, "; ".join(notes))
    # hls4ml's Resource convolution for io_parallel runs beyond its window buffer with more.
    most = n_in if kind == "Conv2D" and io == "parallel" else None
    reuse = closest_reuse(n_in, n_out, wanted.reuse, most)
    note = "" if reuse == wanted.reuse else f"reuse {wanted.reuse} asked for, {reuse} is nearest"
    return Allotment("resource", reuse, note)


def closest_reuse(n_in: int, n_out: int, wanted: int, most: int | None = None) -> int:
    """The reuse factor that hls4ml makes of a wanted one for the Resource strategy.

    most: the largest that is possible.
    """
    valid = [reuse for reuse in _valid_reuse(n_in, n_out) if most is None or reuse <= most]
    position = bisect_left(valid, wanted)
    if position == 0:
        return valid[0]
    if position == len(valid):
        return valid[-1]
    before, after = valid[position - 1], valid[position]
    return after if after - wanted < wanted - before else before


def _valid_reuse(n_in: int, n_out: int) -> list[int]:
    """Divisors of n_in * n_out that are multiples of n_in, or below it and keep whole outputs.

    As in hls4ml 1.3, backends/fpga/fpga_backend.py, _validate_reuse_factor.
    """
    size = n_in * n_out
    small = [n for n in range(1, int(size**0.5) + 1) if size % n == 0]
    divisors = sorted({*small, *(size // n for n in small)})
    return [
        reuse
        for reuse in divisors
        if (reuse >= n_in and reuse % n_in == 0) or (reuse < n_in and size // reuse % n_out == 0)
    ]
