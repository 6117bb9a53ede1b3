"""Masked-base prediction: which bases are chosen and what becomes of them, that this follows from a window's key alone,
and whole runs of it: resumed, in micro-batches, packed."""

import csv
import gzip
import json
import math
import shutil

import numpy as np
import pytest
import torch

from dnamamba import cli, info, pretrain
from dnamamba.alphabet import MASK, PAD, SOFT_MASK_BIT
from dnamamba.demo import genome_path
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.model.objectives.masked_base import MaskedBase, random_bits
from dnamamba.training.data import EvaluationSet, FixedWindows, Stage, StepDataset


def windows_of(batch, length, seed=0):
    """All bases, N, PAD, some of them soft-masked."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 6, (batch, length), generator=generator, dtype=torch.uint8)
    return tokens | SOFT_MASK_BIT * torch.randint(0, 2, (batch, length), generator=generator, dtype=torch.uint8)


def keys_of(batch):
    return random_bits(torch.tensor([batch]), batch)[0]


def test_the_bits_are_splitmix64():
    """The generator's published first numbers from 1234567 on."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [value % 2**64 for value in random_bits(torch.tensor([1234567]), 5)[0].tolist()] == known


def test_real_bases_are_chosen_and_hidden_in_the_shares():
    tokens = windows_of(300, 2001)
    batch = MaskedBase().prepare_batch(tokens, keys=keys_of(300), training=True)
    plain = tokens[:, 1:] & 0x7F
    is_base, chosen = plain < 4, batch.targets < 4
    assert torch.equal(chosen, batch.targets != PAD) and not (chosen & ~is_base).any()
    assert torch.equal(batch.targets[chosen], plain[chosen]) and torch.equal(batch.inputs[~chosen], plain[~chosen])
    assert torch.equal(batch.soft_mask, tokens[:, 1:] >= SOFT_MASK_BIT)
    inputs, targets = batch.inputs[chosen], batch.targets[chosen]
    masked = inputs == MASK
    close(chosen.sum(), is_base.sum(), 0.15)
    close(masked.sum(), chosen.sum(), 0.8)
    close((inputs == targets).sum(), chosen.sum(), 0.1 + 0.1 / 4)  # a random base may be the same
    for base in range(4):
        close((chosen & (plain == base)).sum(), (plain == base).sum(), 0.15)
        close(((inputs == base) & (targets != base)).sum(), (targets != base).sum(), 0.1 / 4)
    # Neighbours are chosen independently, and so are the same positions of two windows.
    close((chosen[:, 1:] & chosen[:, :-1]).sum(), (is_base[:, 1:] & is_base[:, :-1]).sum(), 0.15**2)
    close((chosen[1:] & chosen[:-1]).sum(), (is_base[1:] & is_base[:-1]).sum(), 0.15**2)


def close(count, total, share):
    """Within five standard deviations."""
    assert abs(int(count) - int(total) * share) < 5 * math.sqrt(int(total) * share * (1 - share))


def test_what_is_drawn_follows_from_the_key_alone():
    tokens, keys, draw = windows_of(7, 301), keys_of(7), MaskedBase().prepare_batch
    flags = torch.arange(7) % 2 == 0
    whole = draw(tokens, flags, None, keys, training=True)
    for one in range(7):
        alone = draw(tokens[one : one + 1], flags[one : one + 1], None, keys[one : one + 1], training=True)
        assert torch.equal(alone.inputs[0], whole.inputs[one]) and torch.equal(alone.targets[0], whole.targets[one])
    other = draw(tokens, flags, None, keys + 1, training=True)
    assert (other.targets != whole.targets).float().mean() > 0.1
    # When a model is used, the same are chosen, and all of them hidden.
    used = draw(tokens, flags, None, keys)
    assert torch.equal(used.targets, whole.targets)
    assert torch.equal(used.inputs == MASK, used.targets < 4)


def test_the_strand_is_chosen_first():
    """Positions are those of the strand that is read; its first base is left out."""
    tokens = windows_of(4, 101)
    batch = MaskedBase().prepare_batch(tokens, torch.ones(4, dtype=torch.bool), keys=keys_of(4))
    bases = tokens[:, :-1].flip(1)
    plain = bases & 0x7F
    assert torch.equal(batch.soft_mask, bases >= SOFT_MASK_BIT)
    read, shown = torch.where(plain < 4, 3 - plain, plain), batch.targets == PAD
    assert torch.equal(batch.inputs[shown], read[shown]) and torch.equal(batch.targets[~shown], read[~shown])


def test_packed_windows_keep_their_segments():
    tokens, ids = windows_of(2, 51), torch.arange(51, dtype=torch.int32).div(17, rounding_mode="floor").expand(2, -1)
    flags = torch.tensor([False, True])
    batch = MaskedBase().prepare_batch(tokens, flags, ids, keys_of(2))
    assert torch.equal(batch.sequence_ids[0], ids[0, 1:]) and torch.equal(batch.sequence_ids[1], ids[1].flip(0)[1:])
    assert batch.inputs.shape == batch.targets.shape == batch.sequence_ids.shape


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genome")
    (folder / "g.fa").write_text(">c\n" + "".join(np.random.default_rng(0).choice(list("ACGT"), 9000)) + "\n")
    store = open_genome([folder / "g.fa"])
    return WindowPlan(store, (Interval("c", 0, 9000),), 100, seed=3, reverse_complement=True, random_phase=True)


def test_keys_are_of_the_sample_whatever_the_ranks(plan):
    stages = [Stage(0, plan, 8), Stage(20, plan, 8)]

    def keys(step, world=1, seed=3):
        return torch.cat([StepDataset(stages, rank, world, seed)[step].keys for rank in range(world)]).tolist()

    assert keys(5) == keys(5, world=4) == keys(5)
    everything = [*(key for step in range(40) for key in keys(step)), *keys(0, seed=4)]
    assert len(set(everything)) == len(everything) == 41 * 8, "of four epochs, two stages and two seeds"


def test_validation_windows_keep_their_keys(plan):
    evaluated = EvaluationSet("", plan, np.arange(10, 30))

    def keys(batch, world):
        ranks = [FixedWindows(evaluated, batch, rank, world) for rank in range(world)]
        return [sorted(key for fixed in ranks for item in range(len(fixed)) for key in fixed[item].keys.tolist())]

    assert keys(1, 1) == keys(7, 3) and len(set(keys(1, 1)[0])) == 20


QUICK = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "8", "--model.d_state", "4"]
QUICK += ["--model.mixer", "bimamba", "--model.objective", "masked_base", "--model.rc_equivariant", "true"]
QUICK += ["--batch_tokens", "2048", "--accelerator", "cpu", "--markov_order", "3", "--validation_tokens", "8192"]
QUICK += ["--soft_mask_weight", "0.2", "--max_steps", "8", "--log_every", "1", "--save_every", "1", "--keep", "9"]


def train(*arguments):
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A long contig and short ones, half of them soft-masked, in windows of two lengths, packed."""
    folder = tmp_path_factory.mktemp("run")
    with gzip.open(genome_path(), "rt") as source:
        source.readline()
        bases = "".join(line.strip() for _, line in zip(range(2000), source, strict=False))
    text = f">long\n{bases[:40_000]}NNNN{bases[40_000:60_000].lower()}\n>held\n{bases[60_000:80_000]}\n"
    text += "".join(f">s{n}\n{bases[500 * n : 500 * n + 300 + 7 * n]}\n" for n in range(40))
    (folder / "g.fa").write_text(text)
    flags = ["--genome", folder / "g.fa", "--pack", "--length", 2048, "--length_warmup", 0.5]
    flags += ["--contigs", "*", "--train", "long", "s*", "--validation", "held"]
    assert train(*flags, *QUICK, "--out", folder / "run") == 0
    return folder, flags


def test_a_run_is_resumed_bit_for_bit(run, tmp_path):
    folder, _ = run
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (6, 7, 8):
        shutil.rmtree(checkpoints / f"step-{step:08d}")
    for name in ("last", "best"):
        (checkpoints / name).unlink(missing_ok=True)
    (checkpoints / "last").symlink_to("step-00000005")
    (tmp_path / "run" / "summary.json").unlink()
    assert train("--resume", "--out", tmp_path / "run", "--num_workers", 1) == 0
    whole, resumed = (path / "run" / "checkpoints" / "last" / "model.safetensors" for path in (folder, tmp_path))
    assert whole.read_bytes() == resumed.read_bytes()
    losses = [[row["train_bits_per_base"] for row in rows(path / "run")] for path in (folder, tmp_path)]
    assert losses[0] == losses[1] and len(set(losses[0])) == 8


def test_micro_batches_change_nothing_beyond_rounding(run, tmp_path):
    folder, flags = run
    assert train(*flags, *QUICK, "--micro_tokens", 512, "--out", tmp_path / "run") == 0
    for one, other in zip(rows(tmp_path / "run"), rows(folder / "run"), strict=True):
        assert float(one["train_bits_per_base"]) == pytest.approx(float(other["train_bits_per_base"]), abs=2e-4)
    bits = [float(rows(path)[-1]["validation_bits_per_base"]) for path in (folder / "run", tmp_path / "run")]
    assert bits[0] == pytest.approx(bits[1], abs=1e-4)


def test_a_run_says_what_it_predicts(run, capsys):
    folder, _ = run
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["markov_both_sides"] is True
    assert 1.5 < summary["markov_bits_per_base"] < 2.0 and 1.5 < summary["validation_bits_per_base"] < 2.5
    with (folder / "run" / "validation_by_class.csv").open() as file:
        by_class = {(row["group"], row["class"]): int(row["bases"]) for row in csv.DictReader(file)}
    assert by_class["all", "all"] == pytest.approx(0.15 * 8192, rel=0.2)
    assert ("position", "512-1024") in by_class and ("position", "1024-2048") not in by_class
    capsys.readouterr()
    assert cli.run(info.main, [str(folder / "run")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "language model (masked base)" in shown and ", both sides)" in shown
    assert "bidirectional Mamba" in shown and "reverse-complement equivariant" in shown


def test_the_mixer_needs_its_objective_by_name(tmp_path, capsys):
    assert train("--model.mixer", "bimamba", "--out", tmp_path / "run", "--accelerator", "cpu") == 2
    message = capsys.readouterr().err
    assert "bimamba sees what the objective next_base wants predicted; take --model.objective masked_base" in message
    assert not (tmp_path / "run").exists()
