"""Which C++ kernel computes an operation, and the text that configures it.

One rule an operation, in the table RULES: from a Site (operation, arguments, result) to a Kernel
(declarations and a call). The kernels are in hw_templates/fxloom_*.h;
shifts, widths, indices and limits are computed here, so that the C++ has nothing to decide.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fxloom.backends.hls4ml.kernels import elementwise, moving, sums, tables
from fxloom.backends.hls4ml.kernels.circulant import render_circulant
from fxloom.backends.hls4ml.kernels.codebook import render_codebook
from fxloom.backends.hls4ml.kernels.core import Argument, Kernel, Rule, Site
from fxloom.backends.hls4ml.kernels.huffman import render_huffman
from fxloom.backends.hls4ml.kernels.matrix import MatrixSite, Renderer
from fxloom.backends.hls4ml.kernels.moving import copy
from fxloom.backends.hls4ml.kernels.sparse import render_indexed, render_sparse
from fxloom.backends.hls4ml.kernels.streaming import fork, streamed
from fxloom.backends.hls4ml.weights import Weights
from fxloom.errors import FxloomError

__all__ = [
    "RULES",
    "UNSUPPORTED",
    "Argument",
    "Kernel",
    "MatrixSite",
    "Site",
    "fork",
    "render",
    "render_matrix",
]

UNSUPPORTED: dict[str, str] = {}
"""Operations without a rule and why; the table and this dictionary together cover ops.OPS."""

MATRICES: Mapping[str, Renderer] = MappingProxyType(
    {
        "sparse": render_sparse,
        "indexed": render_indexed,
        "codebook": render_codebook,
        "huffman": render_huffman,
        "circulant": render_circulant,
    }
)
"""Of fxloom.kernels, by the same names."""

RULES: dict[str, Rule] = elementwise.RULES | moving.RULES | sums.RULES | tables.RULES


def render(site: Site, origin: str, stream: bool) -> Kernel:
    """The kernel for a site; FxloomError, naming the layer, where the backend has no rule.

    stream: between streams instead of arrays. A site without an operation is a copy.
    """
    rule = copy if site.op is None else RULES.get(site.name)
    if rule is None:
        reason = UNSUPPORTED.get(site.name, "the backend has no rule for it")
        raise FxloomError(f"{origin} ({site.name}): not possible with hls4ml: {reason}")
    return streamed(site, rule) if stream else rule(site)


def render_matrix(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """Arrays and text of the kernel that a product with a constant matrix was allotted."""
    return MATRICES[of.given.kernel](of)
