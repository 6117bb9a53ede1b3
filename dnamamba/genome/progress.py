"""How a job that reads a genome reports how far it is."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called now and then with (done, total), both in bytes, bases or examples; `total` is 0 where it is not known."""
