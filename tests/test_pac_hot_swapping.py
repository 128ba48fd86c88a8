"""Convolutions of a network swapped for pixel-adaptive ones."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

from hdcrf.pac import PacConv2d, PacConv3d, adapting_kernel, pac_conv2d, swap_in_pac

SWAPS = {"2": "0", "deep.1": "1"}


def some_network():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding="same", bias=False),
        nn.MaxPool2d(2),
    )
    network.add_module("deep", nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, dilation=2, groups=2)))
    return network


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_a_scale_of_zero_changes_nothing(device, kernel):
    network, image = some_network().to(device), torch.randn(2, 3, 20, 22, device=device)
    swapped = swap_in_pac(copy.deepcopy(network), SWAPS, guide_scale=0.0, kernel=kernel)
    torch.testing.assert_close(swapped(image), network(image), rtol=0, atol=1e-5)
    assert sum(isinstance(layer, PacConv2d) for layer in swapped.modules()) == 2


def test_a_small_scale_changes_little(device):
    network, image = some_network().to(device), torch.randn(2, 3, 20, 22, device=device)
    swapped = swap_in_pac(copy.deepcopy(network), SWAPS)
    torch.testing.assert_close(swapped(image), network(image), rtol=0, atol=1e-5)
    strong = swap_in_pac(copy.deepcopy(network), SWAPS, guide_scale=2.0)
    assert float((strong(image) - network(image)).detach().abs().max()) > 1e-2


def test_the_guide_is_what_the_guide_layer_returned(device):
    network, image = some_network().to(device), torch.randn(1, 3, 12, 12, device=device)
    first, second = network[0](image), network[1](network[0](image))
    scale = 0.7
    swapped = swap_in_pac(copy.deepcopy(network), SWAPS, guide_scale=scale)
    kernel = adapting_kernel(first * scale, 3, padding=1)
    middle = pac_conv2d(second, kernel, network[2].weight, padding=1)
    values = network[4][0](network[3](middle))
    halved = functional.avg_pool2d(second, 2) * scale
    layer = network[4][1]
    kernel = adapting_kernel(halved, 3, 2, 0, 2)
    expected = pac_conv2d(values, kernel, layer.weight, layer.bias, 2, 0, 2, 2)
    torch.testing.assert_close(swapped(image), expected, rtol=0, atol=1e-5)


def test_what_follows_in_place_does_not_change_the_guide():
    def network(in_place):
        torch.manual_seed(1)
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=in_place), nn.Conv2d(8, 8, 3, padding=1)
        return swap_in_pac(nn.Sequential(*layers), {"2": "0"}, guide_scale=1.0)

    image = torch.randn(1, 3, 6, 6)
    assert torch.equal(network(True)(image), network(False)(image))


def test_a_layer_with_two_names_is_swapped_at_both():
    network = some_network()
    network.add_module("again", network[2])
    for name in ("2", "again"):
        swapped = swap_in_pac(copy.deepcopy(network), {name: "0"})
        assert swapped.again is swapped[2]
        assert isinstance(swapped.again, PacConv2d)


def test_guides_are_interpolated_to_larger_layers(device):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1)
    ).to(device)
    image = torch.randn(1, 3, 8, 8, device=device)
    swapped = swap_in_pac(copy.deepcopy(network), {"2": "0"}, guide_scale=1.0)
    guide = network[0](image)
    large = functional.interpolate(guide, size=(8, 8), mode="bilinear", align_corners=False)
    kernel = adapting_kernel(large, 3, padding=1)
    expected = pac_conv2d(network[1](guide), kernel, network[2].weight, network[2].bias, padding=1)
    torch.testing.assert_close(swapped(image), expected, rtol=0, atol=1e-5)


def test_parameters_are_the_very_same():
    network = some_network().eval()
    keys = list(network.state_dict())
    parameters = dict(network.named_parameters())
    parameters["2.weight"].requires_grad_(False)
    assert swap_in_pac(network, SWAPS) is network
    assert list(network.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    assert not network[2].training
    assert not network[2].weight.requires_grad


def test_all_layers_learn_through_the_guide(device):
    network = swap_in_pac(some_network().to(device), SWAPS, guide_scale=0.5)
    image = torch.randn(2, 3, 20, 22, device=device)
    network(image).square().sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in network.parameters())


def test_volumes(device):
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 3, 3, padding=1)).to(device)
    image = torch.randn(1, 1, 5, 6, 7, device=device)
    swapped = swap_in_pac(copy.deepcopy(network), {"1": "0"}, guide_scale=0.0)
    assert isinstance(swapped[1], PacConv3d)
    torch.testing.assert_close(swapped(image), network(image), rtol=0, atol=1e-5)


def test_copies_and_pickles(device):
    network = swap_in_pac(some_network().to(device), SWAPS, guide_scale=1.0)
    image = torch.randn(1, 3, 12, 12, device=device)
    expected = network(image)
    stream = io.BytesIO()
    torch.save(network, stream)
    stream.seek(0)
    others = [
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        torch.load(stream, weights_only=False),
    ]
    for other in others:
        assert torch.equal(other(image), expected)
    # A copy takes its guides from its own layers.
    with torch.no_grad():
        network[0].weight.zero_()
    assert torch.equal(others[0](image), expected)


def test_threads_do_not_see_each_others_guides():
    network = swap_in_pac(some_network(), SWAPS, guide_scale=1.0)
    images = [torch.randn(1, 3, 16, 16) for _ in range(4)]
    expected = [network(image) for image in images]
    results = [[] for _ in images]

    def run(index):
        for _ in range(20):
            results[index].append(network(images[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, wanted in zip(results, expected, strict=True):
        assert len(found) == 20
        assert all(torch.equal(result, wanted) for result in found)


def test_guides_are_let_go():
    network = swap_in_pac(some_network(), SWAPS)
    network(torch.randn(1, 3, 12, 12))
    with pytest.raises(RuntimeError, match="has not run before it"):
        network[2](torch.randn(1, 6, 12, 12))
    with pytest.raises(RuntimeError):  # an error on the way leaves nothing behind either
        network(torch.randn(1, 3, 1, 1))
    with pytest.raises(RuntimeError, match="has not run before it"):
        network[2](torch.randn(1, 6, 12, 12))


def test_mixed_precision(device):
    network = swap_in_pac(some_network().to(device), SWAPS, guide_scale=0.3)
    image = torch.randn(2, 3, 20, 22, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        result = network(image)
    # bfloat16 has 8 bits: 0.4% for each of a few layers.
    scale = float(network(image).detach().abs().max())
    torch.testing.assert_close(result.float(), network(image), rtol=0, atol=0.03 * scale)


@pytest.mark.parametrize(
    ("swaps", "options", "error", "message"),
    [
        ({"1": "0"}, {}, TypeError, "'1', which must be a torch.nn.Conv2d or Conv3d, got ReLU"),
        ({"7": "0"}, {}, ValueError, "a layer '7', but `model` has none"),
        ({"2": "depe.1"}, {}, ValueError, "a layer 'depe.1', but `model` has none of that name.*'deep.1'"),
        ({"2": "2"}, {}, ValueError, "'2' guided by itself"),
        ({"2": ""}, {}, ValueError, "a layer ''"),
        (["2"], {}, TypeError, "`swaps` must map names"),
        ({"2": 0}, {}, TypeError, "`swaps` must map names"),
        ({"2": "0"}, {"guide_scale": "small"}, TypeError, "`guide_scale` must be a number"),
        (
            {"2": "0"},
            {"kernel": "detail_preserving"},
            ValueError,
            "`kernel` must be 'gaussian' or 'laplacian'",
        ),
        ({"2": "0", "circular": "0"}, {}, ValueError, "padding_mode='circular'"),
        ({"2": "0", "even": "0"}, {}, ValueError, "padding='same' with a window of even width"),
        ({"2": "0", "hooked": "0"}, {}, ValueError, "'hooked' has hooks"),
    ],
)
def test_wrong_input_changes_nothing(swaps, options, error, message):
    network = some_network()
    network.add_module("circular", nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    network.add_module("even", nn.Conv2d(4, 4, 2, padding="same"))
    network.add_module("hooked", nn.Conv2d(4, 4, 1))
    network.hooked.register_forward_hook(lambda *_: None)
    before = [(name, id(layer)) for name, layer in network.named_modules()]
    with pytest.raises(error, match=message):
        swap_in_pac(network, swaps, **options)
    assert [(name, id(layer)) for name, layer in network.named_modules()] == before
    assert not network._forward_hooks
    assert not network[0]._forward_hooks


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module"):
        swap_in_pac("network", {})


def test_guides_that_cannot_be_used():
    class Pair(nn.Module):
        def forward(self, values):
            return values, values

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.flat, self.convolution = Pair(), nn.Flatten(), nn.Conv2d(3, 3, 3)

        def forward(self, image):
            self.flat(self.pair(image)[0])
            return self.convolution(image)

    image = torch.randn(1, 3, 5, 5)
    with pytest.raises(TypeError, match="'pair', whose output must be a tensor, got tuple"):
        swap_in_pac(Network(), {"convolution": "pair"})(image)
    with pytest.raises(ValueError, match=r"'flat', whose output must have 4 dimensions.*got \(1, 75\)"):
        swap_in_pac(Network(), {"convolution": "flat"})(image)
