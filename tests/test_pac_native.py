"""The compiled kernels of operations on windows against the PyTorch reference that each stands for."""

import itertools

import pytest
import torch

import voxel.backend
from hdcrf.pac import feature_differences, window_kernels, window_products
from hdcrf.pac.window import Window

pytestmark = pytest.mark.skipif(bool(voxel.backend.why_not), reason=voxel.backend.why_not)

# Of the sum of the magnitudes of what is added up. Worst seen over all cases below: 4e-7 and 8e-16.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 4e-15}
DTYPES = list(TOLERANCE)

# Sizes, taps, stride, padding, dilation.
WINDOWS = {
    "one-pixel": ((1, 1), 1, 1, 0, 1),
    "a-row": ((37,), 5, 1, 2, 1),
    "a-row-strided": ((50,), 3, 3, 1, 2),
    "below-a-vector": ((6, 3), 3, 1, 1, 1),
    "odd": ((9, 43), 3, 1, 1, 1),
    "longer-than-all-runs": ((5, 131), (3, 5), 1, (1, 2), 1),
    "no-padding": ((8, 33), (2, 4), 1, 0, 1),
    "strided": ((11, 42), 5, 2, 2, 1),
    "strides-differ": ((13, 29), (3, 2), (1, 3), (0, 1), (2, 1)),
    "stride-beyond-taps": ((14, 40), 2, 3, 0, 1),
    "dilated": ((12, 70), 5, 1, 32, 16),
    "dilated-beyond-the-grid": ((5, 7), 3, 1, 20, 20),
    "nothing-is-met": ((2, 20), 2, 2, (5, 30), (11, 79)),
    "volume": ((4, 5, 19), 3, 1, 1, 1),
    "volume-strided": ((5, 4, 21), (1, 3, 2), (2, 1, 2), (0, 1, 0), (1, 1, 3)),
}
# Channels, output channels and groups; no groups for every channel by itself.
CHANNELS = [(1, 1, None), (9, 9, None), (1, 2, 1), (7, 5, 1), (6, 18, 2), (5, 5, 5), (210, 26, 1), (3, 70, 1)]


@pytest.fixture(params=[1, 3], ids=["one-thread", "three-threads"], autouse=True)
def threads(request):
    """Run each test on one thread, and on three, among which even the smallest work is split."""
    before, kernels = torch.get_num_threads(), voxel.backend.kernels()
    torch.set_num_threads(request.param)
    kernels.split_small_work(request.param > 1)
    yield request.param
    kernels.split_small_work(False)
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Let the reference go by many tiles, the last of them smaller, even on these grids."""
    monkeypatch.setattr("hdcrf.pac.window._TILE_ON_CPU", 3000)


def all_arguments(window, channels, dtype=torch.float32, batch=2):
    """Return x, K, W and g of a form, and the groups."""
    inputs, outputs, groups = channels
    shapes = [
        (batch, inputs, *window.sizes),
        (batch, window.taps, *window.outputs),
        (outputs, inputs // groups, window.taps) if groups else (0,),
        (batch, outputs, *window.outputs),
    ]
    return [torch.randn(shape, dtype=dtype) for shape in shapes], groups or 1


def both(given, window, groups, wanted):
    """Return the derivatives by the kernels and by the reference."""
    values, _, weight, outputs = given
    shapes = window_products._shapes(values, weight, outputs, window, groups)
    operations = (window_kernels.products, window_products.products_by_tiles)
    with torch.no_grad():
        return [operation(given, shapes, wanted, window, groups) for operation in operations]


def assert_close(result, expected, magnitude):
    """Compare sums, of which `magnitude` is that of what is added up."""
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    assert result.is_contiguous()
    assert ((result - expected).abs() <= TOLERANCE[result.dtype] * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_products(window, channels, dtype):
    window = Window.over(*window)
    given, groups = all_arguments(window, channels, dtype)
    wanted = [True, True, channels[2] is not None, True]
    results, expected = both(given, window, groups, wanted)
    [_, magnitudes] = both([argument.abs() for argument in given], window, groups, wanted)
    for one in zip(results, expected, magnitudes, strict=True):
        assert_close(*one)


@pytest.mark.parametrize("channels", [(5, 5, None), (6, 10, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_some_products(channels, stride):
    window = Window.over((7, 21), 3, stride, 1)
    given, groups = all_arguments(window, channels)
    [every, _] = both(given, window, groups, [True, True, channels[2] is not None, True])
    every = iter(every)
    every = [next(every) if index != 2 or channels[2] else None for index in range(4)]
    for wanted in itertools.product([False, True], repeat=4):
        if wanted[2] and channels[2] is None:
            continue
        # One derivative alone needs no argument in its own place.
        some = [None if sum(wanted) == 1 and want else one for one, want in zip(given, wanted, strict=True)]
        [results, _] = both(some, window, groups, wanted)
        expected = [one for one, want in zip(every, wanted, strict=True) if want]
        # The same bits, all at once or one by one.
        assert len(results) == len(expected)
        assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absolute", [False, True], ids=["squared", "absolute"])
@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_distances_and_their_derivatives(window, channels, absolute, dtype):
    window = Window.over(*window)
    features = torch.randn(2, channels, *window.sizes, dtype=dtype)
    centres = torch.randn(2, channels, *window.outputs, dtype=dtype)
    factors = torch.randn(2, window.taps, *window.outputs, dtype=dtype)
    distances = feature_differences.distances_by_tiles(features, centres, window, absolute, False)
    assert_close(window_kernels.distances(features, centres, window, absolute, False), distances, distances)
    expected = feature_differences.distances_by_tiles(features, centres, window, absolute, True)
    similarities = window_kernels.distances(features, centres, window, absolute, True)
    # The exponential has a relative error of 3e-7 of its own, and turns that of distances to an absolute one.
    assert_close(similarities, expected, expected * (4 + distances))
    arguments = (window, absolute)
    sums = [
        operation(features, centres, factors, *arguments)
        for operation in (window_kernels.difference_sums, feature_differences.difference_sums_by_tiles)
    ]
    # Differences are below 10: all entries are within 5.
    magnitudes = window_products.products_by_tiles(
        (torch.full_like(features, 10), factors.abs(), features.new_empty(0), torch.full_like(centres, 10)),
        window_products._shapes(features, features.new_empty(0), centres, window, 1),
        [True, False, False, True],
        window,
        1,
    )
    for one in zip(*sums, magnitudes, strict=True):
        assert_close(*one)


LAYOUTS = {
    "turned": lambda tensor: tensor.transpose(0, -1).contiguous().transpose(0, -1),
    "every-other": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
    "part": lambda tensor: torch.cat([tensor, tensor])[len(tensor) :],
    "with-gradient": lambda tensor: tensor.clone().requires_grad_(),
}


@pytest.mark.parametrize("lay_out", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("channels", [(5, 5, None), (6, 10, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_layout(channels, stride, lay_out):
    window = Window.over((7, 21), 3, stride, 1)
    given, groups = all_arguments(window, channels)
    given = [tensor[:1].expand_as(tensor).contiguous() for tensor in given]
    wanted = [True, True, channels[2] is not None, True]
    [expected, _] = both(given, window, groups, wanted)
    [results, _] = both([lay_out(tensor) for tensor in given], window, groups, wanted)
    assert all(map(torch.equal, results, expected))
    features, centres, factors = given[0], torch.zeros(2, channels[0], *window.outputs), given[1]
    for operation, arguments, options in (
        (window_kernels.distances, (features, centres), (True, True)),
        (window_kernels.difference_sums, (features, centres, factors), (True,)),
    ):
        expected = operation(*arguments, window, *options)
        result = operation(*map(lay_out, arguments), window, *options)
        assert all(map(torch.equal, result, expected))


@pytest.mark.parametrize("channels", [(5, 5, None), (14, 6, 2), (70, 9, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_threads_do_not_change_a_bit(channels, stride, threads):
    window = Window.over((9, 40), 5, stride, 2)
    given, groups = all_arguments(window, channels)
    wanted = [True, True, channels[2] is not None, True]
    features, centres, factors = given[0], torch.randn(2, channels[0], *window.outputs), given[1]

    def run():
        return [
            *both(given, window, groups, wanted)[0],
            window_kernels.distances(features, centres, window, False, True),
            *window_kernels.difference_sums(features, centres, factors, window, True),
        ]

    first = run()
    assert all(map(torch.equal, run(), first))
    torch.set_num_threads(1)
    assert all(map(torch.equal, run(), first))


@pytest.mark.parametrize("channels", [(5, 5, None), (6, 10, 2)])
@pytest.mark.parametrize("name", ["below-a-vector", "odd", "strided", "dilated", "volume-strided"])
@pytest.mark.parametrize("index", [0, 1, 3], ids=["values", "kernel", "outputs"])
def test_what_is_not_met_does_not_matter(name, channels, index):
    # NaN shows where an entry is used, even if it is multiplied by 0.
    window = Window.over(*WINDOWS[name])
    given, groups = all_arguments(window, channels)
    given[index].view(-1)[:: given[index][0].numel() // 3 + 1] = torch.nan
    [results, _] = both(given, window, groups, [True, True, False, True])
    # The reference multiplies what lies beyond the grid, by 0; the kernels leave it out.
    inside = window.inside(given[0].device).flatten(0, window.axes - 1)
    given[1] = torch.where(inside, given[1], 0)
    expected = both(given, window, groups, [True, True, False, True])[1]
    expected[1] = torch.where(inside, expected[1], 0)
    for result, other in zip(results, expected, strict=True):
        assert torch.equal(result.isnan(), other.isnan())
        assert not result.isnan().all()


def test_distances_use_no_more_than_is_met():
    window = Window.over(*WINDOWS["odd"])
    features, centres = torch.randn(2, 3, *window.sizes), torch.randn(2, 3, *window.outputs)
    features[1], centres[1] = torch.nan, torch.nan
    features[0, :, :, -1] = torch.nan
    factors = torch.ones(2, window.taps, *window.outputs)
    inside = window.inside(features.device).flatten(0, 1)
    for exponential in (False, True):
        expected = feature_differences.distances_by_tiles(features, centres, window, False, exponential)
        result = window_kernels.distances(features, centres, window, False, exponential)
        assert torch.equal(result.isnan(), expected.isnan() & inside)
        assert (result[:, ~inside] == 0).all()
    for sums in window_kernels.difference_sums(features, centres, factors, window, False):
        assert sums[1].isnan().all()
        assert sums[0, ..., :-2].isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_operations_take_the_kernels(weighted, monkeypatch):
    class Forbidden:
        def __getattr__(self, name):
            raise AssertionError(f"the kernel {name} was called")

    window = Window.over((4, 5), 3, 1, 1)
    (values, kernel, weight, _), _ = all_arguments(window, (2, 2, 1 if weighted else None))
    result = window_products.products(values, kernel, weight, None, window, 1)
    [expected] = both((values, kernel, weight, None), window, 1, [False, False, False, True])[0]
    assert torch.equal(result, expected)
    monkeypatch.setattr(voxel.backend, "_native", Forbidden())
    with pytest.raises(AssertionError, match="the kernel window_products was called"):
        window_products.products(values, kernel, weight, None, window, 1)
    with pytest.raises(AssertionError, match="the kernel window_distances was called"):
        feature_differences.window_distances(values, values, window, False)
    monkeypatch.setattr(voxel.backend, "_native", None)
    by_tiles = window_products.products(values, kernel, weight, None, window, 1)
    torch.testing.assert_close(result, by_tiles, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(2, 2, None), (2, 4, 2)])
def test_gradients(channels):
    window = Window.over((3, 5), 2, 2, 1)
    given, groups = all_arguments(window, channels, torch.float64, batch=1)
    given = [argument.requires_grad_(argument.numel() > 0) for argument in given[:3]]

    def forward(*arguments):
        return window_products.products(*arguments, None, window, groups)

    assert torch.autograd.gradcheck(forward, given)
    assert torch.autograd.gradgradcheck(forward, given)
