"""The one exception that means 'the user can mend this'."""


class UserError(ValueError):
    """A mistake in what the user gave: says the value, the rule and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
