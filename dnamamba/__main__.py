"""The console script `dnamamba VERB ...`: what `python -m dnamamba.VERB` does, for every verb of the table."""

import sys

from dnamamba.verbs import VERBS
from dnamamba.verbs import main as main_of


def main() -> None:
    """Runs `dnamamba VERB ARGUMENTS...` and exits with the verb's code; without a verb prints the list."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        from dnamamba import __version__

        print(f"dnamamba {__version__}")
        return

    # Imported here, so that the list of verbs needs nothing but the standard library.
    from dnamamba import cli
    from dnamamba.errors import InputError

    def dispatch(rest: list[str] | None) -> None:
        verb = arguments[0]
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}: expected one of {', '.join(VERBS)} (see dnamamba --help)")
        main_of(verb)(rest)

    sys.exit(cli.run(dispatch, arguments[1:]))


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: dnamamba VERB [--flag VALUE ...]", "", "verbs:", *lines, "", "dnamamba VERB --help lists its flags."]
    )


if __name__ == "__main__":
    main()
