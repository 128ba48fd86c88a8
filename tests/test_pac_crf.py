"""What PAC-CRF owes: the mean field of its potentials, gradients, and everything that a layer does."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import hdcrf
from hdcrf.pac import PacCRF

MODELS = ["loose", "factorised"]
LEARNABLE = ("filters", "compatibility", "bandwidths")


def make(labels=3, **options):
    """Return a float64 layer for guides from 0 to 1, with potentials of any sign and different windows."""
    generator = torch.Generator().manual_seed(1)
    defaults = {"channels": 2, "dilations": (1, 2), "kernel_size": 3, "sigma_rgb": 0.7}
    crf = PacCRF(labels, **{**defaults, **options}).double()
    with torch.no_grad():
        crf.filters.copy_(torch.randn(crf.filters.shape, generator=generator))
        crf.log_sigma_rgb.add_(0.3 * torch.randn(crf.log_sigma_rgb.shape, generator=generator))
        if crf.compatibility is not None:
            values = crf.compatibility.values
            values.copy_(torch.randn(values.shape, generator=generator))
    return crf


def inputs(labels=3, channels=2, sizes=(5, 6), batch=2, dtype=torch.float64, scale=1.0):
    """Return logits and a guide from 0 to `scale`."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.rand(batch, labels, *sizes, generator=generator, dtype=torch.float64)
    guide = scale * torch.rand(batch, channels, *sizes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), guide.to(dtype)


@torch.no_grad()
def potentials(crf, guide):
    """Return the cost (P, K, P, K) of a pixel and its label for another and its: a loop over pairs of pixels.

    Args:
        crf: A layer.
        guide: (c, h, w), or of its blocks.
    """
    _, height, width = guide.shape
    places = list(itertools.product(range(height), range(width)))
    taps, labels = crf.kernel_size, crf.num_labels
    cost = torch.zeros(len(places), labels, len(places), labels, dtype=torch.float64)
    for window, dilation in enumerate(dilation // crf.blur for dilation in crf.dilations):
        for (i, (y, x)), (j, (v, u)) in itertools.product(enumerate(places), repeat=2):
            row, column = (v - y) / dilation + taps // 2, (u - x) / dilation + taps // 2
            inside = all(tap == int(tap) and 0 <= tap < taps for tap in (row, column))
            if i == j or not inside:
                continue
            difference = (guide[:, y, x] - guide[:, v, u]) / crf.log_sigma_rgb[window].exp()
            similarity = math.exp(-0.5 * float(difference.square().sum()))
            weight = crf.filters[window, ..., int(row), int(column)]
            if crf.compatibility is not None:
                weight = weight * crf.compatibility.values
            cost[i, :, j] += similarity * weight
    return cost


def blocks(values, blur):
    """Return the averages over blocks of (C, H, W)."""
    _, height, width = values.shape
    rows = [
        torch.stack([values[:, y : y + blur, x : x + blur].mean((1, 2)) for x in range(0, width, blur)], -1)
        for y in range(0, height, blur)
    ]
    return torch.stack(rows, -2)


def interpolation(size, blur):
    """Return the weights (size, ⌈size/blur⌉) with which pixels along an axis see the centres of blocks."""
    count = -(-size // blur)
    weights = torch.zeros(size, count, dtype=torch.float64)
    for pixel in range(size):
        place = min(max((pixel + 0.5) / blur - 0.5, 0), count - 1)
        first = min(int(place), max(count - 2, 0))
        weights[pixel, first] += 1 - (place - first)
        if count > 1:
            weights[pixel, first + 1] += place - first
    return weights


def mean_field(crf, logits, guide):
    """Return what mean field of one image finds, with all pairs written out."""
    labels, height, width = logits.shape
    coarse = blocks(guide, crf.blur)
    cost = potentials(crf, coarse)
    down, across = interpolation(height, crf.blur), interpolation(width, crf.blur)
    updated = logits
    for _ in range(crf.iterations):
        marginals = blocks(torch.softmax(updated, 0), crf.blur).flatten(1)
        message = torch.einsum("iajb,bj->ai", cost, marginals).view(labels, *coarse.shape[1:])
        updated = logits - torch.einsum("yv,xu,avu->ayx", down, across, message)
    return torch.softmax(updated, 0)


@pytest.mark.parametrize("compatibility", MODELS)
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (5, 6)),
        ({"dilations": (2,), "kernel_size": 5}, (7, 5)),
        ({"dilations": (2, 4), "blur": 2}, (7, 6)),
        ({"dilations": (3,), "blur": 3}, (5, 8)),
        ({"dilations": (4,), "blur": 4}, (3, 9)),
        ({"iterations": 1}, (1, 6)),
    ],
    ids=str,
)
def test_is_the_mean_field_of_its_potentials(compatibility, options, sizes, device):
    crf = make(compatibility=compatibility, **options)
    logits, guide = inputs(sizes=sizes)
    expected = torch.stack([mean_field(crf, *item) for item in zip(logits, guide, strict=True)])
    found = crf.to(device)(logits.to(device), guide.to(device))
    torch.testing.assert_close(found.cpu(), expected)


def test_a_window_over_the_whole_image_is_the_dense_crf():
    # The filter at the start is a Gaussian, and so is the kernel over positions of a dense CRF.
    logits, guide = inputs(sizes=(4, 5))
    steps = torch.arange(-4.0, 5, dtype=torch.float64)
    near = torch.exp(-0.5 * (steps / 2.25) ** 2)  # a quarter of the window
    weight = float((near[:, None] * near).sum() - 1)
    options = {"dilations": (1,), "kernel_size": 9, "sigma_rgb": 0.5}
    dense = hdcrf.DenseCRF(
        3,
        appearance_weight=1.0,
        appearance_sigma_xy=2.25,
        appearance_sigma_rgb=0.5,
        smoothness_weight=0.0,
        normalization="none",
        method="exact",
        learn=(),
    )
    for compatibility in MODELS:
        crf = PacCRF(3, channels=2, weight=weight, compatibility=compatibility, **options).double()
        # Filters start as float32 numbers: relative errors of 1e-7.
        torch.testing.assert_close(crf(logits, guide), dense(logits, guide), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compatibility", MODELS)
@pytest.mark.parametrize("blur", [1, 2])
def test_gradients(compatibility, blur):
    crf = make(2, compatibility=compatibility, dilations=(blur, 2 * blur), blur=blur, iterations=2)
    names = [name for name, _ in crf.named_parameters()]
    given = [*inputs(2, sizes=(3, 4), batch=1), *(p.detach().clone() for p in crf.parameters())]

    def run(logits, guide, *parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(crf, state, (logits, guide))

    assert names == ["filters", "log_sigma_rgb", *["compatibility.values"] * (compatibility != "loose")]
    assert torch.autograd.gradcheck(run, [part.requires_grad_() for part in given])


def test_no_iterations_are_the_softmax():
    logits, guide = inputs()
    torch.testing.assert_close(make(iterations=0)(logits, guide), torch.softmax(logits, 1))


@pytest.mark.parametrize("compatibility", MODELS)
@pytest.mark.parametrize("labels", [1, 2, 21])
def test_numbers_of_labels(compatibility, labels, device):
    crf = PacCRF(labels, compatibility=compatibility).to(device)
    logits, guide = (part.to(device) for part in inputs(labels, 3, (9, 40), dtype=torch.float32, scale=20))
    marginals = crf(logits, guide).detach()
    assert float(marginals.min()) >= 0
    torch.testing.assert_close(marginals.sum(1), torch.ones_like(marginals[:, 0]))
    assert labels == 1 or float((marginals - torch.softmax(logits, 1)).abs().max()) > 1e-3


@pytest.mark.parametrize("compatibility", MODELS)
def test_labels_are_alike_at_the_start(compatibility):
    crf = PacCRF(5, channels=2, dilations=(1, 2), sigma_rgb=0.7, compatibility=compatibility).double()
    logits, guide = inputs(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(crf(logits[:, order], guide), crf(logits, guide)[:, order])


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (4, 1), (2, 3)])
@pytest.mark.parametrize("blur", [1, 8])
def test_dilations_beyond_the_image_change_nothing(sizes, blur):
    logits, guide = inputs(channels=3, sizes=sizes)
    crf = PacCRF(3, dilations=(16, 10**12 * 8), blur=blur, sigma_rgb=0.7).double()
    torch.testing.assert_close(crf(logits, guide), torch.softmax(logits, 1))


@pytest.mark.parametrize("compatibility", MODELS)
def test_a_pixel_sends_itself_nothing(compatibility):
    crf, (logits, guide) = make(compatibility=compatibility), inputs()
    before = crf(logits, guide)
    with torch.no_grad():
        crf.filters[..., 1, 1] += 5
    torch.testing.assert_close(crf(logits, guide), before)
    nn.init.zeros_(crf.filters)
    assert float((crf(logits, guide) - before).detach().abs().max()) > 0.01


@pytest.mark.parametrize("compatibility", MODELS)
@pytest.mark.parametrize("dilations", [(1,), (2, 4), (2, 4, 6)])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("blur", [1, 2])
def test_weight_is_what_neighbours_that_agree_add(compatibility, dilations, kernel_size, blur):
    if dilations[0] % blur:
        pytest.skip("dilations are multiples of the blur")
    options = {"dilations": dilations, "kernel_size": kernel_size, "blur": blur}
    crf = PacCRF(
        2, channels=1, weight=3.0, iterations=1, output="logits", compatibility=compatibility, **options
    )
    logits = torch.zeros(1, 2, 40, 40)
    logits[:, 0] = 20
    refined = crf(logits, torch.full((1, 1, 40, 40), 100.0)).detach()[0, :, 20, 20]
    assert float(refined[0] - refined[1]) == pytest.approx(23, abs=1e-4)


def test_batch_is_its_items():
    crf, (logits, guide) = make(), inputs()
    items = [crf(logits[[i]], guide[[i]]) for i in range(2)]
    torch.testing.assert_close(crf(logits, guide), torch.cat(items))


def test_strides_do_not_matter():
    crf, (logits, guide) = make(), inputs()
    turned = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in (logits, guide)]
    torch.testing.assert_close(crf(*turned), crf(logits, guide))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    crf = make().float()
    logits, guide = inputs(dtype=dtype)
    found = crf(logits, guide)
    assert found.dtype == dtype
    torch.testing.assert_close(found, crf(logits.float(), guide.float()).to(dtype))


def test_autocast_does_not_matter():
    crf = make().float()
    given = inputs(dtype=torch.float32)
    expected = crf(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(crf(*given), expected)


def test_guides_of_integers():
    crf = PacCRF(3, channels=2, dilations=(1,))
    logits, guide = inputs(dtype=torch.float32, scale=255)
    torch.testing.assert_close(crf(logits, guide.byte()), crf(logits, guide.byte().float()))


def test_infer():
    crf, (logits, guide) = make(), inputs()
    done = []
    result = crf.infer(logits, guide, progress=done.append)
    assert isinstance(result, hdcrf.MeanFieldResult)
    assert done == [1, 2, 3, 4, 5]
    assert (result.iterations, result.energy, result.kl) == (5, None, None)
    torch.testing.assert_close(result.marginals, crf(logits, guide))
    crf.output = "logits"
    torch.testing.assert_close(result.logits, crf(logits, guide))
    torch.testing.assert_close(result.logits.exp(), result.marginals)


@pytest.mark.parametrize("compatibility", MODELS)
def test_state_dict_and_copies(compatibility, tmp_path):
    crf, given = make(compatibility=compatibility), inputs()
    torch.save(crf.state_dict(), tmp_path / "crf.pt")
    options = {"channels": 2, "dilations": (1, 2), "kernel_size": 3}
    fresh = PacCRF(3, compatibility=compatibility, **options).double()
    fresh.load_state_dict(torch.load(tmp_path / "crf.pt"))
    for other in (fresh, copy.deepcopy(crf)):
        torch.testing.assert_close(other(*given), crf(*given))


@pytest.mark.parametrize("learned", [(), *((name,) for name in LEARNABLE), LEARNABLE], ids=str)
def test_learns_what_it_is_told_to(learned):
    crf = PacCRF(2, compatibility="factorised", learn=learned)
    parameters = {"filters": crf.filters, "compatibility": crf.compatibility.values}
    parameters["bandwidths"] = crf.log_sigma_rgb
    assert {name for name, parameter in parameters.items() if parameter.requires_grad} == set(learned)
    assert len(list(crf.parameters())) == 3
    if learned:
        logits, guide = inputs(2, 3, (4, 40), dtype=torch.float32, scale=50)
        crf(logits, guide)[:, 0].sum().backward()
        for name, parameter in parameters.items():
            assert (parameter.grad is not None) == (name in learned)
            assert parameter.grad is None or float(parameter.grad.abs().max()) > 0


@pytest.mark.parametrize("compatibility", MODELS)
def test_learns_stripes(compatibility):
    # Columns alternate: the neighbour beside carries the other label, the one above the same.
    torch.manual_seed(0)
    crf = PacCRF(
        2, channels=1, dilations=(1,), kernel_size=3, weight=0.0, compatibility=compatibility, output="logits"
    )
    if compatibility == "factorised":  # from nothing, a product has no gradient
        nn.init.normal_(crf.filters, std=0.01)
    truth = (torch.arange(16) % 2).expand(1, 12, 16)
    guide = torch.zeros(1, 1, 12, 16)

    def noisy():
        return 2 * torch.nn.functional.one_hot(truth, 2).permute(0, 3, 1, 2) + 2 * torch.randn(1, 2, 12, 16)

    def errors(layer):
        with torch.no_grad():
            return sum(int((layer(logits).argmax(1) != truth).sum()) for logits in checked)

    checked = [noisy() for _ in range(10)]
    optimizer = torch.optim.Adam(crf.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(crf(noisy(), guide), truth).backward()
        optimizer.step()
    # Seen: 450 of 1920 pixels without the layer, 0 with it.
    assert errors(nn.Identity()) > 300
    assert errors(lambda logits: crf(logits, guide)) < 40
    filters = crf.filters[0]
    if compatibility == "factorised":
        filters = filters * crf.compatibility.values[:, :, None, None]
    agree = (filters[0, 0] + filters[1, 1] - filters[0, 1] - filters[1, 0]).detach()
    assert float(agree[0, 1]) < -0.1
    assert float(agree[2, 1]) < -0.1
    assert float(agree[1, 0]) > 0.1
    assert float(agree[1, 2]) > 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 0}, ValueError, "`num_labels` must be at least 1, got 0"),
        ({"channels": 0}, ValueError, "`channels` must be at least 1, got 0"),
        ({"dilations": 16}, TypeError, "`dilations` must be integers, one for each window, got int"),
        ({"dilations": ()}, ValueError, "`dilations` must hold one for each window"),
        ({"dilations": (16, 0)}, ValueError, "`dilations` must be at least 1, got 0"),
        ({"dilations": (1.5,)}, TypeError, "`dilations` must be an integer, got float"),
        ({"dilations": (8, 6), "blur": 4}, ValueError, "`dilations` must be multiples of blur=4"),
        ({"kernel_size": 4}, ValueError, "`kernel_size` must be odd, so that it has a centre, got 4"),
        ({"kernel_size": 1}, ValueError, "`kernel_size` must be at least 3, got 1"),
        ({"iterations": -1}, ValueError, "`iterations` must be at least 0, got -1"),
        ({"weight": math.inf}, ValueError, "`weight` must be finite, got inf"),
        ({"weight": 1e39}, ValueError, "`weight` must lie within"),
        ({"sigma_rgb": -1.0}, ValueError, "`sigma_rgb` must be a finite number greater than 0"),
        ({"sigma_rgb": 1e-60}, ValueError, "`sigma_rgb` must lie between"),
        ({"compatibility": "potts"}, ValueError, "`compatibility` must be one of 'loose', 'factorised'"),
        ({"blur": 0}, ValueError, "`blur` must be at least 1, got 0"),
        ({"learn": "weights"}, ValueError, "`learn` must be one of 'filters', 'compatibility', 'bandwidths'"),
        ({"learn": 3}, TypeError, "`learn` must be names among filters"),
        ({"output": "labels"}, ValueError, "`output` must be one of 'marginals', 'logits'"),
        ({"num_labels": 10**6}, ValueError, "use a smaller `kernel_size`, or fewer labels"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        PacCRF(**{"num_labels": 3, **options})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": None}, TypeError, "`logits` must be a torch.Tensor"),
        ({"logits": torch.zeros(1, 3, 4, 5).long()}, TypeError, "`logits` must be float32 or float64"),
        ({"logits": torch.zeros(1, 2, 4, 5)}, ValueError, r"shape \(B, K, H, W\) with K = 3, got"),
        ({"logits": torch.full((1, 3, 4, 5), math.nan)}, ValueError, "`logits` must be finite"),
        ({"guide": torch.zeros(1, 2, 4, 6)}, ValueError, r"`guide` must have shape \(B, c, H, W\)"),
        ({"guide": torch.zeros(1, 3, 4, 5)}, ValueError, "`guide` must have 2 channels, as the layer was"),
        ({"guide": torch.full((1, 2, 4, 5), math.inf)}, ValueError, "`guide` must be finite"),
        ({"guide": torch.zeros(1, 2, 4, 5).bool()}, TypeError, "`guide` must hold real numbers"),
    ],
)
def test_wrong_input(change, error, message):
    given = {"logits": torch.zeros(1, 3, 4, 5), "guide": torch.zeros(1, 2, 4, 5), **change}
    with pytest.raises(error, match=message):
        PacCRF(3, channels=2)(**given)


def test_wrong_progress_and_output():
    crf, given = make(), inputs()
    with pytest.raises(TypeError, match="`progress` must be a function of the iterations done, or None"):
        crf.infer(*given, progress=3)
    crf.output = "label"
    with pytest.raises(ValueError, match="`output` must be one of"):
        crf(*given)


def test_training_that_diverged():
    given = inputs()
    crf = make()
    nn.init.constant_(crf.filters, math.nan)
    with pytest.raises(ValueError, match="`filters` is not finite: training has diverged"):
        crf(*given)
    crf = make()
    with torch.no_grad():
        crf.log_sigma_rgb[1, 0] = 200
    with pytest.raises(ValueError, match=r"`sigma_rgb` must lie between .* lower the learning rate"):
        crf(*given)
    crf = make().float()
    nn.init.constant_(crf.filters, 3e38)
    with pytest.raises(ValueError, match=r"mean field left the range of torch\.float32 within 5 iterations"):
        crf(*(part.float() for part in given))


def test_warns_of_a_guide_from_0_to_1():
    logits, guide = inputs(channels=3, dtype=torch.float32)
    with pytest.warns(UserWarning, match="`guide` lies between .* but sigma_rgb=13 is in its units"):
        PacCRF(3)(logits, guide)


def test_sigma_is_read_only():
    crf = PacCRF(3)
    assert crf.sigma_rgb.shape == (2, 3)
    torch.testing.assert_close(crf.sigma_rgb, torch.full((2, 3), 13.0))
    with pytest.raises(AttributeError, match="log_sigma_rgb"):
        crf.sigma_rgb = 3.0
