"""Weights coded for files: distinct values, run lengths and Huffman codes (Deep Compression: Han,
Mao, Dally, 2016, arXiv 1510.00149). What is computed stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import fx

from fxloom.coded_tensors import encode, plain
from fxloom.errors import RecipeError
from fxloom.huffman import LONGEST
from fxloom.recipe import PassResult
from fxloom.settings import typed_keys, unknown
from fxloom.storage_table import StorageRow, times, total
from fxloom.weight_entries import Weights, Written, coded
from fxloom.weight_storage import row_of_entry, rows_of_entries
from fxloom.weights import tensors_of, weights_of

if TYPE_CHECKING:
    from fxloom.data import Data


@typed_keys(RecipeError)
@dataclass(frozen=True)
class CodeWeights:
    """Every weight encoded, decoded and compared, for a coded file of weights in the build.

    At the end of prune, share_weights, quantize and finetune: it changes nothing, says what is
    stored, and `fxloom compile` writes weights.safetensors. index_bits: of a run length between two
    weights that are not zero, 1 to 16; 0 for none; by default what takes least. include, exclude:
    tensors or layers by name (fnmatch patterns); others are stored as they are.
    """

    name: ClassVar[str] = "code_weights"

    index_bits: int | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.index_bits is not None and not 0 <= self.index_bits <= LONGEST:
            raise RecipeError(f"index_bits: required 0 to {LONGEST}, got {self.index_bits}")

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        rows = rows_of_entries(map(row_of_entry, self.coded(graph)))
        return PassResult(graph, False, _summary(rows))

    def coded(self, graph: fx.GraphModule) -> Iterator[Written]:
        """All tensors of a graph as a file has them, each decoded and compared once.

        Raises RecipeError for a pattern that fits no tensor.
        """
        known = list(tensors_of(graph))
        for key in ("include", "exclude"):
            for pattern in getattr(self, key):
                if not any(_fits(name, pattern) for name in known):
                    raise RecipeError(f"code_weights: {key}: {unknown(pattern, known, 'tensor')}")
        encoder = partial(encode, index_bits=self.index_bits)
        for each in weights_of(graph):  # one after the other: all together are a second model
            yield coded(each, encoder if self._chosen(each) else plain)

    def _chosen(self, weights: Weights) -> bool:
        return any(
            any(_fits(name, pattern) for pattern in self.include)
            and not any(_fits(name, pattern) for pattern in self.exclude)
            for name in weights.names
        )


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern is for a tensor, or for the layer that it belongs to."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def _summary(rows: tuple[StorageRow, ...]) -> dict[str, object]:
    """Bits by tensor, and all of them."""
    every = total(rows)
    before = sum(row.float_bits for row in rows)
    return {
        "tensors": {row.name: {**asdict(row), "name": row.name} for row in rows},
        "bits": every.bits,
        "huffman_bits": every.huffman_bits,
        "remarks": [
            f"{every.weights:,} weights and biases take {every.huffman_bits:,} bits with all that "
            f"decodes them ({every.bits:,} without Huffman codes), "
            f"{' times '.join(times(before, every.huffman_bits))} than as 32-bit floats; all were "
            "encoded, decoded and compared"
        ],
    }
