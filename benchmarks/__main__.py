"""python -m benchmarks [--quick] [--case NAME] [--json FILE]: the ratios; `scale`: large models;
`binary_points`: the search for them; `prune_scale`, `share_scale`: passes at the size of VGG-16;
`code_scale`: Huffman coding at that size; `factorize_scale`: factors at that size;
`low_rank_scale`: decompositions of large weights; `keras_files`: reading 100 MB of Keras."""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=[
            *("ratios", "scale", "binary_points"),
            *("prune_scale", "share_scale", "code_scale", "factorize_scale", "low_rank_scale"),
            "keras_files",
        ],
        default="ratios",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no stock hls4ml")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--json", type=Path, help="default: benchmarks-WHAT.json")
    options = parser.parse_args()
    console = Console(width=120)
    if options.what == "scale":
        from benchmarks.scale import measure_all, table
    elif options.what == "binary_points":
        from benchmarks.binary_points import measure_all, table
    elif options.what == "prune_scale":
        from benchmarks.prune_scale import measure_all, table
    elif options.what == "share_scale":
        from benchmarks.share_scale import measure_all, table
    elif options.what == "code_scale":
        from benchmarks.code_scale import measure_all, table
    elif options.what == "low_rank_scale":
        from benchmarks.low_rank_scale import measure_all, table
    elif options.what == "keras_files":
        from benchmarks.keras_files import measure_all, table
    elif options.what == "factorize_scale":
        from benchmarks.factorize_scale import measure_all, table
    else:
        from benchmarks.tables import measure_all, table
    records = []
    for record in measure_all(options.case, options.quick):
        records.append(record)
        console.print(table(records))
    path = options.json or Path(f"benchmarks-{options.what}.json")
    path.write_text(json.dumps({"versions": versions(), "cases": records}, indent=1) + "\n")
    console.print(f"written: {path}")


def versions() -> dict[str, Any]:
    """What the figures depend on."""
    found = {name: version(name) for name in ("fxloom", "torch", "numpy", "hls4ml")}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


if __name__ == "__main__":
    main()
