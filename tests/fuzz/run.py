"""The readers on damaged files: how many of each were read, refused, or went wrong.

    python tests/fuzz/run.py --cases 10000            all readers
    python tests/fuzz/run.py --reader vcf --case 137  one case again, with its damaged files where --keep says

Prints a table, and each fault with the command that shows it again. The exit code is 1 where there is a fault.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "kernels")]

from harness import FAULTS, OUTCOMES, Reader, check, make_case, write_files
from readers import READERS

SHOWN = 2000
"""Characters of a fault"""


def run_cases(name: str, reader: Reader, numbers: Iterable[int], keep: Path | None = None) -> tuple[Counter, list[str]]:
    """How often each outcome came, and a text for each fault. The files of faults stay in `keep`."""
    counts: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as parent:
        for number in numbers:
            case = make_case(name, reader, number)
            outcome, detail = check(reader, case, Path(parent) / "case")
            counts[outcome] += 1
            if outcome in FAULTS:
                again = f"python tests/fuzz/run.py --reader {name!r} --case {number} --keep FOLDER"
                shown = detail if len(detail) <= SHOWN else f"{detail[: SHOWN // 2]}\n…\n{detail[-SHOWN // 2 :]}"
                faults.append(f"{name}, case {number}: {outcome}\n{shown}\nagain: {again}")
                if keep is not None:
                    write_files(case.files, keep / f"{name} {number}")
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200, help="of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--reader", choices=READERS, nargs="+", default=list(READERS), help="all by default")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--keep", type=Path, help="folder for the damaged files of faults, or of --case")
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.cases) if given.case is None else [given.case]
    failed = False
    print(f"{'reader':<22}{'cases':>7}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for name in given.reader:
        counts, faults = run_cases(name, READERS[name], numbers, given.keep)
        row = "".join(f"{counts[outcome]:>10}" for outcome in OUTCOMES)
        print(f"{name:<22}{counts.total():>7}{row}", flush=True)
        for fault in faults:
            print(f"\n{fault}\n", file=sys.stderr)
        if given.case is not None and given.keep is not None:
            write_files(make_case(name, READERS[name], given.case).files, given.keep / f"{name} {given.case}")
        failed = failed or bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
