"""The console script `dnamamba VERB ...`: the entry points of `python -m dnamamba.VERB`, each imported when asked."""

import importlib
import sys

VERBS = {
    "pretrain": "train a language model on a genome (no arguments: a demo on E. coli)",
    "finetune": "train a classifier: species, sequences or variants",
    "predict": "class probabilities of a fine-tuned model on FASTA, BED or tables",
    "likelihood": "per-position likelihoods of a genome as bigWig tracks and tables",
    "score": "zero-shot scores of the variants of a VCF",
    "mutagenesis": "all single-base changes of a region, as a matrix and a picture",
    "embed": "embeddings of regions or sequences",
    "generate": "sample sequences from a model",
    "info": "show what a checkpoint was trained on, and its metrics",
    "doctor": "show versions, devices and kernels; verify token stores",
}
"""verb (a module of this package with `main(arguments)`) -> what `dnamamba --help` says about it."""


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
        importlib.import_module(f"dnamamba.{verb}").main(rest)

    sys.exit(cli.run(dispatch, arguments[1:]))


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        ["usage: dnamamba VERB [--flag VALUE ...]", "", "verbs:", *lines, "", "dnamamba VERB --help tells its flags."]
    )


if __name__ == "__main__":
    main()
