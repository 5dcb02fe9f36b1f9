"""The kernels of fxloom for products with a constant matrix, by the names that targets use."""

from collections.abc import Mapping
from types import MappingProxyType

from fxloom.kernels.base import Declined, MatrixKernel, Offer, Rhythm
from fxloom.kernels.circulant import Circulant
from fxloom.kernels.codebook import Codebook
from fxloom.kernels.huffman import Huffman
from fxloom.kernels.indexed import Indexed
from fxloom.kernels.sparse import Sparse

__all__ = ["KERNELS", "Declined", "MatrixKernel", "Offer", "Rhythm"]

KERNELS: Mapping[str, MatrixKernel] = MappingProxyType(
    {each.name: each for each in (Sparse(), Indexed(), Codebook(), Huffman(), Circulant())}
)
