"""The synthetic tasks: what their sequences hold, that training resumes exactly, and what a table says."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from dnamamba.genome.windows import _mix

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
STEP = torch.tensor([7])


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(PIPELINES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    import synthetic_tasks

    yield synthetic_tasks
    torch.set_num_threads(threads)


def test_random_bits_are_those_of_splitmix(tasks):
    values = np.array([0, 1, 12345, 2**63 - 1, -5], np.int64)
    expected = _mix(values.view(np.uint64))
    assert np.array_equal(tasks.splitmix64(torch.from_numpy(values)).numpy().view(np.uint64), expected)
    bits = tasks.random_bits(200, 500, 0, STEP, 1)
    assert bits.min() >= 0
    shares = torch.bincount((bits % 16).flatten(), minlength=16) / bits.numel()
    torch.testing.assert_close(shares, torch.full((16,), 1 / 16), atol=0.004, rtol=0)
    others = [tasks.random_bits(200, 500, *key) for key in ((1, STEP, 1), (0, STEP + 1, 1), (0, STEP, 2))]
    assert all((bits != other).float().mean() > 0.999 for other in others)


@pytest.mark.parametrize("name", ["induction_heads", "selective_copying", "base_copies", "hairpins_and_repeats"])
def test_sequences_of_several_steps_are_those_of_each(tasks, name):
    task = tasks.EXPERIMENTS[name].task
    together = task.sample(4, 300, 1, torch.arange(5, 8))
    alone = [task.sample(4, 300, 1, torch.tensor([step])) for step in (5, 6, 7)]
    assert torch.equal(together.inputs, torch.cat([each.inputs for each in alone]))
    assert torch.equal(together.targets, torch.cat([each.targets for each in alone]))


def test_induction_heads_ask_for_the_token_after_the_first_special_one(tasks):
    inputs, targets = tasks.InductionHeads().sample(300, 20, 0, STEP)
    assert (inputs[:, -1] == 15).all()
    assert ((inputs == 15).sum(1) == 2).all()
    first = (inputs == 15).int().argmax(1)
    assert set(first.tolist()) == set(range(18))
    assert torch.equal(targets[:, -1], inputs.gather(1, first[:, None] + 1)[:, 0])
    assert (targets[:, :-1] == -1).all()
    assert targets[:, -1].unique().numel() == 15


def test_selective_copying_asks_for_the_data_in_order(tasks):
    inputs, targets = tasks.SelectiveCopying(copied=5).sample(50, 40, 0, STEP)
    assert inputs.shape == targets.shape == (50, 45)
    assert (inputs[:, 40:] == 15).all()
    for row, wanted in zip(inputs[:, :40], targets[:, 40:], strict=True):
        assert torch.equal(row[row != 0], wanted)
    assert (targets[:, :40] == -1).all()


def test_base_copies_ask_for_what_can_be_known(tasks):
    inputs, targets = tasks.BaseCopies(5, 20, unknown=3).sample(200, 60, 0, STEP)
    periods = set()
    for row, wanted in zip(inputs, targets, strict=True):
        first = int((wanted >= 0).int().argmax())
        period = first + 1 - 3
        periods.add(period)
        assert torch.equal(wanted[first:-1], row[first + 1 :])
        assert torch.equal(row[period:], row[:-period])
    assert periods == set(range(5, 21))


def test_hairpins_ask_for_what_can_be_known(tasks):
    inputs, targets = tasks.Hairpins(8, 20, share=0.5, unknown=3).sample(100, 90, 0, STEP)
    tokens = torch.cat((inputs, torch.where(targets[:, -1:] >= 0, targets[:, -1:], 9)), dim=1)
    for number, (row, wanted) in enumerate(zip(tokens, targets, strict=True)):
        unit = int((wanted >= 0).int().argmax()) + 1 - 3
        assert 8 <= unit <= 20
        copy = 3 - row[:unit].flip(0) if number < 50 else row[:unit]
        assert torch.equal(row[unit : 2 * unit], copy)
        asked = wanted >= 0
        assert torch.equal(wanted[asked], row[1:][asked])
        following = asked[2 * unit - 1 : 3 * unit - 1]
        assert not following.any() if number < 50 else following.all()


@pytest.mark.parametrize("name", ["induction_heads", "selective_copying", "base_copies", "hairpins"])
def test_training_resumes_exactly(tasks, name, tmp_path):
    experiment = tasks.EXPERIMENTS[name]._replace(batch=2, length=200)
    wanted = tasks.Wanted(next(iter(experiment.systems)), 1)

    def trained(folder, *parts):
        for steps in parts:
            training = tasks.training_of(experiment, wanted, 6, "cpu")
            training.load(folder)
            training.advance(steps)
            training.save(folder)
        return training

    whole, parted = trained(tmp_path / "whole", 6), trained(tmp_path / "parted", 2, 1, 9)
    assert whole.finished
    assert parted.finished
    assert torch.equal(whole.curve, parted.curve)
    assert whole.curve[0] > 0
    for left, right in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.gpu
def test_captured_trainings_are_those_step_by_step(tasks, tmp_path):
    """Two at once, each in graphs on a stream of its own, stopped in between, and one without a graph."""
    experiment = tasks.EXPERIMENTS["induction_heads"]._replace(batch=2, length=64)
    wanted = [tasks.Wanted("mamba", 0), tasks.Wanted("transformer", 0)]

    def trainings():
        return [tasks.training_of(experiment, each, 57, "cuda") for each in wanted]

    stopped = trainings()
    for training in stopped:
        for steps in (10, 10, 10):
            training.advance(steps)
        assert training.done == 23
        training.save(tmp_path)
    captured = trainings()
    assert tasks.train_together(captured, tmp_path, 1.0)
    for training, single in zip(captured, trainings(), strict=True):
        for _ in range(57):
            single.run(1)
        torch.cuda.synchronize()
        assert training.done == 57
        torch.testing.assert_close(training.curve, single.curve, rtol=1e-3, atol=0)
        for left, right in zip(training.model.parameters(), single.model.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=0.02, atol=5e-3)


def test_a_small_transformer_learns_short_copies(tasks):
    """The whole way from task to measure: from ln 4 to nearly nothing."""
    task = tasks.BaseCopies(8, 16, unknown=8)
    config = {"n_layer": 2, "d_model": 32, "mixer": "transformer", "kmer": 8}
    experiment = tasks.EXPERIMENTS["base_copies"]._replace(
        task=task, length=64, batch=16, learning_rate=5e-3, warmup=10, systems={"transformer": config}
    )
    training = tasks.training_of(experiment, tasks.Wanted("transformer", 0), 150, "cpu")
    evaluation = tasks.Evaluation(16, task, 64)
    before = tasks.evaluate(training.model, evaluation, "cpu")
    training.advance(150)
    after = tasks.evaluate(training.model, evaluation, "cpu")
    assert before["nats"] > 1.3
    assert after["nats"] < 0.2
    assert after["accuracy"] > 0.9


@pytest.mark.slow
def test_reverse_complements_are_found_soon(tasks):
    """As attention starts out: from any other start it takes this model some 400 steps."""
    experiment = tasks.EXPERIMENTS["hairpins"]
    training = tasks.training_of(experiment, tasks.Wanted(next(iter(experiment.systems)), 0), 200, "cpu")
    training.advance(200)
    assert training.curve[0] > 1.0
    assert training.curve[1] < 0.2


def test_results_are_written(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_SEQUENCES", 4)
    experiment = tasks.EXPERIMENTS["induction_heads"]
    experiment = experiment._replace(
        batch=2,
        length=24,
        systems={name: experiment.systems[name] for name in ("mamba", "transformer")},
        evaluations=[tasks.Evaluation(length, experiment.task, length) for length in (8, 2**15)],
    )
    wanted = [tasks.Wanted(name, seed) for name in experiment.systems for seed in (0, 1)]
    trainings = [tasks.training_of(experiment, each, 100, "cpu") for each in wanted]
    assert not tasks.train_together(trainings, tmp_path / "trainings", 0.0)
    rows = tasks.evaluate_all(experiment, wanted, trainings, "cpu")
    curves = dict.fromkeys(wanted, torch.rand(3))
    tasks.write_results(experiment, rows, curves, tmp_path)
    written = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["system"], row["length"]) for row in written[:2]] == [("mamba", "8"), ("mamba", "32768")]
    assert {row["length"] for row in written if row["system"] == "transformer"} == {"8"}, "its time is quadratic"
    assert (tmp_path / "results.png").stat().st_size > 10_000
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "| accuracy at length | 8 | 32,768 |"
    assert lines[3].startswith("| transformer | ")
    assert lines[3].endswith(" |  |")


def test_a_schedule_is_followed_and_continued(tasks, tmp_path, monkeypatch):
    """The model, its optimiser, the number of steps and the curve go from one stage to the next, and over a stop."""
    import captured_training

    experiment = tasks.EXPERIMENTS["selective_copying"]
    stages = (tasks.Stage(10, 24, 3, 1e-2), tasks.Stage(30, 40, 2, 1e-3))
    evaluations = [tasks.Evaluation(32, experiment.task, 32)]
    experiment = experiment._replace(schedule=stages, evaluations=evaluations)
    monkeypatch.setitem(tasks.EXPERIMENTS, "selective_copying", experiment)
    for module in (tasks, captured_training):
        monkeypatch.setattr(module, "EVERY", 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    drawn, rates, calls = [], [], []
    sample, together = tasks.SelectiveCopying.sample, tasks.train_together

    def recorded(task, batch, length, seed, steps):
        drawn.append((batch, length, *steps.tolist()))
        return sample(task, batch, length, seed, steps)

    def stopped(trainings, folder, minutes):
        rates.append(trainings[0].learning_rate)
        calls.append(together(trainings, folder, 0.0 if len(calls) == 1 else minutes))
        return calls[-1]

    monkeypatch.setattr(tasks.SelectiveCopying, "sample", recorded)
    monkeypatch.setattr(tasks, "train_together", stopped)
    command = ["synthetic_tasks.py", "selective_copying", "--systems", "mamba", "--seeds", "1", "--length_warmup"]
    monkeypatch.setattr("sys.argv", [*command, "--sequences", "2", "--out", str(tmp_path)])
    for _ in range(2):
        tasks.main()
    assert calls == [True, False, True, True]
    assert rates == [1e-2, 1e-3] * 2
    evaluated = (2, 32, 0)
    ten = [tuple(range(first, first + 10)) for first in (0, 10, 20)]
    assert drawn == [(3, 24, *ten[0]), evaluated, (2, 40, *ten[1]), (2, 40, *ten[2]), evaluated]
    saved = torch.load(tmp_path / "trainings" / "mamba-0.pt", weights_only=True)
    assert saved["done"] == 30
    assert saved["optimizer"]["state"][0]["step"] == 30
    assert len(saved["curve"]) == 6
    assert (saved["curve"] > 1).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["selective_copying", "--batch", "2"], "leave them out"), (["induction_heads"], "has no schedule")],
)
def test_a_schedule_is_the_tasks_own(tasks, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("sys.argv", ["synthetic_tasks.py", *flags, "--length_warmup"])
    with pytest.raises(SystemExit):
        tasks.main()
    assert message in capsys.readouterr().err
