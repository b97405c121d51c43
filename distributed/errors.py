"""Errors that a user of `distributed/` can mend."""


class RunError(ValueError):
    """A run cannot start, go on or be read; the message names the field or file, the value and the mend."""
