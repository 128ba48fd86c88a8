"""What the layers of CRF-Grad owe, for images, volumes and points."""

import copy
import math

import pytest
import torch

import hdcrf
from hdcrf import CRFGrad, PointCRFGrad, VolumeCRFGrad, project_simplex
from hdcrf.relaxed import round_labels
from hdcrf.relaxed.spatial import symmetric_filters
from lattice import neighbourhood_lattice
from lattice.neighbourhood import gaussian_taps
from voxel import CoordinateRangeError

KINDS = ["image", "volume", "points"]
_SIZES = {"image": (4, 5), "volume": (2, 3, 3)}
LEARNABLE = ("unary", "spatial", "bilateral", "bandwidths")


def make(kind, **options):
    """Return a layer over three labels, for guides from 0 to 1."""
    if kind == "image":
        return CRFGrad(3, **{"channels": 2, "window": 3, "sigma_xy": 3.1, "sigma_rgb": 0.7, **options})
    if kind == "volume":
        sigmas = {"sigma_xyz": 2.9, "sigma_intensity": 0.7, "spacing": (1.5, 1.0, 0.8)}
        return VolumeCRFGrad(3, **{"channels": 1, "window": 3, **sigmas, **options})
    return PointCRFGrad(3, 4, **options)


def inputs(kind, dtype=torch.float32, batch=2, seed=0):
    """Return logits and guides of a batch, as the layer takes them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    if kind == "points":
        points = 9 * batch
        return [3 * uniform(points, 3), 2 * uniform(points, 4), torch.arange(batch).repeat_interleave(9)]
    channels = {"image": 2, "volume": 1}[kind]
    return [3 * uniform(batch, 3, *_SIZES[kind]), uniform(batch, channels, *_SIZES[kind])]


def item(kind, given, i):
    """Return the i-th item of a batch."""
    if kind == "points":
        return [part[given[2] == i] for part in given[:2]]
    return [part[i : i + 1] for part in given]


def scrambled(layer):
    """Give a layer potentials of any sign."""
    with torch.no_grad():
        for parameter in (layer.spatial_filters, layer.bilateral_taps):
            if parameter is not None:
                parameter.normal_(std=0.3)
    return layer


def on(device, given):
    return [part.to(device) for part in given]


def labels_last(values):
    return values if values.dim() == 2 else values.movedim(1, -1)


@pytest.mark.parametrize("kind", KINDS)
class TestAnyKind:
    """Layers over images, volumes and points alike."""

    def test_relaxed_labels_lie_on_the_simplex(self, kind, device):
        layer, given = scrambled(make(kind)).to(device).eval(), on(device, inputs(kind))
        relaxed = labels_last(layer(*given)).detach()
        assert relaxed.shape == labels_last(given[0]).shape
        assert float(relaxed.min()) >= 0
        torch.testing.assert_close(relaxed.sum(-1), torch.ones_like(relaxed[..., 0]))

    @pytest.mark.parametrize("inference", ["gradient", "graduated", "mean_field"])
    def test_a_batch_equals_its_items(self, kind, inference, device):
        layer = scrambled(make(kind, inference=inference)).to(device).eval()
        given = on(device, inputs(kind))
        whole = layer(*given)
        for i in range(2):
            expected = whole[i : i + 1] if kind != "points" else whole[given[2] == i]
            # Measured: 5e-7; the vertices are summed in another order.
            torch.testing.assert_close(layer(*item(kind, given, i)), expected, atol=5e-6, rtol=0)

    def test_the_steps_are_those_of_the_energy(self, kind):
        """Unary costs, start and steps, written out from the definition."""
        options = {"iterations": 3, "step_size": 0.4, "unary_weight": 0.7, "epsilon": 0.05}
        layer = scrambled(make(kind, **options)).double().eval()
        given = inputs(kind, torch.float64)
        energy = layer.energy(*given)
        z = torch.softmax(labels_last(given[0]).reshape(-1, 3), 1)
        torch.testing.assert_close(energy.unary, -0.7 * torch.log(z + 0.05))
        q = z
        for _ in range(3):
            q = project_simplex(q - 0.4 * energy.gradient(q), 1)
        result = layer.infer(*given, track=True)
        torch.testing.assert_close(labels_last(result.relaxed).reshape(-1, 3), q)
        torch.testing.assert_close(result.energy[-1], energy.value(q))
        assert result.energy.shape == (4,)

    def test_logits_are_what_each_point_makes_of_the_others(self, kind):
        layer = scrambled(make(kind)).double().eval()
        given = inputs(kind, torch.float64)
        relaxed = labels_last(layer(*given)).reshape(-1, 3)
        layer.output = "logits"
        logits = labels_last(layer(*given)).reshape(-1, 3)
        torch.testing.assert_close(logits, -layer.energy(*given).gradient(relaxed))

    def test_labels_are_no_worse_than_what_they_were_rounded_from(self, kind):
        layer = scrambled(make(kind)).double()
        given = inputs(kind, torch.float64)
        labels = layer.labels(*given)
        assert labels.shape == labels_last(given[0]).shape[:-1]
        assert labels.dtype == torch.int64
        with torch.no_grad():
            energy, relaxed = layer.energy(*given), layer.eval()(*given)
            rows = labels_last(relaxed).reshape(-1, 3)
            assert torch.equal(labels.flatten(), round_labels(energy, rows))
            assert energy.of_labels(labels.flatten()) <= energy.value(rows) + 1e-10

    def test_the_leak_is_for_training(self, kind):
        layer, given = scrambled(make(kind, leak=0.3, step_size=2.0)), inputs(kind)
        assert bool((layer.train()(*given) < 0).any())
        assert bool((layer.eval()(*given) >= 0).all())
        strict = scrambled(make(kind, leak=0.0))
        assert bool((strict.train()(*given) >= 0).all())

    def test_the_energy_never_rises(self, kind):
        for seed in range(20):
            torch.manual_seed(seed)
            layer = scrambled(make(kind, iterations=10)).double().eval()
            energies = layer.infer(*inputs(kind, torch.float64, seed=seed), track=True).energy
            assert float(energies.diff().max()) <= 1e-12 * float(energies.abs().max())

    @pytest.mark.parametrize("output", ["relaxed", "logits"])
    def test_gradients(self, kind, output):
        """Of everything learned and of the logits, through the steps of a leaky projection; features too.

        The first pixel of a grid lies on the border of its cell, where there is no gradient in the guide. It
        stays in place when bandwidths change.
        """
        options = {"iterations": 2, "step_size": 0.2, "leak": 0.1, "learn": LEARNABLE, "output": output}
        layer = scrambled(make(kind, **options)).double()
        given = inputs(kind, torch.float64, batch=1)
        if kind != "points":
            given = [part[..., :2, :3] for part in given]
        names, parameters = zip(*layer.named_parameters(), strict=True)
        assert all(parameter.requires_grad for parameter in parameters)

        def refined(logits, guide, *values):
            called = dict(zip(names, values, strict=True))
            return torch.func.functional_call(layer, called, (logits, guide, *given[2:]))

        tensors = [part.detach().clone().requires_grad_() for part in (*given[:2], *parameters)]
        tensors[1].requires_grad_(kind == "points")
        assert torch.autograd.gradcheck(refined, tensors, fast_mode=True)

    def test_what_is_learned(self, kind):
        names = {name for name, parameter in make(kind).named_parameters() if parameter.requires_grad}
        spatial = set() if kind == "points" else {"spatial_filters"}
        assert names == {"unary_weight", "bilateral_taps"} | spatial
        assert not any(parameter.requires_grad for parameter in make(kind, learn=()).parameters())
        only = {name for name, p in make(kind, learn="bilateral").named_parameters() if p.requires_grad}
        assert only == {"bilateral_taps"}

    def test_what_it_starts_as(self, kind):
        """A Gaussian times Potts: like labels cost nothing, all others the same; no spatial potentials."""
        layer = make(kind, bilateral_weight=2.5)
        taps, _ = gaussian_taps(layer.dimension, 1)
        expected = 2.5 * taps[:, None, None] * (1 - torch.eye(3, dtype=torch.float64))
        torch.testing.assert_close(layer.bilateral_taps, expected.float())
        if kind != "points":
            assert not layer.spatial_filters.any()
            started = make(kind, spatial_weight=3.0).spatial_filters.detach()
            assert math.isclose(float(started[0, 1].sum()), 3.0, rel_tol=1e-6)
            assert not started.diagonal().any()

    def test_its_parameters_can_be_saved(self, kind):
        layer, given = scrambled(make(kind)).eval(), inputs(kind)
        other = make(kind).eval()
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(*given), layer(*given))

    def test_half_precision_comes_and_goes(self, kind):
        layer, given = make(kind).eval(), inputs(kind)
        halves = layer(given[0].bfloat16(), *given[1:])
        assert halves.dtype == torch.bfloat16
        torch.testing.assert_close(
            halves.float(), layer(given[0].bfloat16().float(), *given[1:]), atol=4e-3, rtol=0
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = layer(*given)
        assert torch.equal(under, layer(*given))

    def test_no_iterations_return_the_softmax(self, kind):
        layer, given = make(kind, iterations=0).eval(), inputs(kind)
        expected = torch.softmax(labels_last(given[0]), -1)
        torch.testing.assert_close(labels_last(layer(*given)), expected)

    def test_the_reference_and_the_kernels_agree(self, kind):
        reference = scrambled(make(kind, backend="reference")).eval()
        layer = copy.deepcopy(reference)
        layer.backend = "auto"
        given = inputs(kind)
        torch.testing.assert_close(layer(*given), reference(*given), atol=1e-5, rtol=0)

    def test_any_layout_in_memory(self, kind):
        layer, given = scrambled(make(kind)).eval(), inputs(kind)
        stored = [
            part.transpose(0, 1).contiguous().transpose(0, 1) if part.dim() > 1 else part for part in given
        ]
        assert torch.equal(layer(*stored), layer(*given))

    def test_progress_is_reported(self, kind):
        seen = []
        make(kind, iterations=3).infer(*inputs(kind), progress=seen.append)
        assert seen == [1, 2, 3]

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"iterations": -1}, ValueError, "`iterations` must be at least 0, got -1"),
            ({"step_size": -1}, ValueError, "`step_size` must be a finite number greater than 0"),
            ({"step_size": "long"}, ValueError, "`step_size` must be one of 'auto', got 'long'"),
            ({"unary_weight": "1"}, TypeError, "`unary_weight` must be a number"),
            ({"leak": 1.5}, ValueError, "`leak` must be from 0 to 1, got 1.5"),
            ({"epsilon": 0}, ValueError, "`epsilon` must be a finite number greater than 0"),
            ({"normalization": "after"}, ValueError, "must be one of 'symmetric', 'none', got 'after'"),
            ({"learn": ("weights",)}, ValueError, "`learn` must be one of 'unary', 'spatial'"),
            ({"inference": "graph cut"}, ValueError, "`inference` must be one of 'gradient', 'graduated'"),
            ({"output": "marginals"}, ValueError, "`output` must be one of 'relaxed', 'logits'"),
            ({"backend": "gpu"}, ValueError, "`backend` must be one of"),
            ({"neighbourhood": -1}, ValueError, "`neighbourhood` must be at least 0"),
            ({"neighbourhood": 50}, ValueError, "use a smaller neighbourhood or fewer dimensions"),
            ({"bilateral_weight": math.nan}, ValueError, "`bilateral_weight` must be finite"),
        ],
    )
    def test_what_the_constructor_refuses(self, kind, options, error, message):
        with pytest.raises(error, match=message):
            make(kind, **options)

    def test_what_does_not_fit_is_refused(self, kind):
        layer, given = make(kind), inputs(kind)
        with pytest.raises(ValueError, match="with K = 3"):
            layer(given[0][:, :2], *given[1:])
        with pytest.raises(ValueError, match="`logits` must be finite"):
            layer(given[0] / 0, *given[1:])
        with pytest.raises(ValueError, match="must be finite"):
            layer(given[0], given[1] * math.inf, *given[2:])
        with pytest.raises(TypeError, match="`logits` must be float32 or float64"):
            layer(given[0].long(), *given[1:])
        name = "columns" if kind == "points" else "channels"
        with pytest.raises(ValueError, match=f"{name}, as the layer was made for, got"):
            layer(given[0], torch.cat([given[1], given[1]], 1), *given[2:])
        with pytest.raises(ValueError, match="must be finite"):
            layer.labels(given[0] / 0, *given[1:])
        with pytest.raises(TypeError, match="`track` must be True or False"):
            layer.infer(*given, track="yes")


class TestImages:
    """What images have besides."""

    def test_the_features_are_those_of_the_lift(self):
        layer, (logits, guide) = make("image").double(), inputs("image", torch.float64)
        features = hdcrf.bilateral_features(guide, layer.sigma_xy, layer.sigma_rgb)
        expected, _ = neighbourhood_lattice(features, 1, batch=torch.arange(2).repeat_interleave(20))
        lattice = layer.energy(logits, guide).potentials[1].lattice
        torch.testing.assert_close(lattice.features, expected.features)

    def test_without_potentials_it_is_the_best_label(self):
        layer = make("image", window=None, neighbourhood=None, iterations=2).eval()
        logits, guide = inputs("image")
        assert layer.spatial_filters is None
        assert torch.equal(layer(logits, guide).argmax(1), logits.argmax(1))
        assert torch.equal(layer.labels(logits, guide), logits.argmax(1))

    def test_without_bilateral_potentials_no_guide_is_needed(self):
        layer, (logits, guide) = scrambled(make("image", neighbourhood=None)).eval(), inputs("image")
        assert torch.equal(layer(logits), layer(logits, guide))
        assert torch.equal(layer.labels(logits), layer.labels(logits, guide))
        assert "window=3" in repr(layer)
        with pytest.raises(ValueError, match="`guide` is needed, as the layer has bilateral potentials"):
            make("image")(logits)

    def test_one_label_and_one_pixel(self):
        assert torch.equal(
            CRFGrad(1).eval()(torch.zeros(1, 1, 3, 4), torch.rand(1, 3, 3, 4) * 255).min(), torch.tensor(1.0)
        )
        one = CRFGrad(2).eval()(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.full((1, 3, 1, 1), 9.0))
        assert one.argmax(1).item() == 0

    def test_an_integer_guide(self):
        layer, logits = CRFGrad(3).eval(), torch.randn(1, 3, 8, 9)
        guide = torch.randint(256, (1, 3, 8, 9), dtype=torch.uint8)
        assert torch.equal(layer(logits, guide), layer(logits, guide.float()))

    def test_it_cleans_a_noisy_picture(self):
        """Two halves of different colours; of noisy labels with 30% wrong, under 1% are left."""
        truth = (torch.arange(40) >= 20).long().expand(30, 40)
        noisy = torch.where(torch.rand(30, 40) < 0.3, 1 - truth, truth)
        logits = hdcrf.logits_from_labels(noisy[None], 2)
        guide = torch.where(truth == 1, 200.0, 50.0).expand(1, 3, 30, 40) + 5 * torch.randn(1, 3, 30, 40)
        wrong = (CRFGrad(2).labels(logits, guide)[0] != truth).float().mean()
        assert float((noisy != truth).float().mean()) > 0.25
        assert float(wrong) < 0.01

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"window": 4}, ValueError, "`window` must be odd, so that it has a centre, got 4"),
            ({"window": 0}, ValueError, "`window` must be at least 1"),
            ({"window": 301}, ValueError, "`window` must be at most 255"),
            ({"channels": 0}, ValueError, "`channels` must be at least 1"),
            ({"channels": 16}, ValueError, "262,143|use a smaller neighbourhood or fewer dimensions"),
            ({"spatial_sigma": 0}, ValueError, "`spatial_sigma` must be a finite number greater than 0"),
            ({"sigma_xy": -1}, ValueError, "`sigma_xy` must be a finite number greater than 0"),
        ],
    )
    def test_what_the_constructor_refuses(self, options, error, message):
        with pytest.raises(error, match=message):
            CRFGrad(3, **options)

    def test_absurd_sizes_are_refused_before_memory_is_taken(self):
        with pytest.raises(ValueError, match=r"65,025 taps for 1,000² pairs of labels would take 242\.2 GiB"):
            CRFGrad(1000, window=255)

    @pytest.mark.parametrize(
        ("name", "sigma"), [("sigma_xy", 1e-9), ("sigma_rgb", 1e-9), ("sigma_rgb", 2e-38)]
    )
    def test_a_sigma_too_small_is_named(self, name, sigma):
        layer = CRFGrad(2, **{name: sigma})
        with pytest.raises(
            CoordinateRangeError, match=rf"`{name}`={sigma:.4g} is too small: pixel \d+ would lie"
        ):
            layer(torch.zeros(1, 2, 4, 4), 200 + torch.rand(1, 3, 4, 4))
        volume = VolumeCRFGrad(2, sigma_intensity=1e-9)
        with pytest.raises(CoordinateRangeError, match=r"`sigma_intensity`=1e-09 is too small: voxel"):
            volume(torch.zeros(1, 2, 2, 2, 2), 200 + torch.rand(1, 1, 2, 2, 2))

    @pytest.mark.parametrize("name", ["unary_weight", "spatial_filters", "bilateral_taps"])
    def test_parameters_that_diverged_are_named(self, name):
        layer = CRFGrad(2)
        with torch.no_grad():
            getattr(layer, name).fill_(math.nan)
        with pytest.raises(ValueError, match=f"`{name}` is not finite: training has diverged"):
            layer(torch.zeros(1, 2, 4, 4), torch.rand(1, 3, 4, 4) * 255)

    def test_options_set_later_are_checked(self):
        given = torch.zeros(1, 2, 4, 4), torch.rand(1, 3, 4, 4) * 255
        layer = CRFGrad(2)
        layer.inference = "gradent"
        with pytest.raises(ValueError, match="`inference` must be one of"):
            layer(*given)
        layer.inference, layer.output = "gradient", "logit"
        with pytest.raises(ValueError, match="`output` must be one of"):
            layer(*given)

    def test_a_guide_from_0_to_1_is_warned_of(self):
        with pytest.warns(UserWarning, match="`guide` lies between .* but sigma_rgb=13 is in its units"):
            CRFGrad(2)(torch.zeros(1, 2, 4, 4), torch.rand(1, 3, 4, 4))

    def test_training_improves_what_it_is_trained_on(self):
        """Stripes: a label is never above itself, which no Gaussian can say."""
        truth = (torch.arange(16) % 2)[:, None].expand(16, 16)[None]
        noise = torch.randn(1, 2, 16, 16)
        logits = 1.0 * torch.nn.functional.one_hot(truth, 2).movedim(-1, 1) + noise
        crf = CRFGrad(2, neighbourhood=None, window=5, output="logits")
        guide = torch.full((1, 3, 16, 16), 100.0)
        optimizer = torch.optim.Adam(crf.parameters(), lr=0.05)
        before = float((logits.argmax(1) == truth).float().mean())
        for _ in range(40):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(crf(logits, guide), truth).backward()
            optimizer.step()
        crf.eval()
        fresh = 1.0 * torch.nn.functional.one_hot(truth, 2).movedim(-1, 1) + torch.randn(1, 2, 16, 16)
        after = float((crf(fresh, guide).argmax(1) == truth).float().mean())
        assert before < 0.85
        assert after > 0.97
        # Unlike labels attract one step along a column; two steps, and one along a row, they repel.
        learned = symmetric_filters(crf.spatial_filters.detach())
        difference = learned[0, 1] + learned[1, 0] - learned[0, 0] - learned[1, 1]
        assert float(difference[1, 2]) < 0 < min(float(difference[0, 2]), float(difference[2, 1]))


class TestPoints:
    """What points have besides."""

    def test_any_number_of_dimensions(self):
        for dimension in (1, 2, 6):
            layer = PointCRFGrad(4, dimension).eval()
            relaxed = layer(torch.randn(30, 4), torch.randn(30, dimension))
            torch.testing.assert_close(relaxed.sum(1), torch.ones(30))

    def test_points_too_far_out_are_named(self):
        with pytest.raises(CoordinateRangeError):
            PointCRFGrad(2, 3)(torch.zeros(5, 2), torch.rand(5, 3) * 1e30)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (
                (torch.zeros(5, 2), torch.zeros(4, 3)),
                ValueError,
                r"`features` must have shape \(N, d\) with 5 rows",
            ),
            ((torch.zeros(5, 2), torch.zeros(5, 3).double()), TypeError, "`features` must have the dtype of"),
            ((torch.zeros(0, 2), torch.zeros(0, 3)), ValueError, "N of at least 1"),
            (
                (torch.zeros(5, 2), torch.zeros(5, 3), torch.zeros(4).long()),
                ValueError,
                "`batch` must have shape",
            ),
        ],
    )
    def test_what_is_refused(self, given, error, message):
        with pytest.raises(error, match=message):
            PointCRFGrad(2, 3)(*given)
