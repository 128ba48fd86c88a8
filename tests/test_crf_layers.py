"""What every CRF layer owes, whatever it refines: images, videos, volumes, points or space-time voxels."""

import copy
import inspect

import pytest
import torch

import hdcrf
from hdcrf import DenseCRF, PointCRF, TrilateralCRF, VideoCRF, VolumeCRF
from tests.distributed_training import train_in_two_processes
from voxel import CoordinateRangeError, SparseTensor

LEARNED = ("weights", "bandwidths", "compatibility")
LAYERS = ["image", "video", "volume", "points", "voxels"]
_SIZES = {"image": (4, 5), "video": (2, 3, 3), "volume": (2, 3, 3)}
_LAYER = {
    "image": DenseCRF,
    "video": VideoCRF,
    "volume": VolumeCRF,
    "points": PointCRF,
    "voxels": TrilateralCRF,
}
# Bandwidths for small inputs with guides from 0 to 1.
_BANDWIDTHS = {
    "image": {"appearance_sigma_xy": 3.1, "appearance_sigma_rgb": 0.7, "smoothness_sigma": 1.2},
    "video": {
        "appearance_sigma_xy": 3.1, "appearance_sigma_t": 1.7, "appearance_sigma_rgb": 0.7,
        "smoothness_sigma": 1.2,
    },
    "volume": {"appearance_sigma_xyz": 2.9, "appearance_sigma_intensity": 0.7, "smoothness_sigma": 1.2},
    "points": {
        "appearance_sigma_xyz": 0.51, "appearance_sigma_rgb": 0.7, "appearance_sigma_normal": 0.9,
        "appearance_sigma_intensity": 0.8, "smoothness_sigma": 0.37,
    },
    "voxels": {"sigma_xyz": 1.9, "sigma_t": 1.3, "sigma_rgb": 0.7},
}  # fmt: skip


def make(kind, **options):
    """Return a layer over three labels with moderate weights."""
    weights = {"weight": 0.8} if kind == "voxels" else {"appearance_weight": 0.8, "smoothness_weight": 0.6}
    spacing = {"spacing": (1.5, 1.0, 0.8)} if kind == "volume" else {}
    return _LAYER[kind](3, **{**weights, **spacing, **_BANDWIDTHS[kind], **options})


def inputs(kind, dtype=torch.float32, batch=2, seed=0):
    """Return logits and guides of a batch, by name."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    if kind in _SIZES:
        sizes = _SIZES[kind]
        return {"logits": 3 * uniform(batch, 3, *sizes), "guide": uniform(batch, 2, *sizes)}
    if kind == "points":
        points = 9 * batch
        return {
            "logits": 3 * uniform(points, 3),
            "positions": uniform(points, 3),
            "colours": uniform(points, 2),
            "normals": torch.nn.functional.normalize(uniform(points, 3)),
            "intensities": uniform(points),
            "batch": torch.arange(batch).repeat_interleave(9),
        }
    one = torch.cartesian_prod(*[torch.arange(2)] * 4)[:12]
    coordinates = torch.cat([torch.nn.functional.pad(one, (1, 0), value=i) for i in range(batch)])
    return {
        "logits": 3 * uniform(len(coordinates), 3),
        "coordinates": coordinates,
        "colours": uniform(len(coordinates), 3),
    }


def call(kind, layer, given):
    """Run the layer on such inputs, and return its tensor."""
    if kind != "voxels":
        return layer(**given)
    voxels = SparseTensor(given["coordinates"], given["colours"])
    refined = layer(SparseTensor(given["coordinates"], given["logits"]), voxels)
    assert torch.equal(refined.coordinates, voxels.coordinates)
    return refined.features


def item(kind, given, i):
    """Return the i-th item of a batch."""
    if kind in _SIZES:
        return {name: value[i : i + 1] for name, value in given.items()}
    batch = given["batch"] if kind == "points" else given["coordinates"][:, 0]
    return {name: value[batch == i] for name, value in given.items() if name != "batch"}


def on(device, given):
    return {name: value.to(device) for name, value in given.items()}


@pytest.mark.parametrize("method", ["permutohedral", pytest.param("voxel", marks=pytest.mark.slow), "exact"])
@pytest.mark.parametrize("kind", LAYERS)
class TestAnyMethod:
    def test_a_batch_equals_its_items(self, kind, method, device):
        layer, given = make(kind, method=method, learn=()).to(device), on(device, inputs(kind))
        whole = call(kind, layer, given)
        torch.testing.assert_close(whole.sum(1), torch.ones_like(whole.sum(1)))
        batch = given.get("batch", given["coordinates"][:, 0] if kind == "voxels" else None)
        for i in range(2):
            expected = whole[i : i + 1] if batch is None else whole[batch == i]
            # Measured: 2e-7; the vertices are summed in another order.
            torch.testing.assert_close(call(kind, layer, item(kind, given, i)), expected, atol=2e-6, rtol=0)


def features_by_hand(kind, given):
    """Return the features of the appearance and the smoothness kernel, from the definitions."""
    sigma = _BANDWIDTHS[kind]
    if kind in _SIZES:
        steps = {"volume": [1.5, 1.0, 0.8]}.get(kind, [1.0] * len(_SIZES[kind]))  # along D, H, W, or T, H, W
        axes = [torch.arange(n) * step for n, step in zip(_SIZES[kind], steps, strict=True)]
        place = torch.cartesian_prod(*axes).double()
        colour = given["guide"][0].flatten(1).T
        if kind == "image":
            near, smooth = place / sigma["appearance_sigma_xy"], place / sigma["smoothness_sigma"]
        elif kind == "video":
            xy, t = sigma["appearance_sigma_xy"], sigma["appearance_sigma_t"]
            near = place / torch.tensor([t, xy, xy])
            smooth = place / torch.tensor([1e-4, *[sigma["smoothness_sigma"]] * 2])  # not across frames
        else:
            near, smooth = place / sigma["appearance_sigma_xyz"], place / sigma["smoothness_sigma"]
        guide = sigma["appearance_sigma_intensity" if kind == "volume" else "appearance_sigma_rgb"]
        return torch.cat([near, colour / guide], 1), smooth
    if kind == "points":
        parts = [
            given["positions"] / sigma["appearance_sigma_xyz"],
            given["colours"] / sigma["appearance_sigma_rgb"],
            given["normals"] / sigma["appearance_sigma_normal"],
            given["intensities"][:, None] / sigma["appearance_sigma_intensity"],
        ]
        return torch.cat(parts, 1), given["positions"] / sigma["smoothness_sigma"]
    place, time = given["coordinates"][:, 1:4].double() * 0.5, given["coordinates"][:, 4:].double()
    parts = [place / sigma["sigma_xyz"], time / sigma["sigma_t"], given["colours"] / sigma["sigma_rgb"]]
    return torch.cat(parts, 1), None


@pytest.mark.parametrize("exclude_self", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_exact_method_is_the_model_written_out(kind, exclude_self):
    given = item(kind, inputs(kind, torch.float64), 0)
    size = {"voxel_size": 0.5} if kind == "voxels" else {}
    layer = make(kind, method="exact", exclude_self=exclude_self, learn=(), **size).double()
    logits = given["logits"]
    rows = logits[0].flatten(1).T if kind in _SIZES else logits
    message_matrix = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for features, weight in zip(features_by_hand(kind, given), (0.8, 0.6), strict=True):
        if features is not None:
            matrix = torch.exp(-0.5 * torch.cdist(features, features).square())
            root = matrix.sum(1).rsqrt()
            message_matrix += weight * root[:, None] * matrix * root
    if exclude_self:
        message_matrix.fill_diagonal_(0)
    marginals = torch.softmax(rows, 1)
    for _ in range(5):
        marginals = torch.softmax(rows + message_matrix @ marginals, 1)
    result = call(kind, layer, given)
    found = result[0].flatten(1).T if kind in _SIZES else result
    # The weights and sigmas are parameters in float32: 1e-7 of them.
    torch.testing.assert_close(found, marginals, rtol=0, atol=1e-6)


# Points of 10 and voxels of 7 dimensions fall into nearest cubes, in which only values have a gradient.
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *[(kind, "permutohedral") for kind in LAYERS],
        *[pytest.param(kind, "voxel", marks=pytest.mark.slow) for kind in _SIZES],
    ],
)
def test_gradcheck_through_three_iterations(kind, method):
    """For logits, guides, weights, bandwidths and compatibility, in float64."""
    layer = make(kind, iterations=3, compatibility="full", learn=LEARNED, method=method).double()
    given = inputs(kind, torch.float64, batch=1 if kind in _SIZES else 2)
    names = [name for name, value in given.items() if value.is_floating_point()]
    parameters = dict(layer.named_parameters())
    assert all(parameter.requires_grad for parameter in parameters.values())

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, tensors):
            return call(kind, self.layer, {**given, **tensors})

    def run(*values):
        tensors = dict(zip(names, values, strict=False))
        learned = dict(zip((f"layer.{name}" for name in parameters), values[len(names) :], strict=True))
        return torch.func.functional_call(Called(), learned, (tensors,))

    tensors = [given[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (*tensors, *parameters.values()), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
class TestEveryLayer:
    def test_tracking_gradients_changes_nothing(self, kind, device):
        layer, given = make(kind).to(device), on(device, inputs(kind))
        tracked = call(kind, layer, given)
        assert tracked.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(call(kind, layer, given), tracked.detach())

    def test_logits_are_the_marginals_logarithm(self, kind):
        given = inputs(kind)
        logits = call(kind, make(kind, output="logits"), given)
        torch.testing.assert_close(torch.softmax(logits, 1), call(kind, make(kind), given))

    def test_zero_weights_give_the_unary_back(self, kind):
        given = inputs(kind)
        weights = ["weight"] if kind == "voxels" else ["appearance_weight", "smoothness_weight"]
        layer = make(kind, **dict.fromkeys(weights, 0), learn=())
        torch.testing.assert_close(call(kind, layer, given), torch.softmax(given["logits"], 1))

    def test_state_dict_round_trip(self, kind):
        given = inputs(kind)
        layer = make(kind, compatibility="full", learn=LEARNED)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        other = make(kind, compatibility="full", learn=LEARNED)
        assert not torch.equal(call(kind, other, given), call(kind, layer, given))
        other.load_state_dict(layer.state_dict())
        assert torch.equal(call(kind, other, given), call(kind, layer, given))
        assert torch.equal(call(kind, copy.deepcopy(layer), given), call(kind, layer, given))

    def test_bandwidths_stay_positive(self, kind):
        layer = make(kind, learn="bandwidths")
        optimizer = torch.optim.SGD(layer.parameters(), lr=20)
        sum(parameter.sum() for parameter in layer.parameters() if parameter.requires_grad).backward()
        optimizer.step()
        for name in _BANDWIDTHS[kind]:
            assert 0 < float(getattr(layer, name).detach()) < 1e-7

    @pytest.mark.parametrize("value", [-200.0, 100.0, float("nan")])
    def test_bandwidths_that_diverged_are_named(self, kind, value):
        for name in _BANDWIDTHS[kind]:
            layer = make(kind)
            getattr(layer, f"log_{name}").data.fill_(value)
            with pytest.raises(ValueError, match=f"`{name}` must lie between .* training has brought it to"):
                call(kind, layer, inputs(kind))

    def test_bandwidths_follow_from_parameters(self, kind):
        layer = make(kind)
        name = next(iter(_BANDWIDTHS[kind]))
        with pytest.raises(
            AttributeError, match=f"`{name}` is the exponential of the parameter `log_{name}`"
        ):
            setattr(layer, name, 3.0)
        with pytest.raises(TypeError, match=f"`{name}` must be a number, got NoneType"):
            make(kind, **{name: None})

    @pytest.mark.slow
    # PyTorch's own look at a tensor between two graphs.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
    def test_compiled(self, kind, device):
        torch.compiler.reset()
        layer = make(kind, iterations=2, compatibility="full", learn=LEARNED).to(device)
        given = on(device, inputs(kind))
        names = [name for name, value in given.items() if value.is_floating_point()]
        for name in names:
            given[name].requires_grad_()
        sought = [*(given[name] for name in names), *layer.parameters()]
        gradient = torch.randn_like(given["logits"])
        results = []
        # A sparse tensor is checked and indexed in Python, outside of the graph.
        for function in (layer, torch.compile(layer, fullgraph=kind != "voxels")):
            refined = call(kind, function, given)
            results.append((refined, *torch.autograd.grad(refined, sought, gradient)))
        for expected, result in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
    def test_several_are_compiled_and_subclasses_too(self, kind):
        torch.compiler.reset()
        given = inputs(kind)

        class Mine(_LAYER[kind]):
            pass

        for tolerance in (0.5, 0.05, None):
            layer = make(kind, tolerance=tolerance, learn=())
            mine = Mine(3, **_BANDWIDTHS[kind], tolerance=tolerance, learn=())
            for each in (layer, mine):
                compiled = torch.compile(each, fullgraph=kind != "voxels")
                torch.testing.assert_close(call(kind, compiled, given), call(kind, each, given))

    def test_the_compiled_operation(self, kind):
        layer, given = make(kind, iterations=2), inputs(kind)
        logits = given.pop("logits").requires_grad_()
        arguments = (logits, list(given.values()), list(layer.parameters()), layer._description(list(given)))
        torch.library.opcheck(torch.ops.hdcrf.crf.default, arguments)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_not_finite(self, kind, bad):
        layer, given = make(kind), inputs(kind)
        for name, value in given.items():
            if value.is_floating_point():
                damaged = value.clone()
                damaged.view(-1)[5] = bad
                with pytest.raises(ValueError, match=rf"`{name}` must be finite, got {bad} at index"):
                    call(kind, layer, {**given, name: damaged})

    def test_wrong_dtypes_and_shapes(self, kind):
        layer, given = make(kind), inputs(kind)
        if kind != "voxels":
            with pytest.raises(TypeError, match=r"`logits` must be float32 or float64, got torch\.int64"):
                layer(**{**given, "logits": given["logits"].long()})
            with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got ndarray"):
                layer(**{**given, "logits": given["logits"].numpy()})
        with pytest.raises(ValueError, match="K = 3"):
            call(kind, layer, {**given, "logits": given["logits"][:, :2]})

    def test_sigmas_too_small_are_named(self, kind):
        for name in _BANDWIDTHS[kind]:
            if name == "smoothness_sigma" and kind != "points":  # a separable filter has no coordinates
                continue
            layer = make(kind, **{name: 1e-9})
            with pytest.raises(
                CoordinateRangeError, match=rf"`{name}`=1e-09 is too small: \w+ \d+ would lie"
            ):
                call(kind, layer, inputs(kind))

    def test_wrong_options(self, kind):
        with pytest.raises(ValueError, match="`iterations` must be at least 0"):
            make(kind, iterations=-1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'iteration'"):
            make(kind, iteration=3)
        for name in _BANDWIDTHS[kind]:
            with pytest.raises(ValueError, match=f"`{name}` must be a finite number greater than 0, got -1"):
                make(kind, **{name: -1.0})

    def test_the_description_names_the_model(self, kind):
        assert "iterations=5, method=permutohedral" in repr(make(kind))

    def test_every_option_is_known(self, kind):
        shared = set(inspect.signature(hdcrf.crf_layer.CRFLayer).parameters) - {
            "weights",
            "bandwidths",
            "optional",
        }
        assert set(hdcrf.crf_layer.Options.__annotations__) == shared - {"num_labels"}


# Sparse tensors hold float32 and float64 only, to which sparse convolutions come back.
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "voxels"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(kind, device, dtype):
    """A network in half precision before it: the layer computes in float32 and casts the result back."""
    layer, given = make(kind, output="logits").to(device), on(device, inputs(kind))
    given["logits"] = given["logits"].to(dtype)
    expected = call(kind, layer, {**given, "logits": given["logits"].float()})
    given["logits"].requires_grad_()
    with torch.autocast(device.type, dtype=dtype):
        refined = call(kind, layer, given)
    assert refined.dtype == dtype
    assert torch.equal(refined, expected.to(dtype))
    refined.float().square().sum().backward()
    assert bool(torch.isfinite(given["logits"].grad).all())


def test_nearest_cubes_have_no_gradient_for_features():
    given, message = (
        inputs("voxels"),
        "method='voxel' has no gradient for bandwidths and guides in 7 dimensions",
    )
    layer = make("voxels", method="voxel", learn=("weights", "bandwidths"))
    with pytest.raises(ValueError, match=message):
        call("voxels", layer, given)
    with torch.no_grad():
        call("voxels", layer, given)
    layer = make("voxels", method="voxel")
    with pytest.raises(ValueError, match=message):
        call("voxels", layer, {**given, "colours": given["colours"].clone().requires_grad_()})


@pytest.mark.slow
def test_gradcheck_on_cubes_in_few_dimensions():
    """Points in 5D and voxels in 6D, where cubes are linear."""
    points = inputs("points", torch.float64)
    few = {name: points[name] for name in ("logits", "positions", "colours")}
    without = {"appearance_sigma_normal": None, "appearance_sigma_intensity": None}
    layer = make("points", iterations=3, method="voxel", **without).double()
    assert torch.autograd.gradcheck(
        lambda *values: layer(**dict(zip(few, values, strict=True))),
        [value.clone().requires_grad_() for value in few.values()], eps=1e-7, atol=1e-5,
    )  # fmt: skip
    voxels = inputs("voxels", torch.float64)
    layer = make("voxels", iterations=3, method="voxel").double()

    def run(logits, colours):
        return call("voxels", layer, {**voxels, "logits": logits, "colours": colours})

    tensors = [voxels["logits"].clone(), voxels["colours"][:, :2].clone()]
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in tensors], eps=1e-7, atol=1e-5)


def test_mixed_precision_before_voxels():
    """A linear classifier in half precision, whose features come back in single precision."""
    given = inputs("voxels")
    voxels = SparseTensor(given["coordinates"], given["colours"])
    classifier, layer = torch.nn.Linear(3, 3), make("voxels", output="logits")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = layer(voxels.map(classifier), voxels)
    assert refined.features.dtype == torch.float32
    refined.features.square().sum().backward()
    assert bool(torch.isfinite(classifier.weight.grad).all())


@pytest.mark.parametrize("kind", ["image", "points", "voxels"])
def test_colours_of_another_range_are_pointed_out(kind):
    name = "sigma_rgb" if kind == "voxels" else "appearance_sigma_rgb"
    with pytest.warns(UserWarning, match=rf"{name}=13 is in its units, so its values hardly matter"):
        call(kind, make(kind, **{name: 13.0}), inputs(kind))


def test_the_layers_share_their_defaults():
    shared = inspect.signature(hdcrf.crf_layer.CRFLayer).parameters
    for name, parameter in inspect.signature(DenseCRF).parameters.items():
        if name in shared:
            assert parameter.default == shared[name].default, name


def test_the_range_warning_points_to_who_called():
    layer, guide = DenseCRF(2), torch.rand(1, 3, 4, 4)
    for run in (layer, layer.infer):
        with pytest.warns(UserWarning, match="hardly matter") as caught:
            run(torch.rand(1, 2, 4, 4), guide)
        assert caught[0].filename == __file__


@pytest.mark.slow
def test_two_processes_train_alike(tmp_path):
    """Under DistributedDataParallel, the parameters of both processes are the same bits after ten steps."""
    first, second, start = train_in_two_processes(tmp_path)
    assert first.keys() == start.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert not torch.equal(value, start[name])


def test_the_tests_cover_every_layer():
    found = {
        value
        for value in vars(hdcrf).values()
        if inspect.isclass(value) and issubclass(value, hdcrf.crf_layer.CRFLayer)
    }
    assert found == set(_LAYER.values())


class TestPoints:
    def test_duplicate_points_are_two_points(self):
        given = item("points", inputs("points"), 0)
        twice = {name: torch.cat([value, value]) for name, value in given.items()}
        result = make("points", learn=())(**twice)
        torch.testing.assert_close(result[:9], result[9:])
        # They see each other, so they are surer than one alone.
        assert not torch.allclose(result[:9], make("points", learn=())(**given), atol=1e-3)

    def test_batch_numbers_may_have_gaps(self):
        given = inputs("points")
        layer = make("points", learn=())
        torch.testing.assert_close(layer(**{**given, "batch": 7 * given["batch"]}), layer(**given))

    def test_integer_colours(self):
        given = inputs("points")
        given["colours"] = (given["colours"] * 255).round()
        layer = make("points", appearance_sigma_rgb=90.0, learn=())
        assert torch.equal(layer(**{**given, "colours": given["colours"].byte()}), layer(**given))

    @pytest.mark.parametrize("name", ["colours", "normals", "intensities"])
    def test_what_a_sigma_asks_for(self, name):
        given = inputs("points")
        sigma = {"colours": "rgb", "normals": "normal", "intensities": "intensity"}[name]
        without = {key: value for key, value in given.items() if key != name}
        with pytest.raises(
            ValueError, match=f"`{name}` are needed, as the layer has an appearance_sigma_{sigma}"
        ):
            make("points")(**without)
        with pytest.raises(
            ValueError, match=f"`{name}` are given, but the layer has appearance_sigma_{sigma}=None"
        ):
            make("points", **{f"appearance_sigma_{sigma}": None})(**given)

    def test_attributes_are_checked_even_if_no_kernel_uses_them(self):
        given = inputs("points")
        layer = make("points", appearance_weight=0, smoothness_weight=0, learn=())
        with pytest.raises(
            ValueError, match=r"`positions` must have shape \(N, 3\) = \(18, 3\), got \(18, 2\)"
        ):
            layer(**{**given, "positions": given["positions"][:, :2]})
        with pytest.raises(ValueError, match=r"`normals` must have shape \(N, 3\)"):
            layer(**{**given, "normals": given["normals"][:, :2]})
        with pytest.raises(ValueError, match="`colours` must be finite"):
            layer(**{**given, "colours": given["colours"] * torch.nan})

    def test_rows_that_do_not_match(self):
        given = inputs("points")
        with pytest.raises(ValueError, match="`positions` must have 18 rows to match `logits`"):
            make("points")(**{**given, "positions": given["positions"][1:]})
        with pytest.raises(ValueError, match=r"`batch` must have shape \(18,\)"):
            make("points")(**{**given, "batch": given["batch"][1:]})
        with pytest.raises(ValueError, match="`logits` must have a point at least"):
            make("points")(**{name: value[:0] for name, value in given.items()})


class TestVoxels:
    def test_coordinates_must_match(self):
        given = inputs("voxels")
        voxels = SparseTensor(given["coordinates"], given["colours"])
        other = SparseTensor(given["coordinates"].flip(0), given["logits"])
        with pytest.raises(ValueError, match="`colours` must have the coordinates of `logits`"):
            make("voxels")(other, voxels)
        with pytest.raises(TypeError, match=r"`logits` must be a voxel\.SparseTensor, got Tensor"):
            make("voxels")(given["logits"], voxels)
        with pytest.raises(ValueError, match="`logits` must have a voxel at least"):
            make("voxels")(
                SparseTensor(given["coordinates"][:0], given["logits"][:0]),
                SparseTensor(given["coordinates"][:0], given["colours"][:0]),
            )
