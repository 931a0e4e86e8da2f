"""A calculator for what a model writes (DISC-4).

Python's parser reads the text, but Python never runs it: a few kinds of nodes are computed here, and all else
is refused, so that no query can do anything but take a moment.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping

import numpy as np

MAX_CHARACTERS = 200
MAX_EXPONENT = 100  # with the next one: no number ever has more than 3,000 digits
MAX_VALUE = 10**30

Number = int | float

BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}

ALLOWED = re.compile(r"[0-9.+\-*/%() ]+")
SIGNS = str.maketrans(
    {"\u00d7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-", "^": "**", "[": "(", "]": ")", "$": ""}
)  # times, divided by, minus, dash
THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
TIMES = re.compile(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(])")
PERCENT = re.compile(r"([0-9.]+)\s*%(?!\s*[0-9(])")  # before a number "%" is the remainder


class ToolError(ValueError):
    """What a tool cannot do; the model reads the message."""


def calculate(expression: str) -> str:
    """The value of an expression in + - * / // % ** and brackets, to 12 digits; whole numbers in full.

    Never with an exponent, which neither this calculator nor who marks an answer reads.

    Also read are signs of print (for times, divided by, minus), 2^3, "x" between numbers, "$", commas between
    thousands, a percentage (25% is 0.25) and "=" at the end.

    Raises:
      ToolError: anything else, division by zero, a number above 10**30 or an exponent above 100.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ToolError(f"the expression has {len(expression)} characters; at most {MAX_CHARACTERS} are read")
    text = THOUSANDS.sub("", " ".join(expression.translate(SIGNS).rstrip("=? ").split()))
    text = PERCENT.sub(r"(\1/100)", TIMES.sub("*", LEADING_ZEROS.sub("", text)))
    if not ALLOWED.fullmatch(text):
        raise ToolError("only numbers, + - * / // % ** and brackets are known")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except ZeroDivisionError as error:
        raise ToolError("division by zero") from error
    except OverflowError as error:
        raise ToolError("the number is too large") from error
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ToolError("this is no expression") from error
    if isinstance(value, int):
        return str(value)
    return np.format_float_positional(value, precision=12, fractional=False, trim="-")


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return _bounded(value)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
            return UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
            first, second = _value(left), _value(right)
            if isinstance(sign, ast.Pow) and abs(second) > MAX_EXPONENT:
                raise ToolError(f"the exponent is above {MAX_EXPONENT}")
            return _bounded(BINARY[type(sign)](first, second))
    raise ToolError("only numbers, + - * / // % ** and brackets are known")


def _bounded(value: Number | complex) -> Number:
    if isinstance(value, complex):
        raise ToolError("the root of a negative number is not real")
    if not abs(value) <= MAX_VALUE:  # also what is not a number
        raise ToolError("the number is too large")
    return value
