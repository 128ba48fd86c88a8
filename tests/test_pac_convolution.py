"""Pixel-adaptive convolution against PyTorch's, against loops over the definition, and against unfolding."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from benchmarks.unfolded_pac import unfolded_pac_conv2d
from hdcrf.pac import adapting_kernel, pac_conv2d, pac_conv3d, pac_conv_transpose2d, pac_pool2d
from hdcrf.pac.feature_differences import difference_products, difference_sums, distances
from hdcrf.pac.window import Window
from hdcrf.pac.window_products import window_products

KINDS = ("gaussian", "laplacian", "detail_preserving")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_kernel_size = pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, (3, 5)])
every_stride = pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
DILATIONS, PADDINGS, GROUPS = (1, 2, 3), (0, 1, 4, (3, 0)), (1, 2, 4)


def pair(value):
    return (value, value) if isinstance(value, int) else value


def constant(*shape, dtype=torch.float64, device="cpu"):
    return torch.full(shape, 0.7, dtype=dtype, device=device)


def close(result, expected):
    """Compare to 1e-5 of the largest number in float32, sums of hundreds of terms; to 1e-12 in float64."""
    tolerance = 1e-5 if result.dtype == torch.float32 else 1e-12
    scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance * max(scale, 1))


# A guide that is the same everywhere.


@every_kernel_size
@every_stride
def test_constant_guide_gives_conv2d(device, kernel_size, stride):
    taps = pair(kernel_size)
    for padding, dilation, groups, dtype in itertools.product(
        PADDINGS, DILATIONS, GROUPS, (torch.float32, torch.float64)
    ):
        values = torch.randn(2, 4, 12, 13, dtype=dtype, device=device)
        weight = torch.randn(8, 4 // groups, *taps, dtype=dtype, device=device)
        bias = torch.randn(8, dtype=dtype, device=device)
        guide = constant(2, 3, 12, 13, dtype=dtype, device=device)
        kernel = adapting_kernel(guide, kernel_size, stride, padding, dilation)
        expected = functional.conv2d(values, weight, bias, stride, padding, dilation, groups)
        close(pac_conv2d(values, kernel, weight, bias, stride, padding, dilation, groups), expected)


@every_kernel_size
@every_stride
def test_constant_guide_gives_conv_transpose2d(device, kernel_size, stride):
    taps, steps = pair(kernel_size), pair(stride)
    compared = 0
    for padding, dilation, groups in itertools.product(PADDINGS, DILATIONS, GROUPS):
        values = torch.randn(2, 4, 7, 6, dtype=torch.float64, device=device)
        weight = torch.randn(4, 3, *taps, dtype=torch.float64, device=device)
        bias = torch.randn(3 * groups, dtype=torch.float64, device=device)
        for more in itertools.product(*(range(max(step, dilation)) for step in steps)):
            options = (stride, padding, more, groups, dilation)
            sizes = [
                (size - 1) * s - 2 * p + dilation * (k - 1) + 1 + extra
                for size, s, p, k, extra in zip((7, 6), steps, pair(padding), taps, more, strict=True)
            ]
            if min(sizes) < 1:
                continue
            expected = functional.conv_transpose2d(values, weight, bias, *options)
            guide = constant(2, 3, *expected.shape[2:], device=device)
            kernel = adapting_kernel(guide, kernel_size, stride, padding, dilation, places=(7, 6))
            close(pac_conv_transpose2d(values, kernel, weight, bias, *options), expected)
            compared += 1
    assert compared > 50


@every_kernel_size
@every_stride
def test_constant_guide_gives_avg_pool2d(device, kernel_size, stride):
    taps = pair(kernel_size)
    for padding in itertools.product(*(range(k // 2 + 1) for k in taps)):
        values = torch.randn(2, 3, 12, 13, dtype=torch.float64, device=device)
        kernel = adapting_kernel(constant(2, 1, 12, 13, device=device), kernel_size, stride, padding)
        close(
            pac_pool2d(values, kernel / math.prod(taps), stride, padding),
            functional.avg_pool2d(values, taps, stride, padding),
        )
        average = adapting_kernel(
            constant(2, 1, 12, 13, device=device), kernel_size, stride, padding, normalize=True
        )
        expected = functional.avg_pool2d(values, taps, stride, padding, count_include_pad=False)
        close(pac_pool2d(values, average, stride, padding), expected)


def test_pooling_takes_the_kernels_size_for_a_stride():
    values = torch.randn(1, 2, 9, 8)
    kernel = adapting_kernel(values, (3, 2), (3, 2), normalize=True)
    torch.testing.assert_close(pac_pool2d(values, kernel), pac_pool2d(values, kernel, (3, 2)))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1, 0)}])
def test_constant_guide_gives_conv3d(device, options):
    values = torch.randn(2, 4, 7, 6, 8, dtype=torch.float64, device=device)
    weight = torch.randn(6, 2, 3, 2, 3, dtype=torch.float64, device=device)
    kernel = adapting_kernel(constant(2, 2, 7, 6, 8, device=device), (3, 2, 3), **options)
    expected = functional.conv3d(values, weight, groups=2, **options)
    close(pac_conv3d(values, kernel, weight, groups=2, **options), expected)


# Any guide.


def written_kernel(kind, difference):
    if kind == "gaussian":
        return math.exp(-0.5 * float(difference.square().sum()))
    if kind == "laplacian":
        return math.exp(-float(difference.abs().sum()))
    return 0.3 + (float(difference.square().sum()) + 0.2**2) ** 0.7


DETAIL = {"alpha": 0.3, "exponent": 0.7, "epsilon": 0.2}


def pairs_of(sizes, taps, stride, padding, dilation):
    """Yield each place, tap and the pixel that it meets, of a 2D window."""
    places = [
        (s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(sizes, taps, strict=True)
    ]
    for place in itertools.product(*map(range, places)):
        for tap in itertools.product(*map(range, taps)):
            pixel = [stride * j - padding + dilation * t for j, t in zip(place, tap, strict=True)]
            middle = [
                min(max(stride * j - padding + dilation * (k // 2), 0), size - 1)
                for j, k, size in zip(place, taps, sizes, strict=True)
            ]
            if all(0 <= at < size for at, size in zip(pixel, sizes, strict=True)):
                yield place, tap, tuple(pixel), tuple(middle)


def output_padding(sizes, places, taps, stride, padding, dilation):
    """Return that of a transposed convolution of these places whose output has these sizes."""
    return [
        size - ((n - 1) * stride - 2 * padding + dilation * (k - 1) + 1)
        for size, n, k in zip(sizes, places, taps, strict=True)
    ]


CASES = [
    ((6, 7), (3, 3), 1, 1, 1),
    ((5, 7), (3, 2), 2, 2, 1),
    ((6, 5), (2, 3), 1, 3, 2),
    ((4, 9), (1, 5), 3, 4, 1),
    ((5, 4), (5, 5), 1, 16, 8),
]
every_case = pytest.mark.parametrize(("sizes", "taps", "stride", "padding", "dilation"), CASES)


@every_kind
@every_case
def test_equals_a_loop_over_places_and_taps(device, kind, sizes, taps, stride, padding, dilation):
    guide = torch.randn(2, 3, *sizes, dtype=torch.float64)
    values = torch.randn(2, 4, *sizes, dtype=torch.float64)
    weight = torch.randn(6, 2, *taps, dtype=torch.float64)
    options = DETAIL if kind == "detail_preserving" else {}
    where = (stride, padding, dilation)
    kernel = adapting_kernel(guide.to(device), taps, *where, kind=kind, **options)
    mixed = pac_conv2d(values.to(device), kernel, weight.to(device), None, *where, groups=2)
    alone = pac_conv2d(values.to(device), kernel, None, None, *where)
    expected = torch.zeros(kernel.shape, dtype=torch.float64)
    of_mixed = torch.zeros(mixed.shape, dtype=torch.float64)
    of_alone = torch.zeros(alone.shape, dtype=torch.float64)
    for b in range(2):
        for place, tap, pixel, middle in pairs_of(sizes, taps, *where):
            k = written_kernel(kind, guide[(b, slice(None), *pixel)] - guide[(b, slice(None), *middle)])
            expected[(b, *tap, *place)] = k
            x = values[(b, slice(None), *pixel)]
            of_alone[(b, slice(None), *place)] += k * x
            for group in range(2):
                w = weight[(slice(3 * group, 3 * group + 3), slice(None), *tap)]
                of_mixed[(b, slice(3 * group, 3 * group + 3), *place)] += k * w @ x[2 * group : 2 * group + 2]
    close(kernel.cpu(), expected)
    close(mixed.cpu(), of_mixed)
    close(alone.cpu(), of_alone)


@every_kind
@every_case
def test_transposed_equals_a_loop_over_places_and_taps(device, kind, sizes, taps, stride, padding, dilation):
    guide = torch.randn(1, 2, *sizes, dtype=torch.float64)
    options = DETAIL if kind == "detail_preserving" else {}
    where = (stride, padding, dilation)
    kernel = adapting_kernel(guide.to(device), taps, *where, kind=kind, **options)
    places = kernel.shape[3:]
    values = torch.randn(1, 4, *places, dtype=torch.float64)
    weight = torch.randn(4, 3, *taps, dtype=torch.float64)
    more = output_padding(sizes, places, taps, *where)
    result = pac_conv_transpose2d(
        values.to(device), kernel, weight.to(device), None, stride, padding, more, 2, dilation
    )
    expected = torch.zeros(1, 6, *sizes, dtype=torch.float64)
    for place, tap, pixel, middle in pairs_of(sizes, taps, *where):
        k = written_kernel(kind, guide[(0, slice(None), *pixel)] - guide[(0, slice(None), *middle)])
        for group in range(2):
            rows, columns = slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3)
            spread = k * weight[(rows, slice(None), *tap)].T @ values[(0, rows, *place)]
            expected[(0, columns, *pixel)] += spread
    close(result.cpu(), expected)


@every_case
def test_transposed_is_the_transpose(device, sizes, taps, stride, padding, dilation):
    guide = torch.randn(2, 2, *sizes, dtype=torch.float64, device=device)
    kernel = adapting_kernel(guide, taps, stride, padding, dilation)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64, device=device)
    weight = torch.randn(5, 3, *taps, dtype=torch.float64, device=device)
    g = torch.randn(2, 5, *kernel.shape[3:], dtype=torch.float64, device=device)
    more = output_padding(sizes, g.shape[2:], taps, stride, padding, dilation)
    there = (pac_conv2d(x, kernel, weight, None, stride, padding, dilation) * g).sum()
    back = (pac_conv_transpose2d(g, kernel, weight, None, stride, padding, more, 1, dilation) * x).sum()
    close(there, back)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 2, 1), (2, 1, 1), (1, 8, 4)])
def test_equals_unfolding(device, stride, padding, dilation):
    values = torch.randn(2, 8, 32, 40, device=device, requires_grad=True)
    guide = torch.randn(2, 3, 32, 40, device=device, requires_grad=True)
    weight = torch.randn(6, 8, 5, 5, device=device, requires_grad=True)
    bias = torch.randn(6, device=device, requires_grad=True)
    if padding == 1:  # the middle of windows must lie in the guide
        weight = weight.detach()[..., 1:4, 1:4].clone().requires_grad_()
    given = (values, guide, weight, bias)
    kernel = adapting_kernel(guide, weight.shape[2:], stride, padding, dilation)
    result = pac_conv2d(values, kernel, weight, bias, stride, padding, dilation)
    expected = unfolded_pac_conv2d(values, guide, weight, bias, stride, padding, dilation)
    close(result, expected)
    cotangent = torch.randn_like(expected)
    ours = torch.autograd.grad(result, given, cotangent)
    theirs = torch.autograd.grad(expected, given, cotangent)
    for found, wanted in zip(ours, theirs, strict=True):
        close(found, wanted)


def test_bilateral_filter(device):
    image = 255 * torch.rand(1, 3, 9, 11, dtype=torch.float64)
    sigma_xy, sigma_rgb, radius = 1.5, 60.0, 3
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    line = torch.exp(-0.5 * (steps / sigma_xy) ** 2)
    size = 2 * radius + 1
    guide, window = (image / sigma_rgb).to(device), torch.outer(line, line).to(device)
    kernel = adapting_kernel(guide, size, padding=radius, window=window, normalize=True)
    filtered = pac_conv2d(image.to(device), kernel, None, padding=radius).cpu()
    for y, x in itertools.product(range(9), range(11)):
        total, weights = torch.zeros(3, dtype=torch.float64), 0.0
        for v, u in itertools.product(range(9), range(11)):
            if abs(v - y) <= radius and abs(u - x) <= radius:
                apart = float((image[0, :, v, u] - image[0, :, y, x]).square().sum()) / sigma_rgb**2
                k = math.exp(-0.5 * (((v - y) ** 2 + (u - x) ** 2) / sigma_xy**2 + apart))
                total, weights = total + k * image[0, :, v, u], weights + k
        close(filtered[0, :, y, x], total / weights)


def test_what_is_not_finite_stays_so(device):
    # As in any layer of a network: a loss that is scaled up for mixed precision is told by it.
    values = torch.zeros(1, 1, 5, 5, device=device)
    values[..., 0, 0] = torch.inf
    kernel = adapting_kernel(constant(1, 1, 5, 5, dtype=torch.float32, device=device), 3, padding=1)
    result = pac_conv2d(values, kernel, None, padding=1)
    assert bool(torch.isinf(result[..., :2, :2]).all())
    assert bool((result[..., 2:, 2:] == 0).all())


# Options of the kernel.


@every_kind
@every_case
def test_normalised_kernels_average(device, kind, sizes, taps, stride, padding, dilation):
    guide = torch.randn(2, 2, *sizes, dtype=torch.float64, device=device)
    where = (stride, padding, dilation)
    kernel = adapting_kernel(guide, taps, *where, kind=kind, normalize=True)
    sums = kernel.sum((1, 2))
    met = Window.over(sizes, taps, *where).inside(guide.device).any(0).any(0).expand_as(sums)
    close(sums, met.double())
    spread = adapting_kernel(guide, taps, *where, kind=kind, normalize=True, places=kernel.shape[3:])
    places = torch.ones(2, 1, *spread.shape[3:], dtype=torch.float64, device=device)
    more = output_padding(sizes, places.shape[2:], taps, *where)
    reached = pac_conv_transpose2d(places, spread, None, None, stride, padding, more, 1, dilation)
    assert bool(((reached - 1).abs() < 1e-12).logical_or(reached == 0).all())
    assert bool((reached > 0.5).any())


def test_masked_pixels_are_not_seen(device):
    guide = torch.randn(2, 2, 6, 7, dtype=torch.float64, device=device)
    values = torch.randn(2, 3, 6, 7, dtype=torch.float64, device=device)
    mask = torch.rand(2, 1, 6, 7, device=device) < 0.6
    mask[0, :, :3, :3] = False  # windows that see nothing at all
    for normalize in (False, True):
        kernel = adapting_kernel(guide, 3, 1, 1, mask=mask, normalize=normalize)
        result = pac_conv2d(values, kernel, None, None, 1, 1)
        full = adapting_kernel(guide, 3, 1, 1)
        expected = pac_conv2d(values * mask, full, None, None, 1, 1)
        if normalize:
            seen = pac_conv2d(mask.double(), full, None, None, 1, 1)
            expected = torch.where(seen > 0, expected / torch.where(seen > 0, seen, 1), 0)
        close(result, expected)
    assert bool((result[0, :, 1, 1] == 0).all())


def test_masked_values_are_not_spread(device):
    guide = torch.randn(1, 2, 8, 6, dtype=torch.float64, device=device)
    values = torch.randn(1, 3, 4, 3, dtype=torch.float64, device=device)
    mask = torch.rand(1, 1, 4, 3, device=device) < 0.6
    options = (2, 2, 1)  # stride, padding, output_padding
    kernel = adapting_kernel(guide, 5, 2, 2, mask=mask, normalize=True, places=(4, 3))
    result = pac_conv_transpose2d(values, kernel, None, None, *options)
    full = adapting_kernel(guide, 5, 2, 2)
    total = pac_conv_transpose2d(mask.double(), full, None, None, *options)
    expected = pac_conv_transpose2d(values * mask, full, None, None, *options)
    close(result, torch.where(total > 0, expected / torch.where(total > 0, total, 1), 0))


def test_centres_of_ones_own(device):
    guide = torch.randn(1, 2, 6, 8, dtype=torch.float64, device=device)
    centres = functional.avg_pool2d(guide, 2)
    kernel = adapting_kernel(guide, 2, 2, centres=centres)
    unfolded = functional.unfold(guide, 2, stride=2).view(1, 2, 4, 3, 4)
    expected = torch.exp(-0.5 * (unfolded - centres[:, :, None]).square().sum(1)).view(1, 2, 2, 3, 4)
    close(kernel, expected)


@pytest.mark.parametrize("kind", ["gaussian", "laplacian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarities_are_never_subnormal(device, kind, dtype):
    lowest = 87 if dtype == torch.float32 else 708
    distances = torch.tensor([lowest - 1.0, lowest + 1.0, 1e4, torch.inf], dtype=dtype, device=device)
    guide = torch.zeros(1, 1, 5, dtype=dtype, device=device)
    guide[0, 0, 1:] = distances if kind == "laplacian" else (2 * distances).sqrt()
    kernel = adapting_kernel(guide, 9, padding=4, kind=kind)[0, 4:, 0]
    assert float(kernel[0]) == 1
    assert float(kernel[1]) == pytest.approx(math.exp(1 - lowest), rel=1e-4)
    assert bool((kernel[2:] == 0).all())


def test_a_guide_that_is_no_number_shows(device):
    guide = torch.zeros(1, 2, 4, 4, device=device)
    guide[0, 1, 0, 0] = torch.nan
    kernel = adapting_kernel(guide, 3, padding=1)
    assert bool(torch.isnan(kernel[0, 1, 1, 0, 0]))
    assert not bool(torch.isnan(kernel[0, :, :, 2:, 2:]).any())


def test_close_features_keep_their_distance(device):
    # 1e6 and 1e6 + 1 are 16 steps of float32 apart: their squares could not tell them apart.
    guide = torch.full((1, 1, 1, 2), 1e6, device=device)
    guide[..., 1] += 1
    kernel = adapting_kernel(guide, (1, 3), 1, (0, 1))
    assert float(kernel[0, 0, 2, 0, 0]) == pytest.approx(math.exp(-0.5), rel=1e-6)


# Gradients.


@every_kind
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("by_tiles", [False, True])
def test_gradients(kind, normalize, by_tiles, monkeypatch):
    if by_tiles:  # as without a compiler, and several of them on a grid that is as small
        monkeypatch.setattr("voxel.backend._native", None)
        monkeypatch.setattr("hdcrf.pac.window._TILE_ON_CPU", 40)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    values, guide, weight, bias = drawn(1, 2, 5, 4), drawn(1, 2, 5, 4), drawn(4, 1, 3, 3), drawn(4)
    alpha, exponent = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.7))
    detail = kind == "detail_preserving"

    def run(values, guide, weight, bias, *learned):
        options = dict(zip(("alpha", "exponent"), learned, strict=True)) if detail else {}
        kernel = adapting_kernel(guide, 3, 2, 1, kind=kind, epsilon=0.1, normalize=normalize, **options)
        return pac_conv2d(values, kernel, weight, bias, 2, 1, groups=2)

    given = (values, guide, weight, bias, *((alpha, exponent) if detail else ()))
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@every_kind
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_of_transposed(kind, normalize):
    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    values, guide, weight, bias = drawn(1, 2, 2, 3), drawn(1, 2, 4, 6), drawn(2, 1, 3, 3), drawn(2)

    def run(values, guide, weight, bias):
        kernel = adapting_kernel(guide, 3, 2, 1, kind=kind, normalize=normalize, places=(2, 3))
        return pac_conv_transpose2d(values, kernel, weight, bias, 2, 1, 1, 2)

    assert torch.autograd.gradcheck(run, (values, guide, weight, bias))
    assert torch.autograd.gradgradcheck(run, (values, guide, weight, bias), fast_mode=True)


def test_gradients_of_volumes_with_a_mask():
    values, guide = (torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 1, 3, 4, 3) < 0.7

    def run(values, guide, weight):
        kernel = adapting_kernel(guide, (2, 3, 2), 1, 1, mask=mask, normalize=True)
        return pac_conv3d(values * mask, kernel, weight, padding=1)

    assert torch.autograd.gradcheck(run, (values, guide, weight), fast_mode=True)


@every_kind
def test_gradients_of_pooling_centres_and_window(kind):
    guide = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    centres = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    window = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)

    def run(guide, centres, window):
        kernel = adapting_kernel(guide, 2, 2, kind=kind, centres=centres, window=window, normalize=True)
        return pac_pool2d(guide, kernel)

    assert torch.autograd.gradcheck(run, (guide, centres, window))
    assert torch.autograd.gradgradcheck(run, (guide, centres, window), fast_mode=True)


def test_normalised_kernels_have_gradients_where_nothing_is_alike(device):
    # 9.6 apart from the only value near: e^-46, whose square is no number in float32.
    guide = 9.6 * torch.tensor([[0.0, 1.0], [1.0, 1.0]], device=device).repeat(4, 4)[None, None]
    guide.requires_grad_()
    kernel = adapting_kernel(guide, 3, 2, 1, normalize=True, places=(4, 4))
    spread = pac_conv_transpose2d(torch.randn(1, 2, 4, 4, device=device), kernel, None, None, 2, 1, 1)
    (gradient,) = torch.autograd.grad(spread.square().sum(), guide)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0


def test_flat_guides_have_gradients(device):
    guide = torch.ones(1, 2, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    for kind in KINDS:
        kernel = adapting_kernel(guide, 3, padding=1, kind=kind)
        (gradient,) = torch.autograd.grad(kernel.square().sum(), guide)
        assert bool((gradient == 0).all())


def test_autograd_keeps_what_came_in_and_no_more():
    values = torch.randn(1, 16, 24, 24, requires_grad=True)
    guide = torch.randn(1, 16, 24, 24, requires_grad=True)
    weight = torch.randn(16, 16, 5, 5, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernel = adapting_kernel(guide, 5, padding=2)
        result = pac_conv2d(values, kernel, weight, padding=2)
    unfolded = 25 * values.nbytes
    own = sum(tensor.nbytes for tensor in (values, guide, weight))
    assert sum(kept.values()) <= own + kernel.nbytes < unfolded
    result.sum().backward()


# The operations as PyTorch sees them.


def some_arguments(alone):
    window = Window.over((5, 4), 3, 2, 1, 1)
    weight = torch.empty(0, dtype=torch.float64) if alone else torch.randn(4, 1, 9, dtype=torch.float64)
    values = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(2, 9, *window.outputs, dtype=torch.float64, requires_grad=True)
    outputs = torch.randn(2, 2 if alone else 4, *window.outputs, dtype=torch.float64, requires_grad=True)
    if not alone:
        weight.requires_grad_()
    return [values, kernel, weight, outputs], window.numbers(), 1 if alone else 2


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("missing", range(4))
def test_opcheck_of_products(alone, missing):
    arguments, numbers, groups = some_arguments(alone)
    if alone and missing == 2:
        pytest.skip("there are no weights to want")
    arguments[missing] = None
    wanted = [index == missing for index in range(4)]
    torch.library.opcheck(window_products, (*arguments, numbers, groups, wanted))


@pytest.mark.parametrize("absolute", [False, True])
def test_opcheck_of_differences(absolute):
    window = Window.over((5, 4), 3, 2, 1, 1)

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    f, c, u, v = drawn(2, 3, 5, 4), drawn(2, 3, 3, 2), drawn(2, 3, 5, 4), drawn(2, 3, 3, 2)
    numbers = window.numbers()
    for exponential in (False, True):
        torch.library.opcheck(distances, (f, c, numbers, absolute, exponential))
    torch.library.opcheck(difference_products, (f, c, u, v, numbers, absolute))
    torch.library.opcheck(difference_sums, (f, c, drawn(2, 9, 3, 2), numbers, absolute))


@pytest.mark.slow
def test_compiles_as_a_whole():
    values, guide = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)

    def run(values, guide, weight):
        return pac_conv2d(values, adapting_kernel(guide, 3, padding=1), weight, padding=1)

    expected = run(values, guide, weight)
    result = torch.compile(run, fullgraph=True)(values, guide, weight)
    torch.testing.assert_close(result, expected)
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    (found,) = torch.autograd.grad(result.sum(), weight)
    torch.testing.assert_close(found, wanted)


# Sizes.


def test_single_pixels_and_wide_windows(device):
    values = torch.randn(1, 2, 1, 1, dtype=torch.float64, device=device)
    kernel = adapting_kernel(values, 5, padding=128, dilation=64)
    assert kernel.shape == (1, 5, 5, 1, 1)
    assert float(kernel.sum()) == 1
    close(pac_conv2d(values, kernel, None, None, 1, 128, 64), values)


def test_layouts_in_memory(device):
    values = torch.randn(2, 7, 6, 4, dtype=torch.float64, device=device).permute(0, 3, 1, 2)
    guide = torch.randn(2, 7, 6, 4, dtype=torch.float64, device=device).permute(0, 3, 1, 2)[:, :3]
    weight = torch.randn(3, 3, 4, 5, dtype=torch.float64, device=device).permute(3, 2, 0, 1)
    kernel = adapting_kernel(guide, 3, padding=1)
    result = pac_conv2d(values, kernel, weight, padding=1)
    again = pac_conv2d(
        values.contiguous(), adapting_kernel(guide.contiguous(), 3, padding=1), weight.contiguous(), padding=1
    )
    close(result, again)


# Wrong input.


def good():
    return {"values": torch.randn(1, 4, 6, 6), "kernel": torch.rand(1, 3, 3, 6, 6), "padding": 1}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"values": [1.0]}, TypeError, "`values` must be a torch.Tensor"),
        ({"values": torch.zeros(1, 4, 6, 6, dtype=torch.int32)}, TypeError, "float32 or float64"),
        ({"values": torch.zeros(4, 6, 6)}, ValueError, r"`values` must have shape \(B, C, H, W\)"),
        ({"values": torch.zeros(1, 0, 6, 6)}, ValueError, "none of them 0"),
        ({"kernel": torch.rand(1, 3, 3, 6, 5)}, ValueError, r"\(1, 3, 3, 6, 6\), got \(1, 3, 3, 6, 5\)"),
        ({"kernel": torch.rand(1, 9, 6, 6)}, ValueError, "`kernel` must have 5 dimensions"),
        ({"kernel": torch.rand(1, 3, 3, 6, 6).double()}, TypeError, "dtype of `values`"),
        ({"weight": torch.rand(2, 3, 3, 3)}, ValueError, "for 4 channels of `values` in 1 groups"),
        ({"weight": torch.rand(2, 4, 3, 2)}, ValueError, r"the last of them the taps \(3, 3\)"),
        ({"weight": torch.rand(3, 2, 3, 3), "groups": 2}, ValueError, "in 2 groups"),
        ({"bias": torch.rand(3)}, ValueError, r"`bias` must have shape \(4,\)"),
        ({"stride": 0}, ValueError, "`stride` must be at least 1"),
        ({"padding": -1}, ValueError, "`padding` must be at least 0"),
        ({"padding": (1, 1, 1)}, ValueError, "`padding` must be one integer or 2"),
        ({"dilation": 1.5}, TypeError, "`dilation` must be an integer"),
        ({"dilation": 9}, ValueError, "the window spans 19 x 19 pixels"),
        ({"groups": 0}, ValueError, "`groups` must be at least 1"),
        ({"groups": 2}, ValueError, "`groups` must be 1 where there is no `weight`"),
        ({"weight": torch.rand(0, 4, 3, 3)}, ValueError, "`weight` must not be empty"),
    ],
)
def test_wrong_input(changed, error, message):
    arguments = {**good(), "weight": None, **changed}
    with pytest.raises(error, match=message):
        pac_conv2d(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"output_padding": 2},
            ValueError,
            "`output_padding` must be less than the stride or the dilation, 2",
        ),
        ({"padding": 7}, ValueError, "`padding` of 7 x 7 leaves nothing"),
        ({"weight": torch.rand(2, 4, 3, 3)}, ValueError, r"\(C, C' / groups, \*k\) for 4 channels"),
        ({"kernel": torch.rand(1, 3, 3, 12, 12)}, ValueError, r"= \(1, 3, 3, 6, 6\)"),
    ],
)
def test_wrong_input_of_transposed(changed, error, message):
    arguments = {**good(), "weight": None, "stride": 2, **changed}
    with pytest.raises(error, match=message):
        pac_conv_transpose2d(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"guide": "photo"}, TypeError, "`guide` must be a torch.Tensor"),
        ({"guide": torch.zeros(3, 3)}, ValueError, r"`guide` must have shape \(B, d, \*S\)"),
        ({"guide": torch.zeros(1, 0, 3, 3)}, ValueError, "B and d of at least 1"),
        ({"kind": "box"}, ValueError, "`kind` must be one of 'gaussian'"),
        ({"epsilon": 0.0}, ValueError, "`epsilon` must be a finite number greater than 0"),
        ({"normalize": 1}, TypeError, "`normalize` must be True or False"),
        ({"mask": torch.ones(1, 1, 5, 5)}, TypeError, "`mask` must be bool"),
        (
            {"mask": torch.ones(1, 5, 5, dtype=torch.bool)},
            ValueError,
            r"`mask` must have shape \(1, 1, 5, 5\)",
        ),
        ({"centres": torch.zeros(1, 2, 4, 5)}, ValueError, r"\(B, d, \*O\) = \(1, 2, 5, 5\)"),
        ({"centres": torch.zeros(1, 2, 5, 5).double()}, TypeError, "dtype of `guide`"),
        ({"alpha": "x"}, TypeError, "`alpha` must be a number"),
        ({"alpha": torch.nan}, ValueError, "`alpha` must be finite"),
        ({"exponent": torch.ones(5)}, ValueError, r"`exponent` must be a number or a tensor of shape \(\)"),
        (
            {"kind": "detail_preserving", "alpha": -0.5, "normalize": True},
            ValueError,
            "`alpha` must not be below 0",
        ),
        ({"places": (6, 5)}, ValueError, "the window has 5 x 5 places over 5 x 5 pixels, got 6 x 5"),
        ({"dilation": 2**63}, ValueError, "`dilation` must be at most"),
        ({"window": torch.ones(3)}, ValueError, r"`window` must have shape \(3, 3\)"),
        ({"window": -torch.ones(3, 3), "normalize": True}, ValueError, "must not be below 0"),
        ({"kernel_size": 0}, ValueError, "`kernel_size` must be at least 1"),
        ({"kernel_size": "3"}, TypeError, "`kernel_size` must be an integer"),
    ],
)
def test_wrong_input_of_kernels(changed, error, message):
    arguments = {"guide": torch.randn(1, 2, 5, 5), "kernel_size": 3, "padding": 1, **changed}
    with pytest.raises(error, match=message):
        adapting_kernel(**arguments)
