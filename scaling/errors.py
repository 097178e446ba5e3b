"""The one exception that means 'the user can mend this', a hint for a mistyped name, a note."""

import difflib
import sys
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: says the value, the rule and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Any) -> str:
    """`; did you mean 'x'?` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def note(text: str) -> None:
    """A line beside the result, which alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)
