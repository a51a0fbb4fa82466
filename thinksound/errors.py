"""Every error that a user can cause, in one tree.

    ThinkSoundError
    ├── InputError       an argument: out of range, too long, not a number
    ├── MediaError       an input file: missing, damaged, no video track, too long
    ├── OutputError      the result: folder missing, not writable, disk full
    ├── WeightsError     weight files: missing, truncated, changed, of another network
    └── PlacementError   devices: not there, out of memory

A message says what came, what is allowed, and what to do. The command line and the Cog predictors show the
message alone; any other exception is a bug and keeps its traceback. Messages contain names and tags of
files, so characters that could control a terminal are escaped.
"""

import re

# Control characters such as ESC, line and paragraph separators, overrides of the writing direction, and
# surrogates, which stand for bytes of file names that are not valid text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LONGEST = 1500  # characters in one line of a message


def printable(text: str) -> str:
    """Return ``text`` as one line without terminal controls; letters, signs and emoji do not change."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _line(text: str) -> str:
    """Return a line of a message, printable; only both ends of one that is too long."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} … {text[-300:]}"


class ThinkSoundError(Exception):
    """Base of all errors whose message is meant for the user."""

    def __str__(self) -> str:
        return _line(super().__str__())


class InputError(ThinkSoundError, ValueError):
    """An argument is not allowed.

    Args:
        message: begins with the name of the option, if it is about one option.
        option: that name as in Python, such as "cfg_scale".
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class MediaError(ThinkSoundError):
    """A video, sound or image file cannot be used."""


class OutputError(ThinkSoundError):
    """The result cannot be written."""


class WeightsError(ThinkSoundError):
    """Weight files are missing, damaged, or belong to another network."""

    def __str__(self) -> str:  # missing files are listed one per line
        return "\n".join(map(_line, Exception.__str__(self).split("\n")))


class PlacementError(ThinkSoundError):
    """A device is missing, or memory ran out."""
