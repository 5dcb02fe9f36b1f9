"""What can be lowered exactly: one check for each ATen op, asked at capture.

An op that is not in ``CHECKS`` is refused, and so is an attribute that its check does not know: a
model either fails here, with all its problems at once, or goes all the way to hardware.
"""

# Importing a family registers its checks.
from fxloom.support import attention as attention
from fxloom.support import choices as choices
from fxloom.support import elementwise as elementwise
from fxloom.support import layers as layers
from fxloom.support import norms as norms
from fxloom.support import pools as pools
from fxloom.support import rounding as rounding
from fxloom.support import views as views
from fxloom.support.core import CHECKS, refusal, refused_ports

__all__ = ["CHECKS", "refusal", "refused_ports"]
