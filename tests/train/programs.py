"""Reads compiled programs: what they move between devices, and what they do in loops."""

import re
from typing import NamedTuple


class Operation(NamedTuple):
    """A line of the compiled program that moves data between devices."""

    kind: str
    dtypes: list[str]  # of its operands
    operands: list[str]
    line: str


def parse(line: str) -> Operation | None:
    """The operation of a line, if it moves data between devices."""
    kinds = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute|send"
    match = re.search(rf" = (.*?) ({kinds})(?:-start)?\((.*?)\), ", line)
    if not match:
        return None
    shapes, kind, operands = match.groups()
    dtypes = re.findall(r"\b(bf16|f32|s32|u32|pred)\[", shapes)
    return Operation(kind, dtypes[:1] if kind == "send" else dtypes, operands.split(", "), line)


def inside_loops(program: str) -> list[str]:
    """The functions of a compiled program that its loops call."""
    functions = {text.split(" ", 1)[0]: text for text in re.split(r"\n(?=%[^ ]+ \()", program)}
    called, waiting = set(), re.findall(r"\bbody=(%[\w.-]+)", program)
    while waiting:
        name = waiting.pop()
        if name not in called:
            called.add(name)
            waiting += [one for one in re.findall(r"%[\w.-]+", functions[name]) if one in functions]
    return [functions[name] for name in called]
