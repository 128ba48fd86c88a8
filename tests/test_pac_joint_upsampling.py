"""Joint upsampling: the network's sizes and what it learns, and joint bilateral upsampling as a loop."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from hdcrf.pac.joint_upsampling import JointUpsampler, joint_bilateral_upsample

# Table 5 of Su et al. 2019 gives 183K, 222K and 260K, and 56K for all of the lite ones.
PARAMETERS = {
    ("standard", 4): 183_489,
    ("standard", 8): 221_937,
    ("standard", 16): 260_385,
    ("lite", 4): 55_509,
    ("lite", 8): 56_273,
    ("lite", 16): 55_777,
}


@pytest.mark.parametrize(("variant", "factor"), PARAMETERS)
def test_sizes(variant, factor, device):
    network = JointUpsampler(factor, variant=variant).to(device)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[variant, factor]
    filters = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    assert {tuple(parameter.shape[2:]) for parameter in filters} == {(5, 5)}
    # Three and three layers, the transposed ones, and two.
    assert len(filters) == 3 + 3 + round(math.log2(factor)) + 2
    result = network(
        torch.randn(2, 1, 3, 2, device=device), torch.randn(2, 3, 3 * factor, 2 * factor, device=device)
    )
    assert result.shape == (2, 1, 3 * factor, 2 * factor)


def test_flow_and_other_guides():
    network = JointUpsampler(4, channels=2, guide_channels=1, variant="lite")
    assert network(torch.randn(1, 2, 3, 5), torch.randn(1, 1, 12, 20)).shape == (1, 2, 12, 20)
    # One more channel in and one out, and two fewer of the guide.
    assert sum(parameter.numel() for parameter in network.parameters()) == (
        PARAMETERS["lite", 4] + 25 * 12 + 25 * 22 + 1 - 2 * 25 * 12
    )


def reference(network, values, guide):
    """The network, of PyTorch's own layers: a guide of one colour adapts nothing."""
    hidden = values
    for layer in network.encoder:
        hidden = layer(hidden).relu()
    for layer in network.transposed:
        hidden = functional.conv_transpose2d(hidden, layer.weight, layer.bias, 2, 2, 1).relu()
    return network.decoder[1](network.decoder[0](hidden).relu())


def test_plain_guide_gives_transposed_convolutions():
    network = JointUpsampler(8, variant="lite").double()
    for layer in network.guidance:  # no features at all: beyond the border they are zero, too
        torch.nn.init.zeros_(layer.weight)
    values, guide = torch.randn(1, 1, 4, 5).double(), torch.randn(1, 3, 32, 40).double()
    expected = reference(network, values, guide)
    torch.testing.assert_close(network(values, guide), expected)


def test_each_transposed_layer_has_its_share_of_features():
    network = JointUpsampler(4)
    seen = []
    for layer in network.transposed:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    guide = torch.randn(1, 3, 8, 12)
    network(torch.randn(1, 1, 2, 3), guide)
    features = guide
    for layer in network.guidance:
        features = layer(features).relu()
    halves = functional.interpolate(features[:, :16], scale_factor=0.5, mode="area")
    torch.testing.assert_close(seen, [halves, features[:, 16:]])


def test_gradients_reach_every_parameter_and_both_inputs():
    network = JointUpsampler(4)
    values = torch.randn(1, 1, 4, 4, requires_grad=True)
    guide = torch.randn(1, 3, 16, 16, requires_grad=True)
    network(values, guide).square().sum().backward()
    for gradient in (values.grad, guide.grad, *(parameter.grad for parameter in network.parameters())):
        assert bool((gradient != 0).any())


def test_precisions_and_items():
    network = JointUpsampler(4, variant="lite")
    values, guide = torch.randn(2, 1, 4, 4), torch.randint(0, 3, (2, 3, 16, 16), dtype=torch.uint8)
    expected = network(values.double(), guide)
    assert expected.dtype == torch.float64
    result = network(values, guide)
    torch.testing.assert_close(result, expected.float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(network(values[1:], guide[1:]), result[1:], atol=1e-6, rtol=1e-4)
    rounded = values.half()
    half = network(rounded, guide)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, network(rounded.float(), guide).half(), atol=0, rtol=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = network(values, guide)
    assert mixed.dtype == torch.float32
    # Three digits: the largest error measured is 1.1% of the largest result.
    assert float((mixed - result.detach()).abs().max()) < 0.03 * float(result.detach().abs().max())


def test_compiled_whole():
    network = JointUpsampler(4, variant="lite").eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    values, guide = torch.randn(1, 1, 3, 4), torch.randn(1, 3, 12, 16)
    torch.testing.assert_close(compiled(values, guide), network(values, guide))


def test_learns_a_scene_better_than_bicubic():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    inside = (x - 15.5) ** 2 + (y - 15.5) ** 2 < 90
    truth = torch.where(inside, -1.0, 1.0)[None, None]
    guide = torch.stack([inside.float(), x / 32, y / 32])[None] - 0.5
    values = truth[..., ::4, ::4]
    network = JointUpsampler(4, variant="lite")
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = (network(values, guide) - truth).square().mean()
        loss.backward()
        optimizer.step()
    padded = functional.pad(values, (0, 1, 0, 1), mode="replicate")
    bicubic = functional.interpolate(padded, (33, 33), mode="bicubic", align_corners=True)[..., :32, :32]
    assert loss.item() < 0.3 * float((bicubic - truth).square().mean())


def by_hand(values, guide, factor, radius, sigma, sigma_guide, offset):
    """Joint bilateral upsampling, pixel by pixel."""
    (_, _, h, w), (batch, _, height, width) = values.shape, guide.shape

    def guide_at(item, y, x):
        rows, columns = ((math.floor(place), place - math.floor(place)) for place in (y, x))
        return sum(
            (share_y if down else 1 - share_y)
            * (share_x if right else 1 - share_x)
            * guide[item, :, min(top + down, height - 1), min(left + right, width - 1)]
            for (top, share_y), (left, share_x) in [(rows, columns)]
            for down, right in itertools.product((0, 1), repeat=2)
        )

    result = torch.empty(batch, values.shape[1], height, width, dtype=values.dtype)
    for item, y, x in itertools.product(range(batch), range(height), range(width)):
        total, weights = 0.0, 0.0
        for j, i in itertools.product(range(h), range(w)):
            across, along = y - (factor * j + offset), x - (factor * i + offset)
            if max(abs(across), abs(along)) > factor * radius:
                continue
            other = guide_at(item, factor * j + offset, factor * i + offset)
            weight = math.exp(
                -0.5 * (across**2 + along**2) / (factor * sigma) ** 2
                - 0.5 * float((guide[item, :, y, x] - other).square().sum()) / sigma_guide**2
            )
            total = total + weight * values[item, :, j, i]
            weights += weight
        result[item, :, y, x] = total / weights
    return result


@pytest.mark.parametrize(
    ("factor", "radius", "offset"),
    [(1, 1, None), (2, 2, None), (3, 2, None), (4, 1, None), (4, 2, 0), (4, 1, 3), (2, 1, 1), (3, 1, 1.3)],
)
def test_bilateral_is_the_loop(factor, radius, offset, device):
    values = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    guide = torch.rand(2, 3, 4 * factor, 3 * factor, dtype=torch.float64)
    place = (factor - 1) / 2 if offset is None else offset
    expected = by_hand(values, guide, factor, radius, 0.7, 0.3, place)
    result = joint_bilateral_upsample(
        values.to(device), guide.to(device), factor, radius=radius, sigma=0.7, sigma_guide=0.3, offset=offset
    )
    # The largest difference measured is 9e-16.
    torch.testing.assert_close(result.cpu(), expected, atol=1e-13, rtol=0)


def test_bilateral_keeps_constants_and_bounds():
    guide = 255 * torch.rand(1, 3, 24, 32)
    constant = torch.full((1, 1, 3, 4), 7.0)
    torch.testing.assert_close(joint_bilateral_upsample(constant, guide, 8), torch.full((1, 1, 24, 32), 7.0))
    values = torch.rand(1, 1, 3, 4)
    result = joint_bilateral_upsample(values, guide, 8)
    assert float(result.min()) >= float(values.min()) - 1e-6
    assert float(result.max()) <= float(values.max()) + 1e-6


def test_bilateral_takes_the_edges_of_the_guide():
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 6:] = 1  # between the samples at 4 and 8
    result = joint_bilateral_upsample(truth[..., ::4, ::4], 255 * truth, 4, offset=0)
    torch.testing.assert_close(result, truth)


def test_bilateral_takes_the_nearest_where_nothing_is_alike():
    guide = 1e6 * torch.arange(64.0).view(1, 1, 8, 8)  # no two pixels alike, and none of a block's centre
    values = torch.arange(4.0).view(1, 1, 2, 2)
    guide.requires_grad_()
    values.requires_grad_()
    result = joint_bilateral_upsample(values, guide, 4)
    expected = values.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    torch.testing.assert_close(values.grad, torch.full((1, 1, 2, 2), 16.0))
    assert bool(torch.isfinite(guide.grad).all())


def test_bilateral_gradients_are_finite_where_weights_hardly_are():
    # ½ d² from 0 to 120: weights go from 1 to below what float32 holds.
    guide = torch.linspace(0, 15.5 * 25, 64).view(1, 1, 8, 8).requires_grad_()
    values = torch.randn(1, 1, 2, 2, requires_grad=True)
    result = joint_bilateral_upsample(values, guide * guide.new_tensor([1, -1]).repeat(4), 4)
    result.square().sum().backward()
    assert bool(torch.isfinite(result).all())
    assert bool(torch.isfinite(values.grad).all())
    assert bool(torch.isfinite(guide.grad).all())


def test_bilateral_gradients():
    values = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    guide = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def upsample(values, guide):
        return joint_bilateral_upsample(values, guide, 2, radius=1, sigma_guide=0.5)

    assert gradcheck(upsample, (values, guide))
    assert gradgradcheck(upsample, (values, guide))


def test_bilateral_precisions():
    values, guide = torch.randn(1, 1, 3, 3), torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8)
    result = joint_bilateral_upsample(values.half(), guide, 4)
    assert result.dtype == torch.float16
    expected = joint_bilateral_upsample(values.half().float(), guide.float(), 4)
    torch.testing.assert_close(result, expected.half(), atol=0, rtol=0)
    with pytest.warns(UserWarning, match="sigma_guide=25"):
        joint_bilateral_upsample(values, guide / 255, 4)


VALUES, GUIDE = torch.zeros(1, 1, 3, 4), torch.zeros(1, 3, 12, 16)
NOT_FINITE = torch.full_like(VALUES, math.inf)

WRONG_INPUT = {
    "a list": ([1.0], GUIDE, TypeError, "`values`"),
    "integer values": (VALUES.int(), GUIDE, TypeError, "`values` must be float32 or float64"),
    "three dimensions": (VALUES[0], GUIDE, ValueError, r"`values` must have shape \(B, c, h, w\)"),
    "no values": (VALUES[:, :, :0], GUIDE[:, :, :0], ValueError, "none of them 0"),
    "infinite values": (NOT_FINITE, GUIDE, ValueError, "`values` must be finite"),
    "an array": (VALUES, GUIDE.numpy(), TypeError, "`guide` must be a torch.Tensor"),
    "another factor": (VALUES, GUIDE[..., :8], ValueError, r"shape \(1, c_g, 12, 16\), 4 times as high"),
    "another batch": (VALUES, GUIDE.expand(2, -1, -1, -1), ValueError, "`guide` must have shape"),
    "no channels": (VALUES, GUIDE[:, :0], ValueError, "`guide` must have shape"),
    "a bool guide": (VALUES, GUIDE.bool(), TypeError, "`guide` must hold real numbers"),
    "a guide of NaN": (VALUES, GUIDE.new_full(GUIDE.shape, math.nan), ValueError, "`guide` must be finite"),
    "a guide elsewhere": (VALUES, GUIDE.to("meta"), ValueError, "`guide` must be on the device of `values`"),
}


@pytest.mark.parametrize(("values", "guide", "error", "message"), WRONG_INPUT.values(), ids=WRONG_INPUT)
@pytest.mark.parametrize(
    "upsample", [JointUpsampler(4), lambda values, guide: joint_bilateral_upsample(values, guide, 4)]
)
def test_wrong_input(upsample, values, guide, error, message):
    with pytest.raises(error, match=message):
        upsample(values, guide)


def test_wrong_channels():
    network = JointUpsampler(4, channels=2, guide_channels=1)
    with pytest.raises(ValueError, match="make it with channels=1"):
        network(VALUES, GUIDE[:, :1])
    with pytest.raises(ValueError, match="make it with guide_channels=3"):
        network(VALUES.expand(-1, 2, -1, -1), GUIDE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": 5}, ValueError, "one of 4, 8, 16, got 5"),
        ({"factor": 4.0}, TypeError, "`factor` must be an integer"),
        ({"channels": 0}, ValueError, "`channels` must be at least 1"),
        ({"guide_channels": 0}, ValueError, "`guide_channels` must be at least 1"),
        ({"variant": "large"}, ValueError, "`variant` must be one of 'standard', 'lite'"),
    ],
)
def test_wrong_network(options, error, message):
    with pytest.raises(error, match=message):
        JointUpsampler(**{"factor": 4} | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": 0}, ValueError, "`factor` must be at least 1"),
        ({"radius": 0}, ValueError, "`radius` must be at least 1"),
        ({"sigma": 0}, ValueError, "`sigma` must be a finite number greater than 0"),
        ({"sigma_guide": math.nan}, ValueError, "`sigma_guide` must be a finite number"),
        ({"offset": 3.5}, ValueError, "`offset` must lie in the block of the first value, from 0 to 3"),
        ({"offset": -1}, ValueError, "`offset`"),
        ({"offset": "centre"}, TypeError, "`offset` must be a number"),
    ],
)
def test_wrong_bilateral_options(options, error, message):
    with pytest.raises(error, match=message):
        joint_bilateral_upsample(VALUES, GUIDE, **{"factor": 4} | options)
