"""Cases that run in a process each, so that its peak of memory is its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def each_alone(module: str, cases: Sequence[str], *arguments: str) -> Iterator[dict[str, Any]]:
    """What a module of benchmarks prints last, a record, for each case: on one thread."""
    for name in cases:
        run = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", name, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield json.loads(run.stdout.splitlines()[-1])


def timed(call: Any) -> tuple[Any, float]:
    """What a call returns, and its CPU time in seconds."""
    begin = process_time()
    return call(), process_time() - begin


def peak_kb() -> int:
    """The most memory that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
