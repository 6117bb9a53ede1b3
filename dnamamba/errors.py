"""What a user can get wrong, reported in one line.

Anything that comes from outside (files, flags, tables) and is not usable raises `InputError`; the command line turns it
into one line on stderr and exit code 2. Our own invariants are `assert`s.
"""


class InputError(ValueError):
    """Bad input: names the file, the record and the position, what was expected and what to do about it."""
