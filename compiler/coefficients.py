"""Fitted numbers of the estimator, read from coefficients.toml: one place for all of them.

Every fit says what it was fitted on, which script did it, and how wrong it was on designs that it
had not seen; the interval of a figure follows from those errors.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fxloom.report import Figure


@dataclass(frozen=True, slots=True)
class Fit:
    """value = sum of terms[name] * feature of that name.

    low, high: factors around the value within which 90% of the left-out designs lay; rows,
    datasets: on how many it was fitted; median_error: of left-out datasets, as a share; covered:
    share of left-out rows within intervals made without them; source: what they were.
    """

    terms: Mapping[str, float]
    low: float
    high: float
    rows: int
    datasets: int
    median_error: float
    covered: float
    source: str
    script: str

    def value(self, features: Mapping[str, float]) -> float:
        """Of exactly the features that the fit has terms for."""
        return sum(self.terms[name] * feature for name, feature in features.items())

    def figure(self, features: Mapping[str, float], unit: str, note: str = "") -> Figure:
        """The value as a whole number, with its interval and what it rests on.

        note: what else there is to know of this use.
        """
        value = self.value(features)
        source = (
            f"fitted: {self.source}; on {self.rows} rows of {self.datasets} sets, median error "
            f"{100 * self.median_error:.2g}% on a set left out, 90% interval{note}"
        )
        low, high = round(value * self.low), round(value * self.high)
        return Figure(round(value), unit, "fitted", source, low, high)


@cache
def fit(name: str) -> Fit:
    """A fit by its table in the file."""
    text = files("fxloom").joinpath("coefficients.toml").read_text(encoding="utf-8")
    return Fit(**tomllib.loads(text)[name])
