"""The one exception that means *the input is at fault, not the program*.

Every room raises it (or a subclass) for bad input; the command line prints its message on one line and exits with 2.
It sits below all rooms, so that none has to import another to say what was wrong.
"""


class InputError(ValueError):
    """Bad input: the message says what, where, and what was expected, in one line."""
