"""`dnamamba completion`: what a shell offers is what the verbs take."""

import shutil
import subprocess
import sys

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


def test_an_unknown_shell_is_refused(capsys):
    assert cli.run(completion.main, ["tcsh"]) == cli.USER_ERROR
    assert "expected one of 'bash', 'zsh', 'fish', got 'tcsh'" in capsys.readouterr().err


def test_it_needs_no_torch():
    code = "import sys; from dnamamba import completion; completion.main(['bash'])\n"
    code += "assert not {'torch', 'lightning', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
