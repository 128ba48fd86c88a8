"""DenseCRF as a layer."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdcrf import DenseCRF
from voxel import CoordinateRangeError


@pytest.fixture
def logits(device):
    return torch.randn(2, 3, 9, 8, device=device)


@pytest.fixture
def guide(device):
    return torch.rand(2, 3, 9, 8, device=device) * 255


@pytest.mark.parametrize("method", ["permutohedral", "voxel", "exact"])
def test_a_batch_equals_its_items(logits, guide, method):
    crf = DenseCRF(3, method=method, learn=()).to(logits.device)
    whole = crf(logits, guide)
    assert whole.shape == logits.shape
    torch.testing.assert_close(whole.sum(1), torch.ones_like(whole[:, 0]))
    for i in range(2):
        # Measured: 2e-7; the vertices are summed in another order.
        torch.testing.assert_close(
            whole[i : i + 1], crf(logits[i : i + 1], guide[i : i + 1]), atol=2e-6, rtol=0
        )


def test_images_of_a_batch_do_not_see_each_other(logits, guide):
    crf = DenseCRF(3, learn=()).to(logits.device)
    before = crf(logits, guide)
    other = logits.clone()
    other[1] = -other[1]
    assert torch.equal(crf(other, guide)[0], before[0])


def test_logits_output_is_the_marginals_logarithm(logits, guide):
    crf = DenseCRF(3, output="logits").to(logits.device)
    marginals = DenseCRF(3).to(logits.device)(logits, guide)
    torch.testing.assert_close(torch.softmax(crf(logits, guide), 1), marginals)


def test_with_and_without_autograd_agree(logits, guide):
    crf = DenseCRF(3).to(logits.device)
    tracked = crf(logits, guide)
    assert tracked.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(crf(logits, guide), tracked.detach())


@pytest.mark.parametrize("method", ["permutohedral", "voxel", "exact"])
@pytest.mark.parametrize("compatibility", ["potts", "full"])
def test_mixed_precision_around_it_changes_nothing(device, logits, guide, method, compatibility):
    crf = DenseCRF(3, method=method, compatibility=compatibility).to(device)
    logits.requires_grad_()
    expected = crf(logits, guide)
    expected_gradient = torch.autograd.grad(expected.square().sum(), logits)[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        marginals = crf(logits, guide)
    gradient = torch.autograd.grad(marginals.square().sum(), logits)[0]
    assert torch.equal(marginals, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(logits, guide, dtype):
    crf = DenseCRF(3, output="logits").to(logits.device)
    half = logits.to(dtype).requires_grad_()
    refined = crf(half, guide)
    assert refined.dtype == dtype
    assert torch.equal(refined, crf(half.float(), guide).to(dtype))
    refined.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype


@pytest.mark.default_algorithms
def test_same_input_same_bits(device):
    crf = DenseCRF(5, learn=()).to(device)
    logits, guide = torch.randn(1, 5, 40, 50, device=device), torch.rand(1, 3, 40, 50, device=device) * 255
    assert torch.equal(crf(logits, guide), crf(logits, guide))


def test_non_contiguous_and_channels_last(logits, guide):
    crf = DenseCRF(3, learn=()).to(logits.device)
    expected = crf(logits, guide)
    rearranged = crf(logits.to(memory_format=torch.channels_last), guide.flip(3).contiguous().flip(3))
    torch.testing.assert_close(rearranged, expected)
    strided = crf(logits.transpose(2, 3), guide.transpose(2, 3)).transpose(2, 3)
    # Measured: 4e-2 at single pixels: x and y change places in the lattice, another approximation.
    assert (strided - expected).abs().mean() < 0.01


def test_inputs_are_left_alone(logits, guide):
    kept = logits.clone(), guide.clone()
    with torch.no_grad():
        DenseCRF(3).to(logits.device)(logits, guide)
    assert torch.equal(logits, kept[0])
    assert torch.equal(guide, kept[1])


def test_integer_guide_equals_floating(logits, guide):
    crf = DenseCRF(3, learn=()).to(logits.device)
    whole = guide.round()
    assert torch.equal(crf(logits, whole.to(torch.uint8)), crf(logits, whole))


@pytest.mark.parametrize("kind", ["potts", "full"])
def test_gradcheck(kind):
    learn = ("weights", "bandwidths") + (("compatibility",) if kind == "full" else ())
    crf = DenseCRF(
        2, iterations=2, appearance_sigma_xy=3.1, appearance_sigma_rgb=0.7, smoothness_sigma=1.2,
        appearance_weight=0.8, smoothness_weight=0.6, compatibility=kind, learn=learn,
    ).double()  # fmt: skip
    logits = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    guide = torch.rand(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = list(crf.parameters())
    names = [name for name, _ in crf.named_parameters()]

    def run(logits, guide, *values):
        return torch.func.functional_call(crf, dict(zip(names, values, strict=True)), (logits, guide))

    assert all(parameter.requires_grad for parameter in parameters)
    assert torch.autograd.gradcheck(run, (logits, guide, *parameters), eps=1e-7, atol=1e-5)


def test_learn_decides_what_is_trained():
    def trained(learn):
        return {
            n for n, p in DenseCRF(3, compatibility="full", learn=learn).named_parameters() if p.requires_grad
        }

    assert trained(()) == set()
    assert trained("weights") == {"appearance_weight", "smoothness_weight"}
    assert trained(("bandwidths",)) == {
        "log_appearance_sigma_xy", "log_appearance_sigma_rgb", "log_smoothness_sigma",
    }  # fmt: skip
    assert trained(("compatibility",)) == {"compatibility.values"}
    with pytest.raises(ValueError, match="`learn` must be one of"):
        DenseCRF(3, learn=("unary",))


def test_training_lowers_the_loss(device):
    torch.manual_seed(3)
    guide = torch.zeros(1, 3, 16, 16, device=device)
    guide[..., 8:] = 200
    target = (guide[:, 0] > 0).long()
    logits = torch.randn(1, 2, 16, 16, device=device) + torch.stack([1 - target, target], 1)
    crf = DenseCRF(
        2, output="logits", appearance_weight=0.1, smoothness_weight=0.1, compatibility="full",
        learn=("weights", "bandwidths", "compatibility"),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(crf(logits, guide), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in crf.parameters())


def test_state_dict_round_trip(logits, guide):
    crf = DenseCRF(3, appearance_weight=4.0, appearance_sigma_rgb=30.0, compatibility="full")
    other = DenseCRF(3, compatibility="full")
    other.load_state_dict(crf.state_dict())
    crf, other = crf.to(logits.device), other.to(logits.device)
    assert torch.equal(crf(logits, guide), other(logits, guide))
    assert torch.equal(copy.deepcopy(crf)(logits, guide), crf(logits, guide))


def test_zero_weights_give_the_unary_back(logits, guide):
    crf = DenseCRF(3, appearance_weight=0, smoothness_weight=0, learn=()).to(logits.device)
    torch.testing.assert_close(crf(logits, guide), torch.softmax(logits, 1))


def test_a_mask_follows_the_photo():
    guide = torch.zeros(1, 3, 20, 20)
    guide[..., 10:] = 255
    truth = guide[0, 0] > 0
    wrong = truth.clone()
    wrong[:, 8:10] = True  # the mask leaks over the edge by two columns
    logits = torch.where(torch.stack([~wrong, wrong])[None], 1.0, -1.0)
    labels = DenseCRF(2)(logits, guide).argmax(1)[0].bool()
    assert torch.equal(labels, truth)


class TestOddSizes:
    @pytest.mark.parametrize("labels", [1, 2, 40])
    @pytest.mark.parametrize("size", [(1, 1), (1, 17), (13, 1)])
    def test_thin_images(self, labels, size):
        marginals = DenseCRF(labels)(torch.randn(1, labels, *size), torch.rand(1, 3, *size) * 255)
        assert marginals.shape == (1, labels, *size)
        torch.testing.assert_close(marginals.sum(1), torch.ones(1, *size))

    def test_one_label_is_certain(self):
        assert torch.equal(
            DenseCRF(1)(torch.randn(1, 1, 4, 5), torch.zeros(1, 3, 4, 5)), torch.ones(1, 1, 4, 5)
        )

    def test_one_pixel_is_its_unary(self):
        logits = torch.randn(1, 4, 1, 1)
        torch.testing.assert_close(DenseCRF(4)(logits, torch.zeros(1, 3, 1, 1)), torch.softmax(logits, 1))

    @given(
        batch=st.integers(1, 3),
        labels=st.integers(1, 6),
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        channels=st.integers(1, 5),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        guide_dtype=st.sampled_from([torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64]),
        normalization=st.sampled_from(["none", "before", "after", "symmetric"]),
    )
    def test_any_shape_and_dtype(
        self, batch, labels, height, width, channels, dtype, guide_dtype, normalization
    ):
        logits = torch.randn(batch, labels, height, width, dtype=dtype)
        guide = (torch.rand(batch, channels, height, width) * 255).to(guide_dtype)
        marginals = DenseCRF(labels, normalization=normalization, iterations=2)(logits, guide)
        assert marginals.shape == logits.shape
        assert marginals.dtype == dtype
        assert bool(torch.isfinite(marginals).all())


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"num_labels": 0}, ValueError, "`num_labels` must be at least 1, got 0"),
            ({"num_labels": 2.0}, TypeError, "`num_labels` must be an integer, got float"),
            ({"iterations": -1}, ValueError, "`iterations` must be at least 0"),
            (
                {"appearance_sigma_xy": 0},
                ValueError,
                "`appearance_sigma_xy` must be a finite number greater than 0",
            ),
            ({"appearance_sigma_rgb": -1.0}, ValueError, "`appearance_sigma_rgb`"),
            ({"smoothness_sigma": float("nan")}, ValueError, "`smoothness_sigma`"),
            ({"smoothness_sigma": "3"}, TypeError, "`smoothness_sigma` must be a number, got str"),
            ({"appearance_weight": float("inf")}, ValueError, "`appearance_weight` must be finite"),
            ({"normalization": "both"}, ValueError, "`normalization` must be one of"),
            ({"method": "fast"}, ValueError, "`method` must be one of"),
            ({"appearance_weight": 1e39}, ValueError, r"`appearance_weight` must lie within ±3\.4e\+38"),
            ({"smoothness_sigma": 1e-50}, ValueError, "`smoothness_sigma` must lie between 1.18e-38 and"),
            ({"smoothness_sigma": 1e39}, ValueError, "`smoothness_sigma` must lie between"),
            ({"appearance_sigma_xy": 1e-50}, ValueError, "`appearance_sigma_xy` must lie between"),
            ({"order": 0}, ValueError, "`order` must be at least 1"),
            ({"order": 17}, ValueError, "`order` must be at most 16"),
            ({"halo": -1}, ValueError, "`halo` must be at least 0"),
            ({"output": "labels"}, ValueError, "`output` must be one of"),
            ({"tolerance": 0}, ValueError, "`tolerance` must be a finite number greater than 0"),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=message):
            DenseCRF(**{"num_labels": 3, **options})

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda u, g: (u[0], g), ValueError, r"`logits` must have shape \(B, K, H, W\) with K = 3"),
            (lambda u, g: (u[:, :2], g), ValueError, r"K = 3, got \(2, 2, 9, 8\)"),
            (
                lambda u, g: (u, g[..., :4]),
                ValueError,
                r"= \(2, c, 9, 8\) to match `logits`, got \(2, 3, 9, 4\)",
            ),
            (lambda u, g: (u, g[:1]), ValueError, "to match `logits`"),
            (lambda u, g: (u, g[:, :0]), ValueError, "at least one channel"),
            (lambda u, g: (u.long(), g), TypeError, "`logits` must be float32 or float64, got torch.int64"),
            (lambda u, g: (u.cpu().numpy(), g), TypeError, "`logits` must be a torch.Tensor, got ndarray"),
            (lambda u, g: (u, g > 1), TypeError, "`guide` must hold real numbers"),
            (lambda u, g: (u[:, :, :0], g[:, :, :0]), ValueError, "must not be empty"),
            (lambda u, g: (u[:0], g[:0]), ValueError, "must not be empty"),
        ],
    )
    def test_inputs(self, logits, guide, change, error, message):
        with pytest.raises(error, match=message):
            DenseCRF(3).to(logits.device)(*change(logits, guide))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("which", ["logits", "guide"])
    def test_not_finite(self, logits, guide, which, bad):
        {"logits": logits, "guide": guide}[which][1, 2, 3, 4] = bad
        with pytest.raises(ValueError, match=rf"`{which}` must be finite, got .* at index \(1, 2, 3, 4\)"):
            DenseCRF(3).to(logits.device)(logits, guide)

    def test_sums_that_overflow_are_still_finite(self):
        logits = torch.full((1, 2, 40, 40), 1e38)
        assert bool(torch.isfinite(DenseCRF(2)(logits, torch.zeros(1, 3, 40, 40))).all())

    @pytest.mark.parametrize("name", ["appearance_sigma_xy", "appearance_sigma_rgb"])
    @pytest.mark.parametrize("method", ["permutohedral", "voxel"])
    @pytest.mark.parametrize("sigma", ["1e-09", "2e-38"])
    def test_sigma_too_small(self, logits, guide, name, method, sigma):
        crf = DenseCRF(3, method=method, **{name: float(sigma)}).to(logits.device)
        with pytest.raises(CoordinateRangeError, match=rf"`{name}`={sigma} is too small: pixel \d+ would"):
            crf(logits, guide)

    @pytest.mark.parametrize("weight", ["appearance_weight", "smoothness_weight"])
    def test_messages_beyond_the_dtype(self, logits, guide, weight):
        crf = DenseCRF(3, learn=(), **{weight: 3e38}).to(logits.device)
        with pytest.raises(ValueError, match=r"left the range of torch\.float32 within \d iterations"):
            crf(logits, guide)
        assert bool(torch.isfinite(crf(logits.double(), guide)).all())

    def test_a_guide_of_another_range_is_pointed_out(self, logits, guide):
        crf = DenseCRF(3).to(logits.device)
        with pytest.warns(
            UserWarning, match=r"in its units, so its values hardly matter; .*sigma_rgb=0\.051"
        ):
            crf(logits, guide / 255)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            DenseCRF(3, appearance_sigma_rgb=13 / 255).to(logits.device)(logits, guide / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"progress": 3}, "`progress` must be a function"), ({"track": "no"}, "`track` must be True or False")],
)
def test_wrong_arguments_of_infer(options, message):
    with pytest.raises(TypeError, match=message):
        DenseCRF(2).infer(torch.randn(1, 2, 3, 3), torch.rand(1, 3, 3, 3) * 255, **options)
