"""`dnamamba models`: the models that come with the package, and what each is measured to do."""

from dataclasses import dataclass

from dnamamba import verbs
from dnamamba.settings.fields import Settings


@dataclass(kw_only=True)
class ModelsSettings(Settings):
    """Lists the models that come with the package. `--checkpoint NAME` takes one wherever it takes a folder."""


main = verbs.main("models")


def models(settings: ModelsSettings) -> None:
    """Prints name, size, training, and measured abilities of each."""
    from dnamamba import bundled
    from dnamamba.formats import read_card
    from dnamamba.runs.card import bundled_lines  # torch: seconds that --help need not wait for

    for name in bundled.names():
        print(name)
        for label, text in bundled_lines(read_card(bundled.FOLDER / name)):
            print(f"{label:>12}  {text}".rstrip())
        print()
    print("dnamamba info NAME prints the whole card; --checkpoint NAME uses it")


if __name__ == "__main__":
    verbs.run(main)
