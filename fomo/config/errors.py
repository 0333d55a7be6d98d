"""The error that the user can mend."""


class UserError(ValueError):
    """The user's configuration or data is wrong: the command prints the message as one line and exits with code 2."""

    exit_code = 2
    ends_run = True  # it would be the same in every fold
