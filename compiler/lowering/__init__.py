"""Lowering: from a quantized graph to a Program.

One small function per ATen op, registered with ``@lowers``. Layout is decided here: images become
channels-last, and every tensor remembers how its axes were permuted, so that a transpose is emitted
only where the order of the values really matters (and not even then where it can be folded into
the next layer's weights).
"""

# Importing a family registers its rules.
from fxloom.lowering import choices as choices
from fxloom.lowering import elementwise as elementwise
from fxloom.lowering import layers as layers
from fxloom.lowering import pools as pools
from fxloom.lowering import products as products
from fxloom.lowering import tables as tables
from fxloom.lowering import views as views
from fxloom.lowering.core import LOWERINGS, exact_values, legalized, lower, mantissas

__all__ = ["LOWERINGS", "exact_values", "legalized", "lower", "mantissas"]
