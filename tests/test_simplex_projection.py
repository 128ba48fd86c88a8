"""Projection onto the simplex against algorithm 2 row by row, a general solver, and eq. 13 written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

import voxel.backend
from hdcrf.relaxed.simplex_projection import project_simplex, projected
from voxel.backend import why_not

needs_kernels = pytest.mark.skipif(bool(why_not), reason=why_not)
DTYPES = [torch.float32, torch.float64]

# Of an entry, relative to it where it is beyond 1. Worst seen over all cases below: 1.6e-7 and 2.2e-16.
TOLERANCE = {torch.float32: 4e-7, torch.float64: 1e-15}


def algorithm_2(row):
    """Return the projection of a vector, and t, in the steps of the paper."""
    q = np.sort(row)
    labels = len(q)
    k = labels - 1
    while k > 0:
        t = (q[k:].sum() - 1) / (labels - k)  # those that the paper numbers k + 1, ..., L
        if t >= q[k - 1]:
            break
        k -= 1
    else:
        t = (q.sum() - 1) / labels
    return np.maximum(row - t, 0), t


def expected(x, leak=0.0):
    """Return what rows (P, K) project to, in float64; a row's largest entry is made 0, for the digits."""
    result = []
    for row in x.double().cpu().numpy():
        shifted = row - row.max()
        inside, t = algorithm_2(shifted)
        result.append(np.where(shifted - t >= 0, inside, leak * (shifted - t)))
    return torch.from_numpy(np.stack(result)).to(x.device)


def jacobian(row, leak):
    """Return eq. 13 with the slope of the output, for a vector without entries at t."""
    _, t = algorithm_2(row)
    active = row > t
    slope = np.where(active, 1.0, leak)
    return slope[:, None] * (np.eye(len(row)) - active[None] / active.sum())


def away_from_kinks(*shape, seed=0):
    """Return rows of Gaussian numbers of which none is closer to t than 1e-3."""
    generator = np.random.default_rng(seed)
    rows = []
    while len(rows) < np.prod(shape[:-1], dtype=int):
        row = generator.normal(size=shape[-1]) * 0.6
        if np.abs(row - algorithm_2(row)[1]).min() > 1e-3:
            rows.append(row)
    return torch.from_numpy(np.stack(rows).reshape(shape))


def cases():
    generator = torch.Generator().manual_seed(0)

    def random(points, labels):
        return torch.randn(points, labels, generator=generator, dtype=torch.float64)

    yield from ((f"random-{labels}", random(50, labels)) for labels in (1, 2, 3, 5, 8, 9, 16, 21, 150, 300))
    yield "all-active", 0.01 * random(50, 21)
    yield "one-active", torch.eye(21, dtype=torch.float64) * 3 + 0.1 * random(21, 21)
    yield "ties", torch.randint(-2, 3, (50, 21), generator=generator) / 4
    yield "all-equal", torch.full((3, 7), 0.3)
    yield "all-equal-and-huge", torch.full((3, 300), -1e30)
    yield "on-the-simplex", random(50, 21).softmax(1)
    yield "corners", torch.eye(9)
    yield "millions", 1e6 * random(50, 21)
    yield "around-a-million", (1e6 + 4 * random(50, 21)).float()
    yield "spread-of-1e30", 1e30 * random(50, 21)
    yield "one-at-minus-1e30", torch.cat([random(50, 20), torch.full((50, 1), -1e30)], 1)
    yield "spread-of-1e30-in-a-tie", torch.tensor([[1e30, -1e30, 1e30, 0.0]])
    yield "one-far-above", torch.tensor([[1e30, 1.0, 2.0]])
    # t is near -0.9, where float32 has steps of 6e-8: 300 times that in the sum, unless corrected for.
    yield "clump", torch.cat([torch.zeros(5, 1), -0.9 + 1e-5 * random(5, 299).abs()], 1)
    yield "just-one-below", torch.tensor([[0.0, -1.0, -1.0 + 1e-7, -1.0 - 1e-7]])


CASES = dict(cases())


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


class TestValues:
    @pytest.mark.parametrize("leak", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_algorithm_2(self, case, dtype, leak, device, backend):
        x = case.to(device, dtype)
        wanted = expected(x, leak)
        result = project_simplex(x, leak=leak, backend=backend)
        assert result.dtype == dtype
        assert result.shape == x.shape
        # What leaks can be of any size.
        error = (result - wanted).abs() / wanted.abs().clamp_min(1)
        assert error.max() <= TOLERANCE[dtype]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_result_is_a_distribution(self, case, dtype, device, backend):
        result = project_simplex(case.to(device, dtype), backend=backend)
        assert (result >= 0).all()
        assert not torch.signbit(result).any()
        # Worst seen: 2.7e-7 and 7.8e-16, with 300 labels.
        worst = 1e-6 if dtype == torch.float32 else 3e-15
        assert (result.double().sum(1) - 1).abs().max() <= worst

    @pytest.mark.parametrize("labels", [2, 3, 6])
    def test_nearest_point_of_the_simplex(self, labels):
        # By a solver of general programs, which finds the distance to about 1e-15, so the point to 1e-7.
        for row in np.random.default_rng(labels).normal(size=(5, labels)):
            solution = minimize(
                lambda y, row=row: np.sum((y - row) ** 2) / 2,
                np.full(labels, 1 / labels),
                jac=lambda y, row=row: y - row,
                bounds=[(0, None)] * labels,
                constraints={"type": "eq", "fun": lambda y: y.sum() - 1, "jac": np.ones_like},
                method="SLSQP",
                options={"ftol": 1e-16, "maxiter": 200},
            )
            np.testing.assert_allclose(project_simplex(torch.from_numpy(row)), solution.x, atol=1e-7)

    def test_by_hand(self, device, backend):
        x = torch.tensor([[0.5, 0.75, -1.0], [0.0, 0.0, 3.0]], device=device)  # t = 1/8 and 2
        exact = torch.tensor([[0.375, 0.625, 0.0], [0.0, 0.0, 1.0]], device=device)
        assert torch.equal(project_simplex(x, backend=backend), exact)
        leaky = torch.tensor([[0.375, 0.625, -0.5625], [-1.0, -1.0, 1.0]], device=device)
        assert torch.equal(project_simplex(x, leak=0.5, backend=backend), leaky)

    def test_largest_numbers(self, device, backend):
        largest = torch.finfo(torch.float32).max
        x = torch.tensor([[largest, -largest], [-largest, -largest]], device=device)
        wanted = torch.tensor([[1.0, 0.0], [0.5, 0.5]], device=device)
        assert torch.equal(project_simplex(x, backend=backend), wanted)


class TestProperties:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_projecting_again_changes_nothing(self, case, dtype, device, backend):
        once = project_simplex(case.to(device, dtype), backend=backend)
        again = project_simplex(once, backend=backend)
        assert (again - once).abs().max() <= TOLERANCE[dtype]

    @pytest.mark.parametrize("leak", [0.0, 0.1])
    def test_adding_a_number_changes_nothing(self, device, backend, leak):
        x = torch.randn(30, 7, device=device, dtype=torch.float64)
        result = project_simplex(x + 1024, leak=leak, backend=backend)
        # 1024 + x is rounded to 2⁻⁴²; worst seen: 1.2e-13.
        torch.testing.assert_close(result, project_simplex(x, leak=leak, backend=backend), rtol=0, atol=5e-13)

    @pytest.mark.parametrize("leak", [0.0, 0.1])
    def test_permuted_labels_permute_the_result(self, device, backend, leak):
        x = torch.randn(30, 21, device=device, dtype=torch.float64)
        order = torch.randperm(21, device=device)
        result = project_simplex(x[:, order], leak=leak, backend=backend)
        wanted = project_simplex(x, leak=leak, backend=backend)[:, order]
        torch.testing.assert_close(result, wanted, rtol=0, atol=TOLERANCE[torch.float64])

    @given(
        arrays(np.float64, st.tuples(st.just(2), st.integers(1, 40)), elements=st.floats(-3, 3)),
        st.sampled_from([0.1, 1.0, 1e3]),
    )
    def test_distances_do_not_grow(self, pair, scale):
        pair = torch.from_numpy(pair * scale)
        results = project_simplex(pair)
        before, after = (pair[0] - pair[1]).norm(), (results[0] - results[1]).norm()
        assert after <= before + 1e-14

    @given(arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(-2, 2)))
    def test_any_values(self, x):
        x = torch.from_numpy(x)
        for backend in ("reference", "auto"):
            result = project_simplex(x, leak=0.25, backend=backend)
            assert (result - expected(x, 0.25)).abs().max() <= TOLERANCE[torch.float64]


class TestShapes:
    @pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
    def test_any_dimension(self, dim, device, backend):
        x = torch.randn(3, 4, 5, device=device, dtype=torch.float64)
        result = project_simplex(x, dim, 0.1, backend=backend)
        rows = x.movedim(dim, 2).reshape(-1, x.shape[dim])
        wanted = expected(rows, 0.1).reshape(x.movedim(dim, 2).shape).movedim(2, dim)
        torch.testing.assert_close(result, wanted, rtol=0, atol=TOLERANCE[torch.float64])

    @pytest.mark.parametrize(
        ("shape", "dim"),
        [((7,), 0), ((1,), -1), ((0, 3), 1), ((3, 0), 0), ((2, 0, 3), 2), ((5, 1), 1), ((1, 5), 0)],
    )
    def test_odd_shapes(self, shape, dim, device, backend):
        x = torch.randn(shape, device=device, requires_grad=True)
        result = project_simplex(x, dim, backend=backend)
        assert result.shape == shape
        torch.testing.assert_close(result.sum(dim), torch.ones_like(result.sum(dim)))
        result.square().sum().backward()
        assert x.grad.shape == shape
        if shape[dim] == 1:
            assert (result == 1).all()
            assert (x.grad == 0).all()

    def test_not_contiguous(self, device, backend):
        x = torch.randn(8, 10, 6, device=device)
        for view in (x[::2, 1::3], x.transpose(0, 2), x[:1].expand(4, 10, 6), x.flip(2)):
            result = project_simplex(view, leak=0.1, backend=backend)
            assert torch.equal(result, project_simplex(view.contiguous(), leak=0.1, backend=backend))


class TestDerivatives:
    @pytest.mark.parametrize("leak", [0.0, 0.1, 1.0])
    def test_equation_13(self, leak, device, backend):
        x = away_from_kinks(10, 6)
        for row in x:
            result = torch.autograd.functional.jacobian(
                lambda x: project_simplex(x, leak=leak, backend=backend), row.to(device)
            )
            np.testing.assert_allclose(result.cpu(), jacobian(row.numpy(), leak), atol=1e-15)

    @pytest.mark.parametrize("leak", [0.0, 0.1])
    @pytest.mark.parametrize("dim", [0, 1, -1])
    def test_gradcheck(self, dim, leak, device, backend):
        x = away_from_kinks(4, 3, 5).movedim(2, dim).to(device).requires_grad_()

        def run(x):
            return project_simplex(x, dim, leak, backend=backend)

        assert torch.autograd.gradcheck(run, x)
        assert torch.autograd.gradgradcheck(run, x)

    def test_second_derivative_is_zero_and_of_the_gradient_is_the_jacobian(self, device, backend):
        x = away_from_kinks(6).to(device).requires_grad_()
        gradient = torch.randn(6, device=device, dtype=torch.float64, requires_grad=True)
        direction = torch.randn(6, device=device, dtype=torch.float64)
        result = project_simplex(x, leak=0.1, backend=backend)
        (first,) = torch.autograd.grad(result, x, gradient, create_graph=True)
        of_x, of_gradient = torch.autograd.grad(first @ direction, (x, gradient), allow_unused=True)
        assert of_x is None or (of_x == 0).all()
        wanted = torch.from_numpy(jacobian(x.detach().cpu().numpy(), 0.1)).to(device) @ direction
        torch.testing.assert_close(of_gradient, wanted)

    @pytest.mark.parametrize("leak", [0.0, 0.1])
    def test_constraint_binds_the_gradient(self, leak, device, backend):
        # To add a number to a row changes nothing.
        x = torch.randn(50, 21, device=device, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(50, 21, device=device, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(project_simplex(x, leak=leak, backend=backend), x, upstream)
        result = project_simplex(x, leak=leak, backend=backend)
        inside = torch.where(result > 0, gradient, 0).sum(1)
        outside = torch.where(result > 0, 0, upstream).sum(1)
        torch.testing.assert_close(inside, -leak * outside)

    def test_leak_lets_gradients_through(self, device, backend):
        x = torch.tensor([3.0, 0.0, 0.0], device=device, requires_grad=True)
        for leak, wanted in ((0.0, [0.0, 0.0, 0.0]), (0.5, [-0.5, 0.5, 0.0])):
            (gradient,) = torch.autograd.grad(project_simplex(x, leak=leak, backend=backend)[1], x)
            assert gradient.tolist() == wanted

    def test_slope_at_the_kink_is_the_leak(self, device, backend):
        x = torch.tensor([1.0, 0.0], device=device, requires_grad=True)  # t = 0
        (gradient,) = torch.autograd.grad(project_simplex(x, leak=0.25, backend=backend)[1], x)
        assert gradient.tolist() == [-0.25, 0.25]


@needs_kernels
class TestKernel:
    @pytest.fixture(params=[1, 3], ids=["one-thread", "three-threads"], autouse=True)
    def threads(self, request):
        before = torch.get_num_threads()
        torch.set_num_threads(request.param)
        voxel.backend.kernels().split_small_work(request.param > 1)
        yield
        voxel.backend.kernels().split_small_work(False)
        torch.set_num_threads(before)

    @pytest.mark.parametrize("leak", [0.0, 0.1])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("points", [1, 2, 7, 31, 32, 33, 100])
    @pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 21, 150])
    def test_equals_the_reference(self, points, labels, dtype, leak):
        x = torch.randn(points, labels, dtype=dtype, requires_grad=True)
        gradient = torch.randn(points, labels, dtype=dtype)
        wanted = project_simplex(x, leak=leak, backend="reference")
        result = project_simplex(x, leak=leak, backend="native")
        assert (result - wanted).abs().max() <= TOLERANCE[dtype]
        # From the same result, lest rounding put an entry at a kink on the other side.
        active = result > 0
        passed = torch.where(active, gradient, leak * gradient).double()
        mean = passed.sum(1, keepdim=True) / active.sum(1, keepdim=True)
        (backward,) = torch.autograd.grad(result, x, gradient)
        error = (backward - torch.where(active, passed - mean, passed)).abs().max()
        assert error <= 10 * TOLERANCE[dtype]  # worst seen: 8.4e-7 and 1.6e-15, of up to about 4

    def test_threads_change_no_bit(self):
        x = torch.randn(1000, 21)
        result = project_simplex(x, leak=0.1)
        torch.set_num_threads(2)
        assert torch.equal(project_simplex(x, leak=0.1), result)
        # Nor does the company that a row is in.
        assert torch.equal(project_simplex(x[517:800], leak=0.1), result[517:800])

    @pytest.mark.parametrize("leak", [0.0, 0.1])
    def test_opcheck(self, leak):
        x = away_from_kinks(20, 5).requires_grad_()
        torch.library.opcheck(torch.ops.hdcrf.project_simplex.default, (x, leak))
        projected = project_simplex(x.detach(), leak=leak)
        gradient = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(torch.ops.hdcrf.project_simplex_backward.default, (gradient, projected, leak))


def test_nan_and_infinity_stay_in_their_row(device, native):
    x = torch.randn(40, 9, device=device)
    x[3, 2], x[20, 8] = torch.nan, torch.inf
    result = projected(x, 0.0, native)
    broken = torch.tensor([row in (3, 20) for row in range(40)], device=device)
    assert torch.isnan(result[broken]).all()
    assert (result[~broken] - expected(x[~broken])).abs().max() <= TOLERANCE[torch.float32]


def test_compiled(backend):
    torch.compiler.reset()
    x = torch.randn(2, 3, 4, requires_grad=True)

    def run(x):
        return project_simplex(2 * x, 1, 0.1, backend=backend).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))
    (gradient,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(gradient, *torch.autograd.grad(run(x), x))


def test_mixed_precision_changes_nothing(device, backend):
    x = torch.randn(20, 5, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = project_simplex(x, backend=backend)
    assert torch.equal(result, project_simplex(x, backend=backend))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"x": [0.5, 0.5]}, TypeError, "`x` must be a torch.Tensor, got list"),
        (
            {"x": torch.ones(3, dtype=torch.long)},
            TypeError,
            "`x` must be float32 or float64, got torch.int64",
        ),
        ({"x": torch.ones(3).half()}, TypeError, "`x` must be float32 or float64, got torch.float16"),
        ({"x": torch.tensor(1.0)}, ValueError, "`x` must have a dimension to project along, got a scalar"),
        ({"x": torch.tensor([1.0, torch.nan])}, ValueError, r"`x` must be finite, got nan at index \(1,\)"),
        ({"x": torch.tensor([[-torch.inf]])}, ValueError, r"`x` must be finite, got -inf at index \(0, 0\)"),
        ({"x": torch.ones(3, device="meta")}, ValueError, "`x` must hold numbers, got a tensor on the meta"),
        ({"x": torch.ones(2, 0)}, ValueError, r"an entry or more along dimension 1, got shape \(2, 0\)"),
        ({"dim": 2}, ValueError, "`dim` must be at most 1, got 2"),
        ({"dim": -3}, ValueError, "`dim` must be at least -2, got -3"),
        ({"dim": 0.5}, TypeError, "`dim` must be an integer, got float"),
        ({"leak": -0.1}, ValueError, "`leak` must be from 0 to 1, got -0.1"),
        ({"leak": 1.5}, ValueError, "`leak` must be from 0 to 1, got 1.5"),
        ({"leak": float("nan")}, ValueError, "`leak` must be finite, got nan"),
        ({"leak": "small"}, TypeError, "`leak` must be a number, got str"),
        ({"leak": True}, TypeError, "`leak` must be a number, got bool"),
        ({"backend": "gpu"}, ValueError, "`backend` must be one of 'auto', 'reference', 'native', got 'gpu'"),
    ],
)
def test_wrong_input_is_explained(arguments, kind, message):
    with pytest.raises(kind, match=message):
        project_simplex(**{"x": torch.ones(2, 3), **arguments})
