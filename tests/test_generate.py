"""Sampling: what is drawn follows the model's probabilities, and depends on seed and number alone."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from dnamamba import cli, generate
from dnamamba.alphabet import encode
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference import sampling as generation
from dnamamba.inference.graphs import without_collector
from dnamamba.inference.load import Inference, Precision, load_for_inference
from dnamamba.inference.sampling import Generator, Sampling, _Steps, draw
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = LanguageModel(preset("demo", n_layer=2, d_model=16, d_state=4))
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(12)  # decided probabilities, so that a wrong state shows
    folder = tmp_path_factory.mktemp("generate") / "checkpoint"
    save_checkpoint(model, folder, {})
    return folder


@pytest.fixture(scope="module")
def inference(checkpoint: Path) -> Inference:
    return load_for_inference(checkpoint, "cpu")


def test_draw_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw(probabilities.log().expand(10_000, 4), uniforms, 1.0, 4)
    assert torch.bincount(drawn.int()).tolist() == pytest.approx([5000, 3000, 1500, 500], abs=1)


def test_draw_from_the_most_probable_alone() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]]).expand(1000, 4)
    uniforms = torch.arange(1000) / 1000
    assert set(draw(logits, uniforms, 1.0, 1).tolist()) == {1}  # of equals the first
    assert set(draw(logits, uniforms, 1.0, 2).tolist()) == {1, 3}
    assert set(draw(logits, uniforms, 0.0, 4).tolist()) == {1}
    assert set(draw(torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).expand(1000, 4), uniforms, 1.0, 4).tolist()) == {
        0,
        2,
    }


def test_greedy_bases_are_those_of_the_whole_pass(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PROMPT_CHUNK", 7)
    prompt = encode("ACGTTGCANACGGGTCA")
    sampled = Generator(inference, Sampling(temperature=0)).generate([prompt], [0], 40)[0]
    whole = torch.from_numpy(np.concatenate([prompt, sampled]))[None]
    logits = inference.model(whole).logits
    assert logits is not None
    assert sampled.tolist() == logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()


def test_a_sequence_does_not_depend_on_its_neighbours(inference: Inference) -> None:
    prompts = [encode("ACGT"), encode("ACGT"), encode("TTTTTTT"), encode("G")]
    together = Generator(inference, Sampling(seed=3)).generate(prompts, [0, 1, 2, 3], 50)
    alone = [Generator(inference, Sampling(seed=3)).generate([p], [n], 50)[0] for n, p in enumerate(prompts)]
    assert (together == np.stack(alone)).all()
    assert (together[0] != together[1]).any()
    assert (together != Generator(inference, Sampling(seed=4)).generate(prompts, [0, 1, 2, 3], 50)).any()


def test_blocks_and_passes_change_nothing(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [encode(text) for text in ("ACGTA", "GGGTC", "AC", "TTTTT", "ACGTA", "G")]
    sampling = Sampling(seed=5, temperature=0.7, top_k=3)
    whole = Generator(inference, sampling).generate(prompts, range(6), 30)
    reported: list[tuple[int, int]] = []
    for name, value in (("BLOCK", 8), ("PROMPT_BASES", 8), ("PROMPT_CHUNK", 3)):
        monkeypatch.setattr(generation, name, value)
    assert (
        Generator(inference, sampling).generate(prompts, range(6), 30, lambda *at: reported.append(at)) == whole
    ).all()
    assert reported == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_matrices_in_bf16_are_those_of_autocast(checkpoint: Path) -> None:
    inference = load_for_inference(checkpoint, "cpu", "bf16")
    generator = Generator(inference, Sampling(seed=2))
    assert generator.model.backbone.layers[0].mixer.in_proj.weight.dtype == torch.bfloat16
    prompts, samples = [encode("ACGTTGCA"), encode("TTGACA")], [0, 1]
    sampled = generator.generate(prompts, samples, 60)
    generator.model = inference.model
    assert (sampled == generator.generate(prompts, samples, 60)).all()


def test_frequencies_are_the_models(inference: Inference) -> None:
    """The first base of many samples against the model's own probabilities."""
    prompt = encode("ACGTAC")
    logits = inference.model(torch.from_numpy(prompt)[None]).logits
    assert logits is not None
    expected = logits[0, -1].softmax(-1).numpy()
    drawn = Generator(inference, Sampling()).generate([prompt] * 4000, list(range(4000)), 1)[:, 0]
    observed = np.bincount(drawn, minlength=4) / 4000
    assert np.abs(observed - expected).max() < 4 * np.sqrt(0.25 / 4000)


class TestCommandLine:
    def test_fasta(self, checkpoint: Path, tmp_path: Path) -> None:
        prompts = tmp_path / "prompts.fa"
        prompts.write_text(">one\nacgtn\n>two\nTT\n")
        flags = ["--checkpoint", str(checkpoint), "--length", "90", "--samples", "2", "--accelerator", "cpu"]
        for batch, out in (("1", tmp_path / "a.fa"), ("3", tmp_path / "b.fa")):
            run = [*flags, "--prompts", str(prompts), "--batch", batch, "--with_prompt", "--out", str(out)]
            assert cli.run(generate.main, run) == 0
        text = (tmp_path / "a.fa").read_text()
        assert text == (tmp_path / "b.fa").read_text()
        records = text.split(">")[1:]
        names = [record.split()[0] for record in records]
        sequences = ["".join(record.splitlines()[1:]) for record in records]
        assert names == ["one_1", "one_2", "two_3", "two_4"]
        assert [len(sequence) for sequence in sequences] == [95, 95, 92, 92]
        assert sequences[0].startswith("ACGTN") and set(sequences[0][5:]) <= set("ACGT")
        assert sequences[0] != sequences[1]
        assert [path.name for path in tmp_path.glob(".*")] == []

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--prompt", "ACGQ"], "--prompt: 'Q' at position 4 is no nucleotide; expected A, C, G, T, N"),
            (["--prompt", ""], "--prompt: empty; a causal model needs at least one base to continue from"),
            ([], "give a prompt by --prompt BASES, or prompts by --prompts FASTA (one of the two)"),
            (["--prompt", "A", "--top_k", "5"], "--top_k: 5 is above 4"),
            (["--prompt", "A", "--temperature", "-1"], "--temperature: -1.0 is neither 0 nor at least 1e-06"),
            (["--prompt", "A", "--temperature", "1e-50"], "--temperature: 1e-50 is neither 0 nor at least 1e-06"),
            (["--prompt", "A", "--length", "0"], "--length: 0 is below 1"),
            (["--prompt", "A", "--out", "{tmp}"], "{tmp}: is a folder; give the name of a file"),
            (["--prompts", "{tmp}/empty.fa"], "{tmp}/empty.fa: empty; expected FASTA or GenBank"),
        ],
    )
    def test_bad_input(
        self, flags: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty.fa").write_text("")
        given = [flag.format(tmp=tmp_path) for flag in flags]
        assert cli.run(generate.main, ["--checkpoint", str(checkpoint), *given]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {message.format(tmp=tmp_path)}"


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_collected_while_a_graph_is_recorded(was_on):
    """A graph in a cycle of references, as exceptions leave them, must not be freed within another's recording."""
    freed, before = [], gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        with without_collector():
            cycle = [Freed(freed)]
            cycle.append(cycle)
            del cycle
            for _ in range(100_000):
                [[]].append([])
            assert freed == []
        assert gc.isenabled() == was_on
        with without_collector():
            assert freed == [True]
    finally:
        (gc.enable if before else gc.disable)()


class Freed:
    """Appends to a list when it is freed."""

    def __init__(self, freed):
        self.freed = freed

    def __del__(self):
        self.freed.append(True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graph_equals_steps(checkpoint: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = load_for_inference(checkpoint, "gpu", precision)
    prompts = [encode("ACGTNAC"), encode("GG"), encode("GG")]
    generator = Generator(inference, Sampling(seed=1, top_k=3))
    monkeypatch.setattr(generation, "BLOCK", 32)
    by_graph = [generator.generate(prompts[:count], range(count), 77) for count in (3, 2, 2)]
    monkeypatch.setattr(generator, "_stepper", lambda start, _: _Steps(generator.model, generator.sampling, start))
    by_steps = [generator.generate(prompts[:count], range(count), 77) for count in (3, 2, 2)]
    for one, other in zip(by_graph, by_steps, strict=True):
        assert (one == other).all()
