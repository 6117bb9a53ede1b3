"""One step of a workflow, done once and resumed where it stopped.

    python pipelines/run_step.py FOLDER RESULT PROGRAM... -- FLAGS...

Runs `python PROGRAM... FLAGS... --out FOLDER`, with `--resume` in place of the flags where an earlier attempt has left
its config.yaml; does nothing where FOLDER/RESULT is there. Output goes also into FOLDER.log, and the command into
FOLDER.command: a folder that was made with other flags is refused, not mixed with.
"""

import shlex
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    divider = arguments.index("--")
    name, result, *program = arguments[:divider]
    flags = arguments[divider + 1 :]
    folder, recorded = Path(name), Path(f"{name}.command")
    wanted = shlex.join([*program, *flags]) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if recorded.exists() and folder.exists() and not is_empty and recorded.read_text("utf-8") != wanted:
        message = f"{folder} was made with other flags ({recorded}); remove it, or choose another `out:`"
        print(f"error: {message}", file=sys.stderr)
        return 2
    if (folder / result).exists():
        return 0
    recorded.write_text(wanted, encoding="utf-8")
    if program[0] == "-m":
        if (folder / "config.yaml").exists():
            flags = ["--resume"]
        elif is_empty:
            folder.rmdir()  # some workflow engines make it beforehand, but runs refuse a folder that exists
    return _run([sys.executable, *program, *flags, "--out", str(folder)], Path(f"{name}.log"), folder / result)


def _run(line: list[str], log: Path, result: Path) -> int:
    """The command's exit code; 1 where it ends well without its result."""
    with log.open("a", encoding="utf-8") as file:
        print("$", shlex.join(line), file=file, flush=True)
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        try:
            for text in process.stdout:
                sys.stdout.write(text)
                file.write(text)
                file.flush()
        except KeyboardInterrupt:
            process.terminate()
        code = process.wait()
    return code or (0 if result.exists() else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
