"""Letters of sequences: one rule for files, tables, prompts and Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import dnamamba
from dnamamba import errors
from dnamamba.alphabet import decode
from dnamamba.analysis.generation.job import read_prompts
from dnamamba.analysis.generation.settings import GenerateSettings
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.readers import TableColumns, read_class_folder, read_records
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.sequences import read_sequences

DNA = "ACGTTGCAACGTAAAACCCCGGGGTTTT"
RNA = DNA.replace("T", "U")


@pytest.fixture(autouse=True)
def no_warning_yet():
    errors._warned.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("letters") / "checkpoint"
    save_checkpoint(tiny_model(), folder, {"settings": {"length": 64}})
    return dnamamba.load(folder, device="cpu")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


FILES = {
    "s.fa": ">a|0\n{}\n>b|1\n{}\n",
    "s.csv": "name,sequence,label\na,{},0\nb,{},1\n",
    "s.tsv": "name\tsequence\tlabel\na\t{}\t0\nb\t{}\t1\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", [DNA, DNA.lower(), RNA, RNA.lower(), DNA[:9].lower() + RNA[9:]])
def test_case_and_rna_say_nothing(name, text, tmp_path, capsys):
    path = write(tmp_path / name, FILES[name].format(text, text))
    assert [decode(sequence.tokens()) for sequence in read_sequences(path, None)] == [DNA, DNA]
    assert [decode(record.tokens) for record in read_records(path, TableColumns())] == [DNA, DNA]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_other_codes_are_n_and_counted(name, tmp_path, capsys):
    path = write(tmp_path / name, FILES[name].format(DNA + "RYnN", DNA + "x"))
    expected = [DNA + "NNNN", DNA + "N"]
    assert [decode(sequence.tokens()) for sequence in read_sequences(path, None)] == expected
    assert [decode(record.tokens) for record in read_records(path, TableColumns())] == expected
    assert capsys.readouterr().err == (
        f"warning: {path}: 3 letters in 2 sequences are other codes than A, C, G, T, U and N; they are read as N\n"
    )


@pytest.mark.parametrize("missing", ["NA", "nan", "NaN", ".", "None", ""])
@pytest.mark.parametrize("name", ["s.csv", "s.tsv"])
def test_what_tables_write_for_missing_is_no_sequence(name, missing, tmp_path):
    """NA would be the bases N and A."""
    path = write(tmp_path / name, FILES[name].format(DNA, missing))
    expected = f"{path}, line 3: the sequence is {f'missing ({missing!r})' if missing else 'empty'}"
    for read in (lambda: list(read_sequences(path, None)), lambda: list(read_records(path, TableColumns()))):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value) == expected


def test_folders_of_text_files(tmp_path, capsys):
    for name, content in (("one", "\ufeffACGU\r\nacgu\r\n"), ("two", "ACRN")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.txt").write_bytes(content.encode())
    assert [decode(record.tokens) for record in read_class_folder(tmp_path)] == ["ACGTACGT", "ACNN"]
    assert "1 letters in 1 sequences" in capsys.readouterr().err


def prompts(**given: object) -> list[str]:
    settings = GenerateSettings(checkpoint=Path(), **given)  # type: ignore[arg-type]
    return [decode(prompt.tokens) for prompt in read_prompts(settings)]


def test_prompts(model, tmp_path):
    path = write(tmp_path / "p.fa", f">a\n{RNA.lower()}\n>b\nACGN\n")
    assert prompts(prompts=path) == [DNA, "ACGN"]
    assert prompts(prompt="ACGUacguN") == ["ACGTACGTN"]
    assert model.generate([RNA, DNA.lower()], length=20, seed=3) == model.generate([DNA, DNA], length=20, seed=3)
    refused = {
        "--prompt: 'R' at position 3 stands for several bases; expected A, C, G, T, N": {"prompt": "ACRG"},
        "--prompt: 'é' at position 2 is no nucleotide; expected A, C, G, T, N": {"prompt": "Aé"},
        f"{path}, record 'b', line 3: 2 letters stand for several bases": {"prompts": path},
    }
    write(path, ">a\nACGT\n>b\nACGTXACGTxAC\n")
    for message, given in refused.items():
        with pytest.raises(InputError) as caught:
            prompts(**given)
        assert str(caught.value).startswith(message)
    with pytest.raises(InputError, match="prompt 2: 'k' at position 1 stands for several bases"):
        model.generate(["A", "kA"], length=1)


def test_sequences_in_python(model, tmp_path, capsys):
    expected = model.log_likelihood(DNA)
    for text in (DNA.lower(), RNA, RNA.lower()):
        np.testing.assert_array_equal(model.log_likelihood(text), expected)
        np.testing.assert_array_equal(model.embed(text), model.embed(DNA))
    assert not capsys.readouterr().err
    np.testing.assert_array_equal(model.embed(DNA + "r"), model.embed(DNA + "N"))
    assert "sequences: 1 letters in 1 sequences are other codes" in capsys.readouterr().err
    genome = write(tmp_path / "g.fa", f">c\n{RNA.lower() * 4}\n")
    upper = model.score_variants([("c", 30, "C", "G"), ("c", 33, "TG", "T")], genome=genome)
    lower = model.score_variants([("c", 30, "c", "g"), ("c", 33, "ug", "u")], genome=genome)
    np.testing.assert_array_equal(lower["llr"].to_numpy(), upper["llr"].to_numpy())
    assert upper["llr"].null_count() == 0
    tokens = torch.from_numpy(dnamamba.Genome(genome).read("c", 0, 28)[None])
    assert (tokens >= 128).all()
    torch.testing.assert_close(model.module(tokens), model.module(tokens & 127))
