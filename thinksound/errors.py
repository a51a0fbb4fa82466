"""Every error that a user can cause, in one tree.

    ThinkSoundError
    ├── InputError       an argument: out of range, too long, not a number
    ├── MediaError       the video: missing, unreadable, no pictures, too long
    ├── OutputError      the result: folder missing, not writable, disk full
    ├── WeightsError     weight files: missing, truncated, changed, of another network
    └── PlacementError   devices: not there, out of memory

A message says what came, what is allowed, and what to do next. The command line and the
Cog predictor show the message alone; any other exception is a bug and keeps its traceback.
Names and tags of files are part of messages: what could steer a terminal is shown escaped.
"""

import re

# Control characters (ESC among them), line and paragraph separators, overrides of the writing direction,
# and surrogates, which stand for bytes of file names that are no text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LONGEST = 1500  # characters of a line of a message


def printable(text: str) -> str:
    """A text as one line that no terminal takes for a command; letters, signs and emoji stay as they are."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _line(text: str) -> str:
    """A line of a message: of what a library quotes from a file, or of an endless path, both ends."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} … {text[-300:]}"


class ThinkSoundError(Exception):
    """Base of all errors whose message is meant for the user."""

    def __str__(self) -> str:
        return _line(super().__str__())


class InputError(ThinkSoundError, ValueError):
    """An argument is outside of what is allowed.

    Args:
        message: begins with the option's name where it is about one option.
        option: that name, as Python spells it.
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class MediaError(ThinkSoundError):
    """The video cannot be used."""


class OutputError(ThinkSoundError):
    """The result cannot be written."""


class WeightsError(ThinkSoundError):
    """Weight files are missing, damaged, or belong to another network."""

    def __str__(self) -> str:  # a list of missing files has a line for each
        return "\n".join(map(_line, Exception.__str__(self).split("\n")))


class PlacementError(ThinkSoundError):
    """A device is missing or too small."""
