"""Seeded mutations of films, weight files and requests: what a user may bring, damaged or hostile.

`python -m fuzzing` (scripts/fuzz) makes the cases, lets child processes run the package's own code on
them, and counts clean results, clean errors and faults.
"""


class WrongResult(Exception):
    """The code was content and its result is not right."""
