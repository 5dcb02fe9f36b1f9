"""docs/ops.md: what can be compiled and for whom, written from the code."""

from itertools import product
from pathlib import Path

from fxloom.backends import get
from fxloom.errors import FxloomError
from fxloom.fixed_point import FixedPoint
from fxloom.ops import OPS, Shift
from fxloom.program import ProgramBuilder
from fxloom.tables import aten_ops, respelled_ops
from fxloom.target import Target
from tests.golden import Golden

PARTS = {"Quartus": "10ax115", "oneAPI": "10ax115"}
BACKENDS = ("Vitis", "Vivado", "Quartus", "Catapult", "oneAPI")
PAGE = Path(__file__).parents[2] / "docs" / "ops.md"


def test_page_of_operations(golden: Golden, tmp_path: Path) -> None:
    golden.check(PAGE, page(tmp_path))


def page(folder: Path) -> str:
    """Markdown."""
    lines = [
        "# Operations",
        "",
        "Written from the code: `pytest tests/golden --update-golden` makes this page anew.",
        "",
        "## Of PyTorch",
        "",
        "A captured graph has these. What an attribute cannot have is refused when the model is",
        "captured, by the layer's name.",
        "",
        "| ATen op | how |",
        "|---|---|",
        *(f"| {op} | {how} |" for op, how in aten_ops()),
        "",
        "Written as these when captured: " + ", ".join(respelled_ops()) + ".",
        "",
        "## Of a program",
        "",
        "The simulator does all of them. hls4ml projects, each cell compared with the simulator",
        "through compiled C++ (oneAPI: with a stand-in for its compiler):",
        "",
    ]
    refusals = {}
    for backend, io in product(BACKENDS, ("parallel", "stream")):
        refusals[f"{backend} io_{io}"] = _refusal(backend, io, folder / f"{backend}{io}")
    columns = [name for name, reason in refusals.items() if reason is None]
    gaps = get("hls4ml").unsupported
    lines += ["| op | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {op} | " + " | ".join("no" if op in gaps else "yes" for _ in columns) + " |"
        for op in sorted(OPS)
    ]
    lines += ["", *(f"- {op}: {reason}" for op, reason in sorted(gaps.items()))]
    lines += [f"- {name}: refused: {reason}" for name, reason in refusals.items() if reason]
    return "\n".join(lines) + "\n"


def _refusal(backend: str, io: str, folder: Path) -> str | None:
    """Why there are no projects for a backend with that kind of ports."""
    builder = ProgramBuilder()
    x = builder.input("x", (2,), FixedPoint(4, 2))
    builder.output(builder.emit(Shift(1), [x], "shift"), "y")
    try:
        target = Target(part=PARTS.get(backend, "xc7z020"), backend=backend, io=io)
        get("hls4ml").emit(builder.build(), target, folder)
    except FxloomError as refusal:
        return " ".join(str(refusal).split())
    return None
