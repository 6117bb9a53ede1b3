"""The selective scan on the CPU backends against the recurrence in fp64: values and every gradient, every option."""

import kernel_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnamamba_kernels import selective_scan, selective_scan_step
from dnamamba_kernels.scan.cpu import scan as cpu_scan

BACKENDS = ["reference", "cpu"]


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty gives NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@st.composite
def problems(draw):
    channels = draw(st.sampled_from([1, 2, 6, 16, 18, 33, 48]))
    constant_B = draw(st.booleans()) and draw(st.booleans())
    divisors = [g for g in (0, 1, 2, 3) if g == 0 or channels % g == 0]
    return cases.random_problem(
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 2, 3, 17, 63, 64, 65, 97, 131])),
        channels,
        draw(st.sampled_from([1, 2, 5, 16])),
        groups=draw(st.sampled_from(divisors)),
        constant_B=constant_B,
        constant_C=constant_B,
        gate=draw(st.booleans()),
        skip=draw(st.booleans()),
        bias=draw(st.booleans()),
        initial=draw(st.booleans()),
        packed=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        dt_softplus=draw(st.booleans()),
        reverse=draw(st.booleans()),
        discretization=draw(st.sampled_from(["euler", "zoh"])),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problem=problems())
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_problems(backend, problem):
    cases.check_fp32(problem, cases.results(problem.to(torch.float32), backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("constant_B", "constant_C"), [(True, False), (False, True)])
def test_one_constant_map(backend, constant_B, constant_C):
    problem = cases.random_problem(2, 70, 20, 4, constant_B=constant_B, constant_C=constant_C)
    cases.check_fp32(problem, cases.results(problem.to(torch.float32), backend=backend))


def test_different_groups_of_B_and_C():
    problem = cases.random_problem(2, 67, 12, 4, groups=2)
    problem.tensors["C"] = torch.randn(2, 67, 3, 4)
    cases.check_fp32(problem, cases.results(problem.to(torch.float32), backend="cpu"))


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("reverse", [False, True])
def test_few_channels_cut_along_the_length(discretization, reverse):
    problem = cases.random_problem(1, 701, 5, 3, packed=True, reverse=reverse, discretization=discretization)
    cases.check_fp32(problem, cases.results(problem.to(torch.float32), backend="cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize(
    ("dt_range", "A_range"),
    [((1e-6, 1e-4), (1e-3, 1e-1)), ((1e-6, 1e2), (1e-3, 1e3)), ((1.0, 1e2), (10.0, 1e3)), ((1e-6, 1e-5), (1e2, 1e3))],
)
def test_extreme_steps_and_decays(backend, discretization, dt_range, A_range):
    problem = cases.random_problem(1, 300, 16, 8, dt_range=dt_range, A_range=A_range, discretization=discretization)
    cases.check_fp32(problem, cases.results(problem.to(torch.float32), backend=backend))


def test_states_up_to_256():
    problem = cases.random_problem(1, 66, 17, 256)
    cases.check_fp32(problem, cases.results(problem.to(torch.float32), backend="cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend, dtype):
    problem = cases.random_problem(2, 130, 24, 16).to(dtype)
    found = cases.results(problem, backend=backend)
    assert found["y"].dtype == found["dx"].dtype == found["dB"].dtype == dtype
    assert found["final_state"].dtype == found["dA"].dtype == torch.float32
    cases.check_half(problem, found, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_wider_tensor(backend):
    """Halves of a projection are views with longer rows, at addresses that are not aligned."""
    problem = cases.random_problem(2, 70, 19, 4).to(torch.float32)
    expected = cases.results(problem, backend=backend)
    views = {
        n: torch.cat([torch.full_like(t, float("nan")), t], -1)[..., t.shape[-1] :] for n, t in problem.tensors.items()
    }
    assert not views["x"].is_contiguous()
    options = problem.options | {n: t for n, t in views.items() if n not in ["x", "dt", "A", "B", "C"]}
    y, final_state = selective_scan(*(views[n] for n in ("x", "dt", "A", "B", "C")), **options, backend=backend)
    torch.testing.assert_close(y, expected["y"], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(final_state, expected["final_state"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_with_carried_state_equal_the_whole(backend, reverse):
    whole = cases.random_problem(2, 201, 20, 4, reverse=reverse).to(torch.float32)

    def in_chunks(x, dt, A, B, C, *, z, initial_state, **options):
        bounds = [(0, 70), (70, 71), (71, 201)]
        rows, state = {}, initial_state
        for low, high in reversed(bounds) if reverse else bounds:
            cut = [t if t.dim() == 2 else t[:, low:high] for t in (x, dt, A, B, C)]
            rows[low], state = selective_scan(*cut, z=z[:, low:high], initial_state=state, **options)
        return torch.cat([rows[low] for low, _ in bounds], 1), state

    cases.check_fp32(whole, cases.results(whole, in_chunks, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_separate(backend):
    problem = cases.random_problem(1, 150, 18, 4, initial=False).to(torch.float32)
    ids = torch.zeros(1, 150, dtype=torch.int32)
    ids[:, 64:], ids[:, 101:] = 7, 0  # an id may come again
    problem.options["sequence_ids"] = ids
    packed = cases.results(problem, backend=backend)

    def separately(x, dt, A, B, C, *, z, sequence_ids, **options):
        cuts = [slice(0, 64), slice(64, 101), slice(101, 150)]
        parts = [selective_scan(x[:, c], dt[:, c], A, B[:, c], C[:, c], z=z[:, c], **options) for c in cuts]
        return torch.cat([y for y, _ in parts], 1), parts[-1][1]

    for name, value in cases.results(problem, separately, backend=backend).items():
        torch.testing.assert_close(packed[name], value, rtol=2e-6, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_equals_flipped(backend):
    problem = cases.random_problem(2, 75, 18, 4, packed=True, reverse=True).to(torch.float32)

    def flipped(x, dt, A, B, C, *, z, sequence_ids, reverse, **options):
        x, dt, B, C, z, ids = (t.flip(1) for t in (x, dt, B, C, z, sequence_ids))
        y, final_state = selective_scan(x, dt, A, B, C, z=z, sequence_ids=ids, **options)
        return y.flip(1), final_state

    forward = cases.results(problem, flipped, backend=backend)
    for name, value in cases.results(problem, backend=backend).items():
        torch.testing.assert_close(value, forward[name], rtol=1e-5, atol=1e-5)


def test_same_bits_every_run_and_on_any_number_of_threads():
    problem = cases.random_problem(2, 300, 40, 16, packed=True).to(torch.float32)
    once = cases.results(problem, backend="cpu")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for name, value in cases.results(problem, backend="cpu").items():
                assert torch.equal(value, once[name]), name
    finally:
        torch.set_num_threads(threads)


def test_not_a_number_and_infinity_stay_in_their_channel():
    problem = cases.random_problem(1, 80, 18, 4, gate=False).to(torch.float32)
    clean, _ = selective_scan(*(problem.tensors[n] for n in ["x", "dt", "A", "B", "C"]))
    dirty = {n: problem.tensors[n].clone() for n in ["x", "dt", "A", "B", "C"]}
    dirty["x"][0, 40, 3], dirty["dt"][0, 40, 5], dirty["dt"][0, 40, 17] = float("nan"), float("nan"), 1e30
    y, _ = selective_scan(*dirty.values())
    assert y[0, 40:, 3].isnan().all()
    assert y[0, 40:, 5].isnan().all()
    assert not y[0, 40:, 17].isnan().any()
    others = [c for c in range(18) if c not in (3, 5, 17)]
    torch.testing.assert_close(y[..., others], clean[..., others], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("length", "channels"), [(150, 18), (701, 5)])
def test_not_a_number_stays_in_its_packed_sequence(backend, length, channels):
    problem = cases.random_problem(1, length, channels, 4, initial=False)
    cases.check_sequences_stay_apart(problem.to(torch.float32), backend)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"constant_B": True}, {"discretization": "zoh", "gate": False}])
def test_steps_equal_the_scan(options):
    problem = cases.random_problem(3, 9, 4, 5, **options).to(torch.float32)

    def by_steps(x, dt, A, B, C, *, initial_state, z=None, **options):
        rows, state = [], initial_state
        for t in range(x.shape[1]):
            at = [m if m.dim() == 2 else m[:, t] for m in (B, C)]
            gate = None if z is None else z[:, t]
            y, state = selective_scan_step(x[:, t], dt[:, t], A, *at, state, z=gate, **options)
            rows.append(y)
        return torch.stack(rows, 1), state

    cases.check_fp32(problem, cases.results(problem, by_steps))


def test_reference_is_right_in_fp64():
    problem = cases.random_problem(2, 37, 4, 3, packed=True, discretization="zoh", reverse=True).to(torch.float64)
    exact = cases.results(problem, cases.oracle)
    for name, value in cases.results(problem).items():  # "auto" takes the reference for fp64
        assert cases.relative_error(value, exact[name]) < 1e-12, name


def test_saved_for_backward_is_small():
    saved = []
    problem = cases.random_problem(1, 640, 16, 16, initial=False).to(torch.float32)
    leaves = {n: t.requires_grad_() for n, t in problem.tensors.items()}
    positional = [leaves.pop(n) for n in ("x", "dt", "A", "B", "C")]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selective_scan(*positional, **leaves)
    inputs = {t.data_ptr() for t in (*positional, *leaves.values())}
    extra = sum(t.numel() for t in saved if t.data_ptr() not in inputs)
    assert extra <= 640 // cpu_scan.CHUNK * 16 * 16 + 64
