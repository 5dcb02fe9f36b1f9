"""Quantizers of QKeras as they are written in a string: "quantized_bits(8,0,1,alpha=1)".

Only a name and literals are read; nothing is evaluated. QKeras' own reader (qkeras/safe_eval.py)
takes apart what it does not know, None and words without quotes among them, so that such texts mean
something else to it than to their author: they are refused.
"""

import ast
from typing import Any

from fxloom.keras.registry import Refused

MAX_LENGTH = 500

Literal = int | float | str | bool


def read_call(text: str) -> tuple[str, list[Literal], dict[str, Literal]]:
    """Name, arguments and keyword arguments of NAME or NAME(LITERAL, ..., KEY=LITERAL, ...).

    Raises Refused for anything else.
    """
    if len(text) > MAX_LENGTH:
        raise Refused(f"a quantizer of {len(text)} characters; {MAX_LENGTH} are possible")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Refused(f"quantizer {text!r} is no NAME(NUMBER, ..., KEY=NUMBER, ...)") from None
    if isinstance(body, ast.Name):
        return body.id, [], {}
    if not isinstance(body, ast.Call) or not isinstance(body.func, ast.Name):
        raise Refused(f"quantizer {text!r} is no NAME(NUMBER, ..., KEY=NUMBER, ...)")
    positional = [_literal(argument, text) for argument in body.args]
    keywords: dict[str, Literal] = {}
    for keyword in body.keywords:
        if keyword.arg is None or keyword.arg in keywords:
            raise Refused(f"quantizer {text!r}: arguments must be literals, each given once")
        keywords[keyword.arg] = _literal(keyword.value, text)
    return body.func.id, positional, keywords


def _literal(node: ast.expr, text: str) -> Literal:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    operand: Any = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    value = operand.value if isinstance(operand, ast.Constant) else None
    if isinstance(value, int | float) and not (negative and isinstance(value, bool)):
        return -value if negative else value
    if isinstance(value, str) and not negative:
        return value
    raise Refused(
        f"quantizer {text!r}: arguments must be numbers, True, False or quoted words. (None in a "
        "text is read as a word by QKeras itself: leave the argument out.)"
    )
