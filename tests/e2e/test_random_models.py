"""A few random models through the whole compiler; `make fuzz` runs thousands."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fxloom.passes.quantize import Quantize
from tests.fuzz import Tally, check_model, quantizations
from tests.random_models import RandomModel, random_models


@settings(max_examples=12)
@given(random_models(length=10), st.lists(quantizations(), min_size=2, max_size=2))
def test_random_models_are_exact_or_refused(model: RandomModel, steps: list[Quantize]) -> None:
    check_model(model, steps, Tally())
