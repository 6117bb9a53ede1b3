"""`dnamamba completion`: what a shell offers is what the verbs take."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dnamamba import cli, completion, verbs


def script(shell, capsys):
    assert cli.run(completion.main, [shell]) == 0
    return capsys.readouterr().out


def offered(text, *words):
    """What bash completes the last word to, file names aside."""
    quoted = " ".join(f"'{word}'" for word in words)
    call = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _dnamamba"
    code = f"{text}\n{call}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_offers_verbs_flags_and_choices(capsys):
    text = script("bash", capsys)
    assert offered(text, "dnamamba", "") == [*verbs.VERBS, "--help", "--version"]
    assert offered(text, "dnamamba", "pre") == ["pretrain", "predict"]
    for verb in verbs.VERBS:
        taken = [f"--{name}" for name, known in verbs.parser(verb).names.items() if not known.positional]
        assert offered(text, "dnamamba", verb, "--") == [*taken, "--config", "--help"]
    assert offered(text, "dnamamba", "score", "--acc") == ["--accelerator"]
    assert offered(text, "dnamamba", "score", "--vcf", "x", "--accelerator", "") == ["auto", "cpu", "gpu"]
    assert offered(text, "dnamamba", "finetune", "--task", "s") == ["species", "sequences"]
    assert offered(text, "dnamamba", "finetune", "--reverse_complement", "") == ["true", "false"]
    assert offered(text, "dnamamba", "completion", "") == ["bash", "zsh", "fish"]
    assert offered(text, "dnamamba", "score", "--genome", "a.fa", "") == []  # bash's own: files


@pytest.mark.parametrize(("shell", "form"), [("zsh", "'*--{}["), ("fish", " -l {} ")])
def test_other_shells_have_every_flag_of_every_verb(shell, form, capsys):
    text = script(shell, capsys)
    if shell == "zsh":
        parts = {verb: text.split(f"        {verb})\n")[1].split(";;")[0] for verb in verbs.VERBS}
    else:
        lines = text.splitlines(True)
        parts = {verb: "".join(line for line in lines if f"from {verb}'" in line) for verb in verbs.VERBS}
    for verb, part in parts.items():
        for name, known in verbs.parser(verb).names.items():
            assert known.positional or form.format(name) in part, (verb, name)
    assert text.count("'") % 2 == 0
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=text, text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_offers_verbs_flags_and_choices(capsys, tmp_path):
    (tmp_path / "dnamamba.fish").write_text(script("fish", capsys))

    def offers(line):
        code = f"source dnamamba.fish; complete -C '{line}'"
        run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
        done = subprocess.run(["fish", "--no-config", "-c", code], env={**os.environ, "HOME": str(tmp_path)}, **run)
        assert done.stderr == ""
        return {word.split("\t")[0] for word in done.stdout.splitlines()}

    assert offers("dnamamba pre") == {"pretrain", "predict"}
    for verb in verbs.VERBS:
        taken = {f"--{name}" for name, known in verbs.parser(verb).names.items() if not known.positional}
        assert offers(f"dnamamba {verb} --") == {*taken, "--config", "--help"}
    assert offers("dnamamba score --vcf x --accelerator ") == {"auto", "cpu", "gpu"}
    assert offers("dnamamba completion ") == {"bash", "zsh", "fish"}
    assert offers("dnamamba score --genome dna") == {"dnamamba.fish"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize("sourced", [False, True])
def test_zsh_completes_verbs_flags_and_choices(capsys, tmp_path, sourced):
    """In a terminal: its completion works nowhere else."""
    (tmp_path / "_dnamamba").write_text(script("zsh", capsys))
    load = "source _dnamamba" if sourced else ":"
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-f"], {**os.environ, "TERM": "dumb", "HOME": str(tmp_path)})

    def typed(keys, expected):
        os.write(terminal, keys.encode())
        found, end = "", time.monotonic() + 30
        while expected not in found:
            ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{keys!r}: {found!r}"
            found += os.read(terminal, 1 << 16).decode(errors="replace")

    try:
        path = "" if sourced else "fpath=($PWD $fpath); "
        setup = f"{path}autoload -Uz compinit; compinit -u -D; {load}; setopt no_beep no_prompt_sp; PS1='rea''dy> '"
        typed(f"{setup}\n", "ready> ")  # its line editor has begun
        clear = "\x15"
        typed("dnamamba pret\t", "dnamamba pretrain ")
        typed(f"{clear}dnamamba score --acc\t", "--accelerator ")
        typed(f"{clear}dnamamba score --vcf x --accelerator g\t", "--accelerator gpu")
        typed(f"{clear}dnamamba pretrain --model.pre\t", "--model.preset ")
        typed(f"{clear}dnamamba finetune --task spe\t", "--task species")
        typed(f"{clear}dnamamba completion f\t", "completion fish")
        typed(f"{clear}dnamamba score --genome _dna\t", "--genome _dnamamba")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def test_an_unknown_shell_is_refused(capsys):
    assert cli.run(completion.main, ["tcsh"]) == cli.USER_ERROR
    assert "expected one of 'bash', 'zsh', 'fish', got 'tcsh'" in capsys.readouterr().err


def test_it_needs_no_torch():
    code = "import sys; from dnamamba import completion; completion.main(['bash'])\n"
    code += "assert not {'torch', 'lightning', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
