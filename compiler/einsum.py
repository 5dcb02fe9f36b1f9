"""The equation of an einsum, with every axis named."""

from collections.abc import Sequence

Terms = list[list[str]]


def parse(equation: str, ranks: Sequence[int]) -> tuple[Terms, list[str]] | None:
    """Labels of the axes of every operand and of the result; None for a result that
    repeats one. A label twice in an operand takes its diagonal.

    An ellipsis stands for axes that get labels of their own, the same in all operands. Without an
    arrow the result has the ellipsis and then, sorted, the labels that occur once.
    """
    text, arrow, result = equation.replace(" ", "").partition("->")
    written = text.split(",")
    hidden = max(
        (rank - len(term) + 3 for term, rank in zip(written, ranks, strict=True) if "." in term),
        default=0,
    )
    names = [f"...{n}" for n in range(hidden)]
    terms = [
        _labels(term, names[hidden - (rank - len(term) + 3) :] if "." in term else [])
        for term, rank in zip(written, ranks, strict=True)
    ]
    every = [label for term in terms for label in term]
    output = _labels(result, names)
    if not arrow:
        once = sorted({label for label in every if every.count(label) == 1} - {*names})
        output = [*names, *once]
    if any(len({*labels}) < len(labels) for labels in (output,)):
        return None
    return terms, output


def _labels(term: str, hidden: Sequence[str]) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *hidden, *after] if dots else [*before]
