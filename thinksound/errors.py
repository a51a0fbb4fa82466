"""Every error that a user can cause, in one tree.

    ThinkSoundError
    ├── InputError       an argument: out of range, too long, not a number
    ├── MediaError       the video: missing, unreadable, no pictures, too long
    ├── OutputError      the result: folder missing, not writable, disk full
    ├── WeightsError     weight files: missing, truncated, changed, of another network
    └── PlacementError   devices: not there, out of memory

A message says what came, what is allowed, and what to do next. The command line and the
Cog predictor show the message alone; any other exception is a bug and keeps its traceback.
"""


class ThinkSoundError(Exception):
    """Base of all errors whose message is meant for the user."""


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


class PlacementError(ThinkSoundError):
    """A device is missing or too small."""
