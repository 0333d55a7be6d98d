"""The error that the user can mend."""

import contextlib


class UserError(ValueError):
    """The user's configuration or data is wrong: the command prints the message as one line and exits with code 2."""

    exit_code = 2
    ends_run = True  # it would be the same in every fold


def one_line(error):
    """The text of an error on one line; with its type, if the text is empty or a key only."""
    text = " ".join(str(error).split())
    return repr(error) if not text or isinstance(error, KeyError) else text


def listed(texts, shown=5):
    """The first of the texts in a line, and how many more there are: "a, b and 7 more"."""
    texts = list(texts)
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


@contextlib.contextmanager
def as_user_error(said, kinds=(OSError, UnicodeDecodeError)):
    """Errors of these kinds in the block become a UserError, "said: error"; by default those of files."""
    try:
        yield
    except kinds as error:
        if isinstance(error, UserError) and kinds is not UserError:  # it is a ValueError, and says enough
            raise
        raise UserError(f"{said}: {error}") from error
