"""Kinds of values on the command line.

This file knows what a word has to be to be taken. It does not know what it is for.

    @click.option("--fps", type=number)
"""

import math

import click


def number(word: str) -> float:
    """One that can be calculated with: float() also takes `nan` and `inf`."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise click.BadParameter(f"found {word!r}; allowed: a number, for instance 0.05")
    return value
