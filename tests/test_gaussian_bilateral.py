"""The bilateral solver: equal to the dense system, kind to constants and edges, and differentiable."""

import pytest
import torch
from oracles import inside_cells, relative_error

import hdcrf
from hdcrf.gaussian import BilateralSolver, ConvergenceError, bilateral_solve
from hdcrf.gaussian.bistochastic import Bistochastic
from hdcrf.gaussian_filter import METHODS
from lattice import PermutohedralLattice
from voxel import VoxelGrid


def symmetric_part(operator):
    """Return ½ (K + Kᵀ), by filtering the identity."""
    identity = torch.eye(operator.num_points, dtype=operator.features.dtype, device=operator.features.device)
    matrix = operator.filter(identity)
    return 0.5 * (matrix + matrix.T)


def dense_laplacian(operator):
    """Return D̂ - Ŵ in float64."""
    matrix = symmetric_part(operator).double()
    scale = torch.ones_like(matrix[:, 0])
    for _ in range(200):
        scale = (scale / (matrix @ scale)).sqrt()
    matrix = scale[:, None] * matrix * scale
    return torch.diag(matrix.sum(1)) - matrix


def dense_solution(operator, target, confidence, smoothness):
    laplacian = dense_laplacian(operator)
    confidence = confidence.reshape(len(target), -1).expand_as(target).double()
    columns = [
        torch.linalg.solve(smoothness * laplacian + torch.diag(c), c * t)
        for c, t in zip(confidence.T, target.double().T, strict=True)
    ]
    return torch.stack(columns, 1)


def observations(points, channels, *, dtype=torch.float64, device="cpu", shared=True):
    """Return random targets, and confidences of which a third are zero."""
    target = torch.randn(points, channels, dtype=dtype, device=device)
    shape = (points,) if shared else (points, channels)
    confidence = torch.rand(shape, dtype=dtype, device=device)
    return target, confidence * (confidence > 1 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dimension", [1, 3, 5, 7])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_dense_solution(method, dimension, dtype, backend, device):
    features = torch.rand(200, dimension, dtype=dtype, device=device) * 3
    operator = hdcrf.build_filter(features, method=method, backend=backend)
    target, confidence = observations(200, 2, dtype=dtype, device=device, shared=dimension != 3)
    solution = bilateral_solve(operator, target, confidence, smoothness=3.0)
    expected = dense_solution(operator, target, confidence, 3.0)
    assert solution.x.shape == (200, 2)
    assert solution.x.dtype == dtype
    assert solution.converged.tolist() == [True, True]
    # Measured: 9.3e-11 and 2.6e-6.
    assert relative_error(solution.x.double(), expected) <= (1e-6 if dtype == torch.float64 else 1e-4)


def test_options_do_not_change_the_solution(device):
    features = torch.rand(150, 4, dtype=torch.float64, device=device) * 3
    target, confidence = observations(150, 1, device=device)
    expected = bilateral_solve(features, target, confidence, smoothness=20.0)
    for other in (
        bilateral_solve(features, target, confidence, smoothness=20.0, precondition=False),
        bilateral_solve(features, target, confidence[:, None], smoothness=torch.tensor(20.0)),
        bilateral_solve(features, target, 5 * confidence, smoothness=100.0),
        bilateral_solve(hdcrf.build_filter(features), target, confidence, smoothness=20.0),
    ):
        torch.testing.assert_close(other.x, expected.x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("make", [PermutohedralLattice, VoxelGrid])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_symmetric_where_the_filter_is_not(make, backend, device):
    operator = make(torch.rand(200, 3, dtype=torch.float64, device=device) * 6, order=2, backend=backend)
    identity = torch.eye(200, dtype=torch.float64, device=device)
    filtered = operator.filter(identity)
    with torch.no_grad():
        symmetric = operator.symmetric_product(identity)
    assert (filtered - filtered.T).abs().max() > 1e-2 * filtered.abs().max()
    torch.testing.assert_close(symmetric, 0.5 * (filtered + filtered.T))
    torch.testing.assert_close(symmetric.diagonal(), operator.diagonal())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_rows_sum_to_one(method, dtype, tolerance, device):
    # Clumps of 1 to 64 points: the rows of K sum to anything.
    features = torch.randn(127, 3, dtype=dtype, device=device) * 0.3
    clump = torch.arange(127, device=device).add(1).log2().floor()
    operator = hdcrf.build_filter(features + clump[:, None], method=method)
    kernel = Bistochastic(operator)
    sums = kernel.scale * (symmetric_part(operator) @ kernel.scale)
    # The same sums in another order: float32 rounds to 1e-6.
    assert (sums - 1).abs().max() <= tolerance + 20 * torch.finfo(dtype).eps
    assert (kernel.row_sums - 1).abs().max() <= tolerance
    assert bool((kernel.scale > 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_constants_are_preserved(method, device):
    features = torch.rand(300, 5, device=device) * 4
    _, confidence = observations(300, 2, dtype=torch.float32, device=device)
    target = torch.tensor([1000.0, -3.0], device=device).expand(300, 2)
    solution = bilateral_solve(
        hdcrf.build_filter(features, method=method), target, confidence, smoothness=50.0
    )
    torch.testing.assert_close(solution.x, target, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_laplacian_of_a_constant_is_zero(method, device):
    # Also where the rows do not sum to one.
    features = torch.rand(300, 3, dtype=torch.float64, device=device) * 4
    kernel = Bistochastic(hdcrf.build_filter(features, method=method), tolerance=0.3)
    assert (kernel.row_sums - 1).abs().max() > 1e-3
    assert kernel.laplacian(torch.full_like(features, 7.0)).abs().max() <= 1e-12


def test_little_smoothness_returns_the_target(device):
    features = torch.rand(100, 3, dtype=torch.float64, device=device) * 2
    target, confidence = observations(100, 1, device=device)
    x = bilateral_solve(features, target, confidence, smoothness=1e-9).x
    seen = confidence > 0
    torch.testing.assert_close(x[seen], target[seen], rtol=0, atol=1e-7)
    # The others lie between those that are seen: a harmonic function has no other extremes.
    assert target[seen].min() < x[~seen].min()
    assert x[~seen].max() < target[seen].max()


def test_more_smoothness_is_smoother(device):
    features = torch.rand(150, 2, dtype=torch.float64, device=device) * 4
    operator = hdcrf.build_filter(features)
    laplacian = dense_laplacian(operator)
    target, confidence = observations(150, 1, device=device)
    roughness, misfit = [], []
    for smoothness in (0.01, 0.1, 1.0, 10.0, 100.0):
        x = bilateral_solve(operator, target, confidence, smoothness=smoothness).x[:, 0]
        roughness.append(float(x @ laplacian @ x))
        misfit.append(float((confidence * (x - target[:, 0]).square()).sum()))
    assert roughness == sorted(roughness, reverse=True)
    assert misfit == sorted(misfit)
    assert roughness[-1] < 0.01 * roughness[0]


def test_an_edge_of_the_guide_is_kept():
    place = torch.arange(100.0)
    step = (place >= 50).float()
    target = (step + 0.3 * torch.randn(100))[:, None]
    confidence = torch.ones(100)
    confidence[40:60] = 0  # nothing is seen around the edge
    guided = torch.stack([place / 8, step * 10], 1)
    x = bilateral_solve(guided, target, confidence, smoothness=30.0).x[:, 0]
    blind = bilateral_solve(place[:, None] / 8, target, confidence, smoothness=30.0).x[:, 0]
    # Measured: 0.054 with the guide, 0.50 without.
    assert (x - step).abs().max() < 0.1
    assert (blind - step).abs().max() > 0.35


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_items(method, device):
    features = torch.rand(120, 3, dtype=torch.float64, device=device) * 3
    target, confidence = observations(120, 2, device=device, shared=False)
    batch = torch.arange(120, device=device) % 3 * 4  # not in order, and not all numbers
    together = bilateral_solve(hdcrf.build_filter(features, batch=batch, method=method), target, confidence)
    for item in (0, 4, 8):
        mine = batch == item
        alone = bilateral_solve(
            hdcrf.build_filter(features[mine], method=method), target[mine], confidence[mine]
        )
        torch.testing.assert_close(together.x[mine], alone.x, rtol=1e-8, atol=1e-8)


def test_what_no_confidence_reaches_gets_the_mean(device):
    features = torch.rand(60, 2, dtype=torch.float64, device=device)
    features[40:59] += 1000  # a part, and a point alone
    features[59] += 2000
    features.requires_grad_()
    target, confidence = observations(60, 1, device=device)
    confidence[:5] = 0
    confidence[40:] = 0
    target.requires_grad_()
    confidence.requires_grad_()
    x = bilateral_solve(features, target, confidence).x
    alone = bilateral_solve(features[:40], target[:40], confidence[:40]).x
    torch.testing.assert_close(x[:40], alone, rtol=1e-8, atol=1e-8)
    mean = (confidence[:, None] * target).sum() / confidence.sum()
    torch.testing.assert_close(x[40:], mean.expand(20, 1))
    # It says nothing of what it depends on, and does not disturb what the others say.
    weights = torch.randn_like(x)
    inputs = (features, target, confidence)
    found = torch.autograd.grad((weights * x).sum(), inputs)
    expected = torch.autograd.grad((weights[:40] * alone).sum(), inputs)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)


def filter_inputs(method):
    """Return features (7, 2) on which the filter can be differentiated by differences."""
    if method == "exact":
        return torch.randn(7, 2, dtype=torch.float64)
    make = {"permutohedral": PermutohedralLattice, "voxel": VoxelGrid}[method]
    return inside_cells(make, 7, 2)


@pytest.mark.parametrize(
    ("method", "shape"), [("permutohedral", (7,)), ("voxel", (7, 2)), ("exact", (7, 1)), ("exact", (7, 2))]
)
def test_gradcheck(method, shape, backend):
    features = filter_inputs(method).requires_grad_()
    target = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    confidence = torch.rand(shape, dtype=torch.float64).add(0.1).requires_grad_()
    smoothness = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def run(features, target, confidence, smoothness):
        operator = hdcrf.build_filter(features, method=method, backend=backend)
        return bilateral_solve(operator, target, confidence, smoothness=smoothness, tolerance=1e-13).x

    assert torch.autograd.gradcheck(run, (features, target, confidence, smoothness))


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_of_the_scale(method):
    features = filter_inputs(method).requires_grad_()

    def run(features):
        return Bistochastic(hdcrf.build_filter(features, method=method), tolerance=1e-13).scale

    assert torch.autograd.gradcheck(run, (features,))


def test_gradcheck_with_places_to_fill():
    features = filter_inputs("permutohedral").requires_grad_()
    target = torch.randn(7, 1, dtype=torch.float64, requires_grad=True)
    confidence = torch.ones(7, dtype=torch.float64)
    confidence[1::2] = 0

    def run(features, target):
        return bilateral_solve(features, target, confidence, tolerance=1e-13).x

    assert torch.autograd.gradcheck(run, (features, target))


def points(**changes):
    """Return what `bilateral_solve` takes, with some of it changed."""
    given = {
        "operator": torch.rand(10, 3),
        "target": torch.rand(10, 2),
        "confidence": torch.ones(10),
        "smoothness": 1.0,
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"operator": "permutohedral"}, TypeError, "`operator` must be a filter from hdcrf.build_filter"),
        ({"operator": torch.rand(0, 3), "target": torch.rand(0, 2)}, ValueError, "at least one point"),
        ({"target": torch.rand(9, 2)}, ValueError, r"`target` must have shape \(N, C\) with 10 rows"),
        ({"target": torch.rand(10)}, ValueError, "`target` must have shape"),
        ({"target": torch.rand(10, 0)}, ValueError, "`target` must have at least one channel"),
        ({"target": torch.rand(10, 2).double()}, TypeError, "`target` must have the dtype of `features`"),
        ({"target": torch.full((10, 2), torch.nan)}, ValueError, "`target` must be finite"),
        ({"confidence": torch.ones(10, 3)}, ValueError, r"`confidence` must have shape \(N,\) = \(10,\)"),
        ({"confidence": torch.ones(2, 10)}, ValueError, "`confidence` must have shape"),
        ({"confidence": torch.ones(10, dtype=torch.bool)}, TypeError, "`confidence` must be float32"),
        ({"confidence": torch.ones(10).double()}, TypeError, "`confidence` must have the dtype of `target`"),
        ({"confidence": torch.full((10,), torch.inf)}, ValueError, "`confidence` must be finite"),
        ({"confidence": -torch.ones(10)}, ValueError, "`confidence` must be 0 or greater, got -1"),
        ({"confidence": torch.zeros(10)}, ValueError, "it is 0 at every point; there is nothing"),
        ({"confidence": torch.eye(10)[:, :2] * torch.tensor([1, 0])}, ValueError, "of channel 1"),
        ({"smoothness": 0.0}, ValueError, "`smoothness` must be a finite number greater than 0"),
        ({"smoothness": torch.tensor(-1.0)}, ValueError, "`smoothness` must be a finite number"),
        ({"smoothness": torch.ones(2)}, ValueError, "`smoothness` must be one number"),
        ({"precondition": 1}, TypeError, "`precondition` must be True or False"),
        ({"tolerance": 0.0}, ValueError, "`tolerance` must be"),
        ({"max_iterations": 0}, ValueError, "`max_iterations` must be at least 1"),
        ({"on_failure": "ignore"}, ValueError, "`on_failure` must be one of"),
    ],
)
def test_errors(changes, error, words):
    with pytest.raises(error, match=words):
        bilateral_solve(**points(**changes))


def test_an_item_without_confidence_is_named():
    operator = hdcrf.build_filter(torch.rand(10, 3), batch=torch.arange(10) // 5 * 7)
    confidence = torch.ones(10)
    confidence[5:] = 0
    with pytest.raises(ValueError, match="it is 0 at every point of item 7 of the batch; there is nothing"):
        bilateral_solve(operator, torch.rand(10, 1), confidence)


def test_nearest_cubes_have_no_gradient():
    features = torch.rand(10, 7, requires_grad=True)
    operator = hdcrf.build_filter(features, method="voxel")
    with pytest.raises(ValueError, match="no gradient for features in 7 dimensions"):
        bilateral_solve(operator, torch.rand(10, 1), torch.ones(10))
    with torch.no_grad():
        bilateral_solve(operator, torch.rand(10, 1), torch.ones(10))


def test_too_few_iterations():
    given = points(
        confidence=torch.rand(10) ** 4, smoothness=100.0, max_iterations=1, operator=torch.rand(10, 3) * 4
    )
    with pytest.raises(ConvergenceError, match="lower `smoothness`, raise the confidences"):
        bilateral_solve(**given)
    with pytest.warns(UserWarning, match="lower `smoothness`"):
        solution = bilateral_solve(**given, on_failure="warn")
    assert solution.converged.tolist() == [False, False]
    assert bool(torch.isfinite(solution.x).all())


def images(batch=2, channels=2, *, dtype=torch.float32, device="cpu"):
    shape = (batch, channels, 9, 11)
    return (
        torch.randn(shape, dtype=dtype, device=device),
        torch.rand(batch, 1, 9, 11, dtype=dtype, device=device),
        torch.rand(batch, 3, 9, 11, dtype=dtype, device=device) * 255,
    )


@pytest.mark.parametrize("method", METHODS)
def test_images_are_points(method, device):
    target, confidence, guide = images(device=device)
    layer = BilateralSolver(sigma_xy=4.0, sigma_rgb=60.0, smoothness=2.0, method=method).to(device)
    result = layer(target, confidence, guide)
    assert result.shape == target.shape
    for item in range(2):
        # The layer's own sigmas, rounded in the logarithm: lattices leave out other vertices for others.
        features = hdcrf.bilateral_features(
            guide[item : item + 1], layer.sigma_xy.detach(), layer.sigma_rgb.detach()
        )
        x = bilateral_solve(
            hdcrf.build_filter(features, method=method),
            target[item].flatten(1).T,
            confidence[item].flatten(),
            smoothness=2.0,
        ).x
        # Measured: 2.4e-6, as the residual allows.
        torch.testing.assert_close(result[item].flatten(1).T, x, rtol=1e-4, atol=1e-5)


def test_layer_takes_other_dtypes(device):
    target, confidence, guide = images(device=device)
    # Exact, as pixels lie on the borders of lattice cells, on this side or that for another rounding.
    layer = BilateralSolver(sigma_xy=4.0, sigma_rgb=60.0, method="exact").to(device)
    expected = layer(target, confidence, guide.byte())
    half = layer(target.half(), confidence.half(), guide.byte())
    assert half.dtype == torch.float16
    # Measured: 3e-4; what goes in is rounded to 5e-4 of its size.
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=2e-3)
    double = layer(target.double(), confidence.double(), guide.byte())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast(device.type, torch.bfloat16):
        torch.testing.assert_close(layer(target, confidence, guide.byte()), expected)


def test_layer_confidence_of_each_channel(device):
    target, confidence, guide = images(device=device)
    layer = BilateralSolver(sigma_xy=4.0, sigma_rgb=60.0).to(device)
    doubled = torch.cat([confidence, 0.5 * confidence.flip(3)], 1)
    result = layer(target, doubled, guide)
    for channel in range(2):
        alone = layer(target[:, channel : channel + 1], doubled[:, channel : channel + 1], guide)
        torch.testing.assert_close(result[:, channel : channel + 1], alone, rtol=1e-4, atol=1e-5)


def test_layer_learns(device):
    target, confidence, guide = images(dtype=torch.float64, device=device)
    assert not any(parameter.requires_grad for parameter in BilateralSolver().parameters())
    # On a lattice, the loss of so few points jumps from cell to cell.
    layer = BilateralSolver(
        sigma_xy=4.0, sigma_rgb=60.0, learn=("smoothness", "bandwidths"), method="exact"
    ).to(device)
    truth = BilateralSolver(sigma_xy=2.0, sigma_rgb=90.0, smoothness=0.3, method="exact").to(device)
    wanted = truth(target, confidence, guide)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (layer(target, confidence, guide) - wanted).square().mean()
        loss.backward()
        assert all(parameter.grad.abs() > 0 for parameter in layer.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]  # measured: 0.0008


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"sigma_xy": 0.0}, ValueError, "`sigma_xy` must be"),
        ({"smoothness": -1.0}, ValueError, "`smoothness` must be"),
        ({"method": "grid"}, ValueError, "`method` must be one of"),
        ({"learn": "guide"}, ValueError, "`learn` must be one of"),
        ({"learn": 1}, TypeError, "`learn` must be names among smoothness, bandwidths"),
        ({"tolerance": -1.0}, ValueError, "`tolerance` must be"),
    ],
)
def test_layer_options_are_checked(changes, error, words):
    with pytest.raises(error, match=words):
        BilateralSolver(**changes)


@pytest.mark.parametrize(
    ("place", "value", "error", "words"),
    [
        (0, torch.rand(2, 9, 11), ValueError, r"`target` must have shape \(B, C, H, W\)"),
        (0, torch.rand(0, 2, 9, 11), ValueError, "with no size of 0"),
        (0, torch.ones(2, 2, 9, 11, dtype=torch.int32), TypeError, "`target` must be float32"),
        (1, torch.rand(2, 3, 9, 11), ValueError, r"`confidence` must have shape \(B, 1, H, W\)"),
        (1, torch.zeros(2, 1, 9, 11), ValueError, "at every point of item 0 of the batch"),
        (1, torch.rand(2, 1, 9, 11).double(), TypeError, "`confidence` must have the dtype of `target`"),
        (2, torch.rand(2, 3, 9, 12), ValueError, r"`guide` must have shape \(B, c, H, W\) = \(2, c, 9, 11\)"),
        (2, torch.rand(1, 3, 9, 11), ValueError, "`guide` must have shape"),
        (2, torch.full((2, 3, 9, 11), torch.nan), ValueError, "`guide` must be finite"),
        (2, None, TypeError, "`guide` must be a torch.Tensor"),
    ],
)
def test_layer_inputs_are_checked(place, value, error, words):
    given = list(images())
    given[place] = value
    with pytest.raises(error, match=words):
        BilateralSolver()(*given)


def test_a_guide_from_0_to_1_is_pointed_out():
    target, confidence, guide = images()
    with pytest.warns(UserWarning, match="use sigma_rgb="):
        BilateralSolver()(target, confidence, guide / 255)


def test_videos_volumes_and_points(device):
    """The features decide what is solved: d = 6, 4 and 3."""
    video = torch.rand(1, 3, 3, 5, 6, device=device) * 255
    volume = torch.rand(1, 1, 4, 5, 6, device=device) * 255
    positions = torch.rand(80, 3, device=device)
    for features in (
        hdcrf.video_features(video, 4.0, 2.0, 60.0),
        hdcrf.volume_features(volume, 4.0, 60.0),
        hdcrf.point_features(positions, 0.3),
    ):
        target, confidence = observations(len(features), 1, dtype=torch.float32, device=device)
        solution = bilateral_solve(features, target, confidence)
        expected = dense_solution(hdcrf.build_filter(features), target, confidence, 1.0)
        assert relative_error(solution.x.double(), expected) <= 1e-4  # measured: 1.8e-6
