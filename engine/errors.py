"""The one exception that a user's own mistake raises."""


class UserError(ValueError):
    """A mistake of the caller's, told in one line; programs print it and exit with code 2."""
