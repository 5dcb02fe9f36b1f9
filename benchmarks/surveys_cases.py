"""The cases of the survey table, each of which runs in a process of its own."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from time import process_time
from typing import Any

from benchmarks import (
    surveys_binary,
    surveys_coded,
    surveys_filters,
    surveys_ranks,
    surveys_sizes,
)
from benchmarks.alone import peak_kb
from benchmarks.surveys_rows import Row

CASES: Mapping[str, Callable[[], Iterable[Row]]] = {
    **{name: partial(surveys_sizes.rows, name) for name in surveys_sizes.GROUPS},
    "low rank, AlexNet": partial(surveys_ranks.separable, "AlexNet"),
    "low rank, AlexNet by CP": surveys_ranks.canonical,
    "low rank, VGG-16": partial(surveys_ranks.separable, "VGG-16"),
    "low rank, GoogLeNet": partial(surveys_ranks.searched, "GoogLeNet"),
    "Tucker-2, layers": surveys_ranks.tucker_layers,
    "Tucker-2, AlexNet": partial(surveys_ranks.tucker, "AlexNet"),
    "Tucker-2, VGG-16": partial(surveys_ranks.tucker, "VGG-16"),
    "Tucker-2, GoogLeNet": partial(surveys_ranks.tucker, "GoogLeNet"),
    "binary": surveys_binary.rows,
    "filters for CIFAR-10": surveys_filters.cifar,
    "filters of ResNet-34": surveys_filters.resnet34,
    "filters of ResNet-50": surveys_filters.thinet_resnet50,
    "filters of VGG-16": surveys_filters.thinet_vgg16,
    "Deep Compression of LeNets": surveys_coded.lenets,
    "Deep Compression of AlexNet": partial(surveys_coded.rows, "AlexNet"),
    "Deep Compression of VGG-16": partial(surveys_coded.rows, "VGG-16"),
}
SLOW = (
    "low rank, AlexNet by CP",
    "low rank, VGG-16",
    "Tucker-2, AlexNet",
    "Tucker-2, VGG-16",
    "filters of VGG-16",
    "Deep Compression of LeNets",
    "Deep Compression of VGG-16",
)
"""What `--quick` leaves out."""


def measure(case: str) -> dict[str, Any]:
    """Its rows, CPU seconds and the most memory."""
    import torch

    torch.set_num_threads(1)
    begin = process_time()
    rows = [asdict(row) for row in CASES[case]()]
    seconds = process_time() - begin
    return {"case": case, "rows": rows, "seconds": seconds, "peak_gb": peak_kb() / 2**20}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
