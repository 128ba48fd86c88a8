"""Layers of pixel-adaptive convolution: as PyTorch's where the guide says nothing, and their errors."""

import copy

import pytest
import torch
from torch import nn

from hdcrf.pac import (
    AdaptingKernel,
    PacConv2d,
    PacConv3d,
    PacConvTranspose2d,
    PacPool2d,
    adapting_kernel,
    pac_conv2d,
)

CONVOLUTIONS = [
    (nn.Conv2d, PacConv2d, (4, 6, 3), {}, (12, 9)),
    (nn.Conv2d, PacConv2d, (4, 8, (3, 2)), {"stride": 2, "padding": (1, 0), "groups": 4}, (12, 9)),
    (nn.Conv2d, PacConv2d, (4, 4, 5), {"padding": 4, "dilation": 2, "bias": False}, (12, 9)),
    (nn.Conv3d, PacConv3d, (4, 6, 3), {"padding": 1, "stride": (1, 2, 1)}, (4, 6, 5)),
    (
        nn.ConvTranspose2d,
        PacConvTranspose2d,
        (4, 6, 5),
        {"stride": 2, "padding": 2, "output_padding": 1},
        (5, 6),
    ),
    (
        nn.ConvTranspose2d,
        PacConvTranspose2d,
        (4, 6, 3),
        {"dilation": 2, "groups": 2, "output_padding": 1},
        (5, 6),
    ),
]
every_convolution = pytest.mark.parametrize(("theirs", "ours", "channels", "options", "sizes"), CONVOLUTIONS)


@every_convolution
def test_takes_over_what_pytorchs_layers_have_learned(device, theirs, ours, channels, options, sizes):
    usual, layer = theirs(*channels, **options).to(device), ours(*channels, **options).to(device)
    layer.load_state_dict(usual.state_dict())
    values = torch.randn(2, 4, *sizes, device=device)
    expected = usual(values)
    guide_sizes = expected.shape[2:] if ours is PacConvTranspose2d else sizes
    guide = torch.full((2, 3, *guide_sizes), 5.0, device=device)
    torch.testing.assert_close(layer(values, guide), expected, rtol=0, atol=1e-5)
    assert list(layer.state_dict()) == list(usual.state_dict())


@every_convolution
def test_starts_as_pytorchs_layers_do(theirs, ours, channels, options, sizes):
    torch.manual_seed(3)
    usual = theirs(*channels, **options)
    torch.manual_seed(3)
    layer = ours(*channels, **options)
    for name, value in usual.state_dict().items():
        assert torch.equal(value, layer.state_dict()[name]), name


@pytest.mark.parametrize("normalize", [False, True])
def test_pooling(device, normalize):
    values = torch.randn(2, 3, 9, 8, device=device)
    pool = PacPool2d(3, 2, 1, normalize=normalize)
    expected = nn.AvgPool2d(3, 2, 1, count_include_pad=not normalize)(values)
    torch.testing.assert_close(pool(values, torch.ones(2, 1, 9, 8, device=device)), expected)
    assert pool(values, values).shape == expected.shape


def test_detail_preserving_pooling_keeps_details(device):
    values = torch.zeros(1, 1, 8, 8, device=device)
    values[..., 3, 5] = 1.0
    detail = PacPool2d(4, kernel=AdaptingKernel("detail_preserving", alpha=0.0, exponent=1.0), normalize=True)
    average = nn.AvgPool2d(4)(values)[0, 0, 0, 1]
    assert float(average) == pytest.approx(1 / 16)
    assert float(detail.to(device)(values, values)[0, 0, 0, 1].detach()) > 0.99


def test_shared_filters_filter_every_channel_alike(device):
    layer = PacConv2d(3, 3, 3, padding=1, filters="shared").to(device)
    assert layer.weight.shape == (3, 3)
    nn.init.normal_(layer.weight)
    values, guide = torch.randn(2, 3, 7, 6, device=device), torch.randn(2, 2, 7, 6, device=device)
    full = torch.zeros(3, 3, 3, 3, device=device)
    full[range(3), range(3)] = layer.weight.detach()
    kernel = adapting_kernel(guide, 3, padding=1)
    expected = pac_conv2d(values, kernel, full, layer.bias, padding=1)
    result = layer(values, guide)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    result.sum().backward()
    assert layer.weight.grad.abs().min() > 0


def test_gaussian_filters_have_nothing_to_learn(device):
    layer = PacConv2d(2, 2, 5, padding=2, filters="gaussian", normalize=True, bias=False).to(device)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    flat = torch.full((1, 2, 9, 9), 3.0, device=device)
    torch.testing.assert_close(layer(flat, torch.randn(1, 3, 9, 9, device=device)), flat)
    impulse = torch.zeros(1, 2, 9, 9, device=device)
    impulse[..., 4, 4] = 1
    spread = layer(impulse, torch.zeros(1, 1, 9, 9, device=device))[0, 0, 4, 2:7]
    # A fourth of the window's size, 1.25 taps.
    ratios = torch.exp(-0.5 * (torch.tensor([2.0, 1.0, 0.0, 1.0, 2.0], device=device) / 1.25) ** 2)
    torch.testing.assert_close(spread / spread[2], ratios)


def test_detail_preserving_kernels_learn(device):
    layer = PacConv2d(2, 2, 3, padding=1, kernel="detail_preserving").to(device)
    assert {"kernel.alpha", "kernel.exponent"} <= {name for name, _ in layer.named_parameters()}
    layer(
        torch.randn(1, 2, 6, 6, device=device), torch.randn(1, 2, 6, 6, device=device)
    ).square().sum().backward()
    assert float(layer.kernel.alpha.grad.abs()) > 0
    assert float(layer.kernel.exponent.grad.abs()) > 0
    fixed = PacConv2d(2, 2, 3, kernel=AdaptingKernel("detail_preserving", learn=False))
    assert not any(parameter.requires_grad for parameter in fixed.kernel.parameters())


def test_masked_values_may_be_anything(device):
    values, guide = torch.randn(1, 2, 6, 6, device=device), torch.randn(1, 2, 6, 6, device=device)
    mask = torch.rand(1, 1, 6, 6, device=device) < 0.7
    unknown = torch.where(mask, values, torch.nan)
    for layer in (
        PacConv2d(2, 3, 3, padding=1, normalize=True),
        PacPool2d(2, normalize=True, kernel="laplacian"),
    ):
        layer.to(device)
        result = layer(unknown, guide, mask)
        torch.testing.assert_close(result, layer(torch.where(mask, values, 7.0), guide, mask))
        assert bool(torch.isfinite(result).all())
    transposed = PacConvTranspose2d(2, 3, 4, 2, 1, normalize=True).to(device)
    large = torch.randn(1, 2, 12, 12, device=device)
    assert bool(torch.isfinite(transposed(unknown, large, mask)).all())


def test_transposed_layers_average_whatever_their_output_padding(device):
    values = torch.full((1, 2, 4, 5), 3.0, device=device)
    for stride, dilation, more in ((1, 2, 1), (1, 3, 2), (2, 3, 2), (2, 1, 1)):
        layer = PacConvTranspose2d(
            2, 2, 3, stride, 1, more, dilation=dilation, bias=False, filters="gaussian", normalize=True
        ).to(device)
        sizes = [(size - 1) * stride - 2 + 2 * dilation + 1 + more for size in (4, 5)]
        mask = torch.ones(1, 1, 4, 5, dtype=torch.bool, device=device)
        mask[..., 0, 0] = False
        for given in (None, mask):
            result = layer(values, torch.randn(1, 2, *sizes, device=device), given)
            reached = result != 0
            assert float(reached.float().mean()) > 0.2
            torch.testing.assert_close(result[reached], torch.full_like(result[reached], 3.0))


def test_a_kernel_computed_before_serves_several_layers(device):
    values, guide = torch.randn(1, 4, 8, 8, device=device), torch.randn(1, 3, 8, 8, device=device)
    kernel = adapting_kernel(guide, 3, padding=1)
    for filters in ("full", "shared", "gaussian"):
        layer = PacConv2d(4, 4, 3, padding=1, filters=filters).to(device)
        torch.testing.assert_close(layer(values, kernel=kernel), layer(values, guide))
    average = PacConv2d(4, 4, 3, padding=1, normalize=True).to(device)
    with pytest.raises(ValueError, match="a `kernel` computed before is taken as it is"):
        average(values, kernel=kernel)


def test_halves_are_computed_in_single_precision(device):
    layer = PacConv2d(4, 5, 3, padding=1).to(device)
    values, guide = torch.randn(1, 4, 8, 8, device=device), torch.randn(1, 3, 8, 8, device=device)
    halved = layer(values.bfloat16(), guide.bfloat16())
    assert halved.dtype == torch.bfloat16
    expected = layer(values.bfloat16().float(), guide.bfloat16().float())
    torch.testing.assert_close(halved, expected.bfloat16())
    with torch.autocast(device.type, torch.bfloat16):
        inside = layer(values, guide)
    torch.testing.assert_close(inside, layer(values, guide), rtol=0, atol=0)


def test_learns_to_use_a_guide(device):
    # Shares of a channel within the halves of a picture: a plain filter cannot know where the border lies.
    guide = torch.zeros(8, 1, 9, 9, device=device)
    for index in range(8):
        guide[index, :, :, index + 1 :] = 4.0
    values = torch.randn(8, 1, 9, 9, device=device)
    target = pac_conv2d(values, adapting_kernel(guide, 3, padding=1, normalize=True), None, padding=1)

    def learned(layer, guide):
        optimizer = torch.optim.Adam(layer.parameters(), 0.05)
        for _ in range(60):
            loss = (layer(values, guide) - target)[..., 1:-1, 1:-1].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    adapted = learned(PacConv2d(1, 1, 3, padding=1, normalize=True).to(device), guide)
    plain = learned(PacConv2d(1, 1, 3, padding=1, normalize=True).to(device), torch.zeros_like(guide))
    assert adapted < 0.2 * plain


def test_copies_and_describes_itself():
    layer = PacConvTranspose2d(4, 6, 5, 2, 2, 1, kernel="laplacian")
    values, guide = torch.randn(1, 4, 5, 5), torch.randn(1, 2, 10, 10)
    assert torch.equal(copy.deepcopy(layer)(values, guide), layer(values, guide))
    assert "4, 6, kernel_size=(5, 5), stride=(2, 2)" in repr(layer)
    assert "output_padding=(1, 1)" in repr(layer)
    assert "'laplacian'" in repr(layer)
    assert "kernel_size=(3, 3), stride=(3, 3)" in repr(PacPool2d(3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PacConv2d(0, 2, 3), ValueError, "`in_channels` must be at least 1"),
        (lambda: PacConv2d(4, 2, 3, groups=4), ValueError, "`groups` must divide"),
        (lambda: PacConv2d(4, 2, 3, filters="shared"), ValueError, "`out_channels` must be `in_channels`"),
        (lambda: PacConv2d(4, 4, 3, filters="box"), ValueError, "`filters` must be one of 'full'"),
        (lambda: PacConv2d(4, 4, (3, 3, 3)), ValueError, "`kernel_size` must be one integer or 2"),
        (lambda: PacConv2d(4, 4, 3, kernel="box"), ValueError, "`kind` must be one of"),
        (lambda: PacConv2d(4, 4, 3, kernel=3), TypeError, "`kernel` must be a name or an AdaptingKernel"),
        (lambda: PacConv2d(4, 4, 3, bias=1), TypeError, "`bias` must be True or False"),
        (lambda: PacPool2d(0), ValueError, "`kernel_size` must be at least 1"),
        (lambda: AdaptingKernel("detail_preserving", epsilon=0), ValueError, "`epsilon` must be"),
    ],
)
def test_wrong_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "one of `guide` and `kernel` is needed, and not both"),
        ({"guide": torch.ones(1, 2, 6, 5)}, ValueError, r"`guide` must have shape \(1, d, 6, 6\)"),
        ({"guide": torch.ones(2, 2, 6, 6)}, ValueError, r"got \(2, 2, 6, 6\)"),
        ({"guide": torch.ones(1, 2, 6, 6).long()}, TypeError, "`guide` must be float32 or float64"),
        ({"values": torch.ones(1, 3, 6, 6), "guide": torch.ones(1, 2, 6, 6)}, ValueError, "4 channels"),
        (
            {"values": torch.ones(4, 6, 6), "guide": torch.ones(2, 6, 6)},
            ValueError,
            "4 dimensions and 4 channels",
        ),
        (
            {"kernel": torch.ones(1, 3, 3, 6, 6), "mask": torch.ones(1, 1, 6, 6, dtype=torch.bool)},
            ValueError,
            "a `kernel` computed before is taken as it is: pass `mask`",
        ),
    ],
)
def test_wrong_input(arguments, error, message):
    with pytest.raises(error, match=message):
        PacConv2d(4, 4, 3, padding=1)(**{"values": torch.ones(1, 4, 6, 6), **arguments})


def test_guides_of_transposed_layers_have_the_size_of_the_output():
    layer = PacConvTranspose2d(2, 2, 5, 2, 2, 1)
    with pytest.raises(ValueError, match=r"`guide` must have shape \(1, d, 12, 10\)"):
        layer(torch.ones(1, 2, 6, 5), torch.ones(1, 2, 6, 5))
