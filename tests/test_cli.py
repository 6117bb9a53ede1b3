"""How entry points end: one line and exit code 2 for bad input, signals; and the verbs."""

import errno
import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dnamamba import cli, verbs
from dnamamba.errors import InputError
from dnamamba.verbs import VERBS


def raising(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x.fa: record 'a'\n  is empty"), 2, "error: x.fa: record 'a' is empty\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.fa"), 2, "error: x.fa: No such file\n"),
        (OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), 2, "error: a -> b: Cross-device link\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_turns_what_the_user_can_fix_into_one_line(error, code, line, capsys):
    assert cli.run(raising(error)) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ValueError("ours"), AssertionError(), OSError("no errno")])
def test_run_keeps_the_traceback_of_our_own_faults(error):
    with pytest.raises(type(error)):
        cli.run(raising(error))


def test_run_passes_the_arguments_on_and_returns_zero():
    seen = []
    assert cli.run(seen.append, ["--a", "b"]) == 0
    assert seen == [["--a", "b"]]


def test_a_reader_that_has_gone_ends_quietly():
    code = "import sys; from dnamamba import cli; sys.exit(cli.run(lambda _: [print('x' * 999) for _ in range(9999)]))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == cli.BROKEN_PIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_closed_standard_streams_are_none_of_our_outputs(closed, tmp_path):
    """The next file that is opened would get their number, and what is printed."""
    code = (
        "import os, sys; from dnamamba import cli\n"
        "def main(_):\n"
        "    with open('out', 'w') as file: os.write(1, b'x'); os.write(2, b'x'); print('x'); file.write('whole')\n"
        "sys.exit(cli.run(main))"
    )
    (tmp_path / "code.py").write_text(code)
    line = f"{shlex.quote(sys.executable)} code.py {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "whole"


def environment():
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", "")))}


def dnamamba(*arguments):
    return subprocess.run([sys.executable, "-m", "dnamamba", *arguments], capture_output=True, text=True, check=False)


class TestVerbs:
    def test_help_lists_them_and_imports_nothing_heavy(self):
        code = "import sys; sys.argv[1:] = ['--help']; import dnamamba.__main__ as m\n"
        code += "try: m.main()\nexcept SystemExit: pass\n"
        heavy = "print([name for name in ('torch', 'numpy', 'jsonargparse', 'lightning') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
        assert "pretrain" in done.stdout
        assert done.stdout.endswith("[]\n")

    def test_unknown_verb(self):
        done = dnamamba("pretrian")
        assert (done.returncode, done.stdout) == (2, "")
        verbs = ", ".join(VERBS)
        assert done.stderr == f"error: unknown verb 'pretrian': expected one of {verbs} (see dnamamba --help)\n"

    def test_no_verb_prints_the_list_and_fails(self):
        done = dnamamba()
        assert done.returncode == 2
        assert "verbs:" in done.stdout

    def test_version(self):
        from dnamamba import __version__

        assert dnamamba("--version").stdout == f"dnamamba {__version__}\n"

    def test_every_verb_has_a_main(self):
        import importlib

        for verb in VERBS:
            module = importlib.import_module(f"dnamamba.{verb}")
            assert callable(module.main)
            assert len(inspect.getsource(module).splitlines()) <= 8 or verb in (
                "info",
                "models",
                "doctor",
                "completion",
            )

    @pytest.mark.parametrize("verb", VERBS)
    def test_names_in_the_table_lead_somewhere(self, verb):
        for named in (VERBS[verb].settings, VERBS[verb].job):
            assert callable(verbs._named(named))

    def test_help_of_a_verb_is_light(self):
        """Nothing that takes a second to import; what the settings themselves need remains."""
        code = "import sys; from dnamamba import verbs\nfor verb in verbs.VERBS: verbs.parser(verb).format_help()\n"
        code += "print([name for name in ('torch', 'lightning', 'polars', 'matplotlib') if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
