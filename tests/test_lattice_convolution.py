"""Learned permutohedral convolution: its taps, the sum over them, and the layers, against plain loops."""

import itertools

import pytest
import torch
from oracles import cloud, gaussian, inside_cells, moved, relative_error, simplex_axes

from lattice import BilateralConv, PermutohedralConv, PermutohedralLattice, neighbourhood_lattice
from lattice.learned_convolution import convolve
from lattice.neighbourhood import (
    gaussian_taps,
    neighbourhood_offsets,
    neighbourhood_scale,
    neighbourhood_steps,
    opposite_taps,
    own_taps,
    tap_pairs,
)

every_size = pytest.mark.parametrize(
    ("dimension", "neighbourhood"), [(1, 0), (1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (5, 1)]
)


def plain_offsets(dimension, neighbourhood):
    """Return the offsets as tuples of all d + 1 coordinates, in the order of their step counts."""
    offsets = []
    for steps in itertools.product(range(neighbourhood + 1), repeat=dimension + 1):
        if min(steps) == 0:
            offset = (0,) * (dimension + 1)
            for axis, count in zip(simplex_axes(dimension), steps, strict=True):
                offset = moved(offset, axis, count)
            offsets.append(offset)
    return offsets


def plain_convolution(lattice, values, weight, neighbourhood, groups=1):
    """Go from each vertex to each of its neighbours, and multiply each channel of a group by each."""
    ahead = () if lattice.batch is None else (0,)
    places = {tuple(row): i for i, row in enumerate(lattice.structure.coordinates.tolist())}
    values, weight = values.cpu(), weight.cpu()
    outputs, inputs = weight.shape[2] // groups, weight.shape[1]
    result = torch.zeros(len(places), weight.shape[2], dtype=values.dtype)
    for place, v in places.items():
        for tap, offset in enumerate(plain_offsets(lattice.dimension, neighbourhood)):
            u = places.get(moved(place, (*ahead, *offset[:-1])))
            if u is None:
                continue
            for group in range(groups):
                mine = slice(group * outputs, (group + 1) * outputs)
                theirs = slice(group * inputs, (group + 1) * inputs)
                result[v, mine] += values[u, theirs] @ weight[tap][:, mine]
    return result


class TestNeighbourhood:
    @every_size
    def test_offsets_equal_the_sums_of_steps(self, dimension, neighbourhood):
        offsets = neighbourhood_offsets(dimension, neighbourhood)
        assert offsets.dtype == torch.int64
        expected = plain_offsets(dimension, neighbourhood)
        assert offsets.tolist() == [list(offset[:-1]) for offset in expected]
        assert len(set(expected)) == (neighbourhood + 1) ** (dimension + 1) - neighbourhood ** (dimension + 1)
        assert not offsets[0].any()

    @every_size
    def test_is_closed_under_negation(self, dimension, neighbourhood):
        offsets = neighbourhood_offsets(dimension, neighbourhood)
        opposite = opposite_taps(dimension, neighbourhood)
        assert torch.equal(offsets[opposite], -offsets)
        assert torch.equal(opposite[opposite], torch.arange(len(offsets)))

    def test_size_one_is_the_simplices_around_a_vertex(self):
        """The offsets are the corners of all simplices that have the vertex as a corner."""
        points = PermutohedralLattice(1e-3 * torch.randn(2000, 2, dtype=torch.float64))
        around = {tuple(row) for row in points.structure.coordinates.tolist()}
        assert around == {tuple(row) for row in neighbourhood_offsets(2, 1).tolist()}

    @pytest.mark.parametrize("dimension", [1, 2, 3, 4])
    def test_gaussian_taps_are_the_blur_of_one_vertex(self, dimension):
        whole = PermutohedralLattice(torch.zeros(1, dimension, dtype=torch.float64), halo=dimension + 1)
        one = torch.ones(1, 1, dtype=torch.float64)
        blurred = whole.blur(whole.splat(one))[whole.index.lookup(neighbourhood_offsets(dimension, 2))]
        weights, variance = gaussian_taps(dimension, 2)
        torch.testing.assert_close(weights, blurred[:, 0], rtol=0, atol=1e-16)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-15)
        assert variance == pytest.approx(0.5, abs=1e-15)

        largest = neighbourhood_steps(dimension, 2).amax(1)
        kept = blurred[largest <= 1, 0]
        torch.testing.assert_close(gaussian_taps(dimension, 1)[0], kept / kept.sum(), rtol=1e-14, atol=0)
        wider = torch.zeros(len(neighbourhood_steps(dimension, 3)), dtype=torch.float64)
        wider[neighbourhood_steps(dimension, 3).amax(1) <= 2] = blurred[:, 0]
        torch.testing.assert_close(gaussian_taps(dimension, 3)[0], wider, rtol=0, atol=1e-16)

    @every_size
    def test_variance_is_that_of_the_offsets(self, dimension, neighbourhood):
        weights, variance = gaussian_taps(dimension, neighbourhood)
        offsets = torch.tensor(plain_offsets(dimension, neighbourhood), dtype=torch.float64)
        offsets = offsets / (dimension + 1)
        covariance = offsets.T @ (weights[:, None] * offsets)
        # Alike along every direction of the plane, and none across it.
        expected = variance * (torch.eye(dimension + 1, dtype=torch.float64) - 1 / (dimension + 1))
        torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-14)

    def test_no_neighbours(self):
        weights, variance = gaussian_taps(2000, 0)
        assert weights.tolist() == [1.0]
        assert variance == 0

    @pytest.mark.parametrize("batched", [False, True])
    @pytest.mark.parametrize("neighbourhood", [0, 1, 2])
    def test_pairs_equal_a_search(self, device, backend, batched, neighbourhood):
        batch = torch.arange(20, device=device) % 2 if batched else None
        lattice = PermutohedralLattice(cloud(20, 2, spread=0.7, device=device), batch=batch, backend=backend)
        places = {tuple(row): i for i, row in enumerate(lattice.structure.coordinates.tolist())}
        pairs = tap_pairs(lattice, neighbourhood)
        for offset, (source, target) in zip(plain_offsets(2, neighbourhood), pairs, strict=True):
            step = (*((0,) if batched else ()), *offset[:-1])
            expected = {
                (places[moved(place, step)], row)
                for place, row in places.items()
                if moved(place, step) in places
            }
            found = list(zip(source.tolist(), target.tolist(), strict=True))
            assert len(found) == len(expected)
            assert set(found) == expected
        assert tap_pairs(lattice, neighbourhood) is pairs

    def test_pairs_of_the_opposite_tap_are_the_same_vectors(self):
        pairs = tap_pairs(PermutohedralLattice(cloud(20, 3)), 1)
        for tap, other in enumerate(opposite_taps(3, 1).tolist()):
            if tap != other:
                assert pairs[tap][0] is pairs[other][1]

    @pytest.mark.parametrize("neighbourhood", [0, 1, 2])
    @pytest.mark.parametrize("dimension", [1, 2, 3])
    def test_own_taps_are_what_comes_back(self, device, backend, dimension, neighbourhood):
        features = cloud(8, dimension, device=device)
        lattice = PermutohedralLattice(features, backend=backend)
        columns, coefficients = own_taps(lattice, neighbourhood)
        taps = len(neighbourhood_steps(dimension, neighbourhood))
        assert len(columns) == (2 ** (dimension + 1) - 1 if neighbourhood else 1)
        mine = torch.zeros(8, taps, dtype=torch.float64, device=device)
        mine[:, columns] = coefficients
        splatted = lattice.splat(torch.eye(8, dtype=torch.float64, device=device))
        for tap in range(taps):
            weight = torch.zeros(taps, 1, 8, dtype=torch.float64, device=device)
            weight[tap] = 1
            through = lattice.slice(convolve(lattice, splatted, weight, neighbourhood, groups=8))
            torch.testing.assert_close(mine[:, tap], through.diagonal(), rtol=0, atol=1e-15)

    def test_gradients_of_own_taps(self, backend):
        features = inside_cells(PermutohedralLattice, 5, 2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda f: own_taps(PermutohedralLattice(f, backend=backend), 1)[1], features
        )

    # Measured: masses 0.981 (size 0, three dimensions) and 0.9975 … 1.0003 (all others), variances
    # 0.995 … 1.007 of the exact ones.
    @pytest.mark.parametrize("neighbourhood", [0, 1, 2])
    @pytest.mark.parametrize("dimension", [1, 2, 3])
    def test_gaussian_weights_approximate_the_exact_sum(self, dimension, neighbourhood):
        """Both the mass and the variance, over uniformly spread points."""
        generator = torch.Generator().manual_seed(0)
        points, side = {1: (4000, 40.0), 2: (10000, 14.0), 3: (20000, 10.0)}[dimension]
        features = side * torch.rand(points, dimension, generator=generator, dtype=torch.float64)
        query = 4 + (side - 8) * torch.rand(400, dimension, generator=generator, dtype=torch.float64)
        lattice, constant = neighbourhood_lattice(features, neighbourhood)
        weights, _variance = gaussian_taps(dimension, neighbourhood)
        values = torch.cat([torch.ones_like(features[:, :1]), features, features.square()], 1)
        channels = values.shape[1]
        taps = weights[:, None, None].expand(-1, 1, channels)
        convolved = convolve(lattice, lattice.splat(values), taps, neighbourhood, groups=channels)
        scale = neighbourhood_scale(dimension, neighbourhood)
        result = constant * lattice.slice(convolved, query * scale)
        expected = gaussian(query, features) @ values

        def spread(sums):
            """Return Σ_j K_ij |f_j - f_i|² / Σ_j K_ij per dimension, on average."""
            mass, first, second = sums.split([1, dimension, dimension], 1)
            return float((query.square() + (second - 2 * query * first) / mass).mean())

        mass = float(result[:, 0].mean() / expected[:, 0].mean())
        assert mass == pytest.approx(1, abs=0.03)
        assert spread(result) / spread(expected) == pytest.approx(1, abs=0.02)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((0, 1), ValueError, "`dimension` must be at least 1"),
            ((2.0, 1), TypeError, "`dimension` must be an integer"),
            ((2, -1), ValueError, "`neighbourhood` must be at least 0"),
            ((2, 256), ValueError, "`neighbourhood` must be at most 255"),
            ((2, True), TypeError, "`neighbourhood` must be an integer"),
            (
                (5, 6),
                ValueError,
                "`neighbourhood` 6 in 5 dimensions has 70,993 taps, of which at most 65,536",
            ),
            ((20, 1), ValueError, "has 2,097,151 taps"),
            ((10**9, 9), ValueError, r"has about 10\^1000000001 taps"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            neighbourhood_offsets(*arguments)


class TestConvolve:
    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize(("dimension", "neighbourhood"), [(1, 2), (2, 1), (2, 2), (3, 1), (4, 1)])
    @pytest.mark.parametrize("batched", [False, True])
    def test_equals_a_loop_over_the_vertices(
        self, device, backend, dimension, neighbourhood, groups, batched
    ):
        batch = torch.arange(12, device=device) % 2 if batched else None
        lattice = PermutohedralLattice(cloud(12, dimension, device=device), batch=batch, backend=backend)
        values = torch.randn(lattice.num_vertices, 4, dtype=torch.float64, device=device)
        taps = len(neighbourhood_steps(dimension, neighbourhood))
        weight = torch.randn(taps, 4 // groups, 8 // groups * groups, dtype=torch.float64, device=device)
        result = convolve(lattice, values, weight, neighbourhood, groups=groups)
        expected = plain_convolution(lattice, values, weight, neighbourhood, groups)
        torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("dimension", [1, 2, 3])
    def test_gaussian_weights_are_the_blur_where_no_vertex_is_missing(self, device, dimension):
        features = cloud(4, dimension, device=device)
        lattice = PermutohedralLattice(features, halo=dimension + 1)
        conv = PermutohedralConv(2, 2, dimension, neighbourhood=2, initial="gaussian").double().to(device)
        values = torch.randn(lattice.num_vertices, 2, dtype=torch.float64, device=device)
        reached = torch.zeros(lattice.num_vertices, dtype=torch.int64, device=device)
        for _source, target in tap_pairs(lattice, 2):
            reached[target] += 1
        inside = reached == len(conv.weight)
        assert 0 < int(inside.sum()) < lattice.num_vertices
        # Worst seen: 4e-16.
        torch.testing.assert_close(
            conv(lattice, values)[inside], lattice.blur(values)[inside], rtol=0, atol=1e-14
        )
        # With as many rings, no vertex is missing around the corners of any point.
        values = cloud(4, 2, seed=1, device=device)
        expected = lattice.filter(values)
        result = lattice.constant * lattice.slice(conv(lattice, lattice.splat(values)))
        torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize(
        ("weight", "groups", "error", "message"),
        [
            (
                torch.ones(6, 2, 3),
                1,
                ValueError,
                r"with O = 7 taps, C_in = 2 and groups = 1, .* got \(6, 2, 3\)",
            ),
            (torch.ones(7, 2, 3), 2, ValueError, "`weight` must have shape"),
            (torch.ones(7, 1, 3), 2, ValueError, "`weight` must have shape"),
            (torch.ones(7, 2), 1, ValueError, "`weight` must have shape"),
            (torch.ones(7, 2, 3).double(), 1, TypeError, "`weight` must have the dtype of `vertex_values`"),
            (torch.ones(7, 2, 3).long(), 1, TypeError, "`weight` must be float32 or float64"),
            (torch.ones(7, 2, 3), 0, ValueError, "`groups` must be at least 1"),
        ],
    )
    def test_errors(self, weight, groups, error, message):
        lattice = PermutohedralLattice(torch.zeros(1, 2))
        with pytest.raises(error, match=message):
            convolve(lattice, torch.ones(3, 2), weight, 1, groups=groups)
        with pytest.raises(TypeError, match=r"`lattice` must be a lattice\.PermutohedralLattice, got Tensor"):
            convolve(torch.ones(3, 2), torch.ones(3, 2), weight, 1)
        with pytest.raises(ValueError, match=r"`vertex_values` must have shape \(V, C_in\) with 3 rows"):
            convolve(lattice, torch.ones(4, 2), weight, 1)


class TestPermutohedralConv:
    def test_bias_is_added_to_every_vertex(self):
        lattice = PermutohedralLattice(cloud(5, 2))
        conv = PermutohedralConv(1, 3, 2, initial="zero").double()
        conv.bias.data = torch.randn(3, dtype=torch.float64)
        result = conv(lattice, torch.ones(lattice.num_vertices, 1, dtype=torch.float64))
        assert torch.equal(result, conv.bias.expand(lattice.num_vertices, 3))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_initial_gaussian_takes_each_channel_by_itself(self, groups):
        conv = PermutohedralConv(4, 4, 2, groups=groups, initial="gaussian")
        lattice = PermutohedralLattice(cloud(9, 2, dtype=torch.float32))
        values = torch.randn(lattice.num_vertices, 4)
        taps = gaussian_taps(2, 1)[0].float()[:, None, None]
        expected = torch.cat([convolve(lattice, one, taps, 1) for one in values.split(1, 1)], 1)
        torch.testing.assert_close(conv(lattice, values), expected)
        assert not conv.bias.any()

    def test_initial_parameters(self):
        conv = PermutohedralConv(6, 40, 2, groups=2)
        bound = (7 * 3) ** -0.5
        for parameter in conv.parameters():
            assert 0.9 * bound < parameter.abs().max() <= bound
        assert not any(
            parameter.any() for parameter in PermutohedralConv(6, 4, 2, initial="zero").parameters()
        )
        assert PermutohedralConv(6, 4, 2, bias=False).bias is None
        assert set(conv.state_dict()) == {"weight", "bias"}

    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"in_channels": 0}, ValueError, "`in_channels` must be at least 1"),
            ({"out_channels": 1.0}, TypeError, "`out_channels` must be an integer"),
            ({"dimension": 0}, ValueError, "`dimension` must be at least 1"),
            ({"neighbourhood": -1}, ValueError, "`neighbourhood` must be at least 0"),
            ({"groups": 3}, ValueError, "`groups` must divide in_channels, 2, and out_channels, 4, got 3"),
            ({"groups": 0}, ValueError, "`groups` must be at least 1"),
            ({"bias": 1}, TypeError, "`bias` must be True or False"),
            ({"initial": "identity"}, ValueError, "`initial` must be one of 'uniform', 'gaussian', 'zero'"),
            ({"initial": "gaussian"}, ValueError, "as many out_channels as in_channels, 2, got 4"),
            ({"dimension": 30}, ValueError, "`neighbourhood` 1 in 30 dimensions has 2,147,483,647 taps"),
            (
                {"dimension": 14, "in_channels": 1000, "out_channels": 1000},
                ValueError,
                "has 32,767 taps, whose weights would take 122.1 GiB, more than 16",
            ),
        ],
    )
    @pytest.mark.parametrize("layer", [PermutohedralConv, BilateralConv])
    def test_constructor_errors(self, layer, changed, error, message):
        with pytest.raises(error, match=message):
            layer(**{"in_channels": 2, "out_channels": 4, "dimension": 2, **changed})

    def test_input_errors(self):
        lattice, values = PermutohedralLattice(torch.zeros(1, 2)), torch.ones(3, 2)
        conv = PermutohedralConv(2, 1, 2)
        with pytest.raises(TypeError, match=r"`lattice` must be a lattice\.PermutohedralLattice, got Tensor"):
            conv(values, values)
        with pytest.raises(ValueError, match="`lattice` must have dimension 3, got 2"):
            PermutohedralConv(2, 1, 3)(lattice, values)
        with pytest.raises(ValueError, match="`vertex_values` must have 4 channels, got 2"):
            PermutohedralConv(4, 1, 2)(lattice, values)
        with pytest.raises(
            TypeError, match=r"`vertex_values` must have the dtype of `weight`, torch.float64"
        ):
            PermutohedralConv(2, 1, 2).double()(lattice, values)
        with pytest.raises(ValueError, match="`vertex_values` must be on the device of `weight`, meta"):
            PermutohedralConv(2, 1, 2).to("meta")(lattice, values)
        with pytest.raises(ValueError, match=r"`vertex_values` must have shape \(V, C_in\)"):
            conv(lattice, values[0])
        with pytest.raises(ValueError, match=r"must have shape \(V, C_in\) with 3 rows, got \(2, 2\)"):
            conv(lattice, values[:2])

    def test_repr(self):
        shown = repr(PermutohedralConv(4, 6, 3, groups=2))
        assert shown == "PermutohedralConv(4, 6, taps=15, dimension=3, neighbourhood=1, groups=2)"
        shown = repr(BilateralConv(4, 6, 3))
        assert shown == (
            "BilateralConv(4, 6, taps=15, dimension=3, neighbourhood=1, groups=1, normalization='after')"
        )


def ring_sum(query, features, values):
    """Return Σ_j k(‖q_i - f_j‖) v_j for a ring of radius 3 and width 1."""
    return torch.exp(-0.5 * (torch.cdist(query, features) - 3).square()) @ values


every_normalization = pytest.mark.parametrize("normalization", ["none", "after"])


class TestBilateralConv:
    @every_normalization
    @pytest.mark.parametrize(("dimension", "neighbourhood"), [(1, 1), (2, 0), (2, 1), (2, 2), (3, 1)])
    def test_is_splat_convolve_slice(self, device, dimension, neighbourhood, normalization):
        features, values = cloud(30, dimension, device=device), cloud(30, 2, seed=1, device=device)
        query = cloud(7, dimension, seed=2, device=device)
        layer = BilateralConv(2, 3, dimension, neighbourhood=neighbourhood, normalization=normalization)
        layer = layer.double().to(device)
        lattice, constant = neighbourhood_lattice(features, neighbourhood)

        def through(values, weight, at):
            return lattice.slice(plain_convolution(lattice, lattice.splat(values), weight, neighbourhood), at)

        taps = gaussian_taps(dimension, neighbourhood)[0].to(device)[:, None, None]
        for at in (None, query):
            scaled = None if at is None else at * neighbourhood_scale(dimension, neighbourhood)
            expected = through(values, layer.weight, scaled)
            if normalization == "none":
                expected = constant * expected
            else:
                degree = through(torch.ones_like(values[:, :1]), taps, scaled)
                expected = expected / torch.where(degree > 0, degree, 1)
            result = layer(values, features, query=at)
            # Worst seen, relative to the largest: 1e-15.
            torch.testing.assert_close(result, expected + layer.bias, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("neighbourhood", [0, 1, 2])
    def test_gaussian_keeps_a_constant(self, neighbourhood):
        layer = BilateralConv(2, 2, 3, neighbourhood=neighbourhood, initial="gaussian").double()
        ones = torch.ones(50, 2, dtype=torch.float64)
        # The weights were drawn in float32, which holds the taps to 6e-8.
        torch.testing.assert_close(layer(ones, cloud(50, 3)), ones, rtol=0, atol=1e-7)

    @every_normalization
    def test_gradients(self, device, normalization):
        layer = BilateralConv(2, 2, 2, normalization=normalization).double().to(device)
        places = inside_cells(lambda f: neighbourhood_lattice(f, 1)[0], 8, 2, device=device)
        values = cloud(5, 2, seed=1, device=device)

        def run(values, features, query, weight, bias):
            parameters = {"weight": weight, "bias": bias}
            return torch.func.functional_call(layer, parameters, (values, features), {"query": query})

        arguments = (values, places[:5], places[5:], layer.weight, layer.bias)
        assert torch.autograd.gradcheck(run, [x.detach().clone().requires_grad_() for x in arguments])

    @every_normalization
    def test_batch_equals_its_items(self, device, normalization):
        layer = BilateralConv(2, 3, 2, normalization=normalization).double().to(device)
        features, values = cloud(30, 2, device=device), cloud(30, 2, seed=1, device=device)
        batch = torch.randint(0, 3, (30,), device=device)
        query, query_batch = cloud(9, 2, seed=2, device=device), torch.arange(9, device=device) % 3
        together = layer(values, features, batch=batch)
        asked = layer(values, features, batch=batch, query=query, query_batch=query_batch)
        for item in range(3):
            mine, theirs = batch == item, query_batch == item
            alone = layer(values[mine], features[mine])
            torch.testing.assert_close(together[mine], alone, rtol=0, atol=1e-13)
            alone = layer(values[mine], features[mine], query=query[theirs])
            torch.testing.assert_close(asked[theirs], alone, rtol=0, atol=1e-13)

    @every_normalization
    def test_permuted_points_give_the_permuted_result(self, device, normalization):
        layer = BilateralConv(2, 3, 3, normalization=normalization).double().to(device)
        features, values = cloud(40, 3, device=device), cloud(40, 2, seed=1, device=device)
        order = torch.randperm(40, device=device)
        result = layer(values[order], features[order])
        torch.testing.assert_close(result, layer(values, features)[order], rtol=0, atol=1e-13)

    @every_normalization
    def test_few_points(self, device, normalization):
        layer = BilateralConv(2, 3, 2, normalization=normalization).to(device)
        nothing = torch.empty(0, 2, device=device)
        empty = layer(nothing, nothing)
        assert empty.shape == (0, 3)
        empty.sum().backward()
        one, far = torch.zeros(1, 2, device=device), torch.full((1, 2), 100.0, device=device)
        torch.testing.assert_close(layer(nothing, nothing, query=one), layer.bias[None])
        torch.testing.assert_close(layer(one + 1, one, query=far), layer.bias[None])
        alone = layer(one + 1, one)  # on a vertex: it sees itself alone
        lattice, constant = neighbourhood_lattice(one, 1)
        weights = (constant if normalization == "none" else 1 / gaussian_taps(2, 1)[0][0]) * layer.weight[0]
        torch.testing.assert_close(alone, weights.sum(0)[None] + layer.bias)
        assert lattice.num_vertices == 3

    def test_one_vertex(self):
        """A lattice whose other corners were not stored, as no public way builds it: one tap is left."""
        lattice = PermutohedralLattice(torch.zeros(1, 2))
        first = lattice.structure.coordinates[:1]
        lattice.__dict__["index"] = type(lattice.index)(first)
        assert [len(source) for source, _ in tap_pairs(lattice, 1)] == [1, 0, 0, 0, 0, 0, 0]

    def test_memory_layout_does_not_matter(self, device):
        layer = BilateralConv(3, 2, 2).double().to(device)
        features, values = cloud(20, 2, device=device), cloud(20, 3, seed=1, device=device)
        expected = layer(values, features, query=features[:5])
        turned = [t.T.contiguous().T for t in (values, features, features[:5])]
        layer.weight.data = layer.weight.data.transpose(1, 2).contiguous().transpose(1, 2)
        assert not any(t.is_contiguous() for t in (*turned, layer.weight))
        result = layer(*turned[:2], query=turned[2])
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)

    def test_trained_after_inference_mode(self):
        """What inference mode made for a lattice must not keep autograd from using it later."""
        lattice = PermutohedralLattice(cloud(9, 2, dtype=torch.float32))
        conv = PermutohedralConv(1, 1, 2)
        values = torch.ones(lattice.num_vertices, 1)
        with torch.inference_mode():
            expected = conv(lattice, values)
        result = conv(lattice, values)
        result.sum().backward()
        assert torch.equal(result, expected)

    @every_normalization
    def test_float32_is_close_to_float64(self, device, normalization):
        layer = BilateralConv(3, 3, 3, normalization=normalization).double().to(device)
        features, values = cloud(300, 3, device=device), cloud(300, 3, seed=1, device=device)
        expected = layer(values, features).detach()
        result = layer.float()(values.float(), features.float()).detach()
        assert result.dtype == torch.float32
        # Measured: 2e-7 and 3e-7.
        assert relative_error(result.double(), expected) < 3e-6

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_autocast_changes_nothing(self, groups):
        layer = BilateralConv(4, 4, 2, groups=groups)
        inputs = cloud(20, 4, dtype=torch.float32), cloud(20, 2, seed=1, dtype=torch.float32)

        def run(mixed):
            values, features = (x.clone().requires_grad_() for x in inputs)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                result = layer(values, features)
            wanted = (values, features, *layer.parameters())
            return result, *torch.autograd.grad(result.square().sum(), wanted)

        expected, mixed = run(False), run(True)
        assert all(torch.equal(*both) for both in zip(mixed, expected, strict=True))

    @pytest.mark.default_algorithms
    def test_is_reproducible(self):
        layer = BilateralConv(8, 8, 3)
        features, values = cloud(500, 3, dtype=torch.float32), cloud(500, 8, seed=1, dtype=torch.float32)
        first = torch.autograd.grad(layer(values, features).square().sum(), layer.weight)[0]
        second = torch.autograd.grad(layer(values, features).square().sum(), layer.weight)[0]
        assert torch.equal(first, second)

    def test_learns_a_ring(self):
        """A kernel that no Gaussian comes near: fitted, it carries over to new points, values and queries.

        Fitted to 12 clouds of 2,000 points with 217 weights. Relative error measured on a new cloud: 0.028;
        of the Gaussian that is scaled to fit best, 0.96.
        """
        zoom, taps = 1.5, 217
        common = {"neighbourhood": 8, "bias": False, "normalization": "none"}

        def draw(seed):
            generator = torch.Generator().manual_seed(seed)
            features, query = 12 * torch.rand(2, 2000, 2, generator=generator, dtype=torch.float64)
            return features, query, torch.randn(2000, 1, generator=generator, dtype=torch.float64)

        every_tap = BilateralConv(1, taps, 2, **common).double()
        every_tap.weight.data = torch.eye(taps, dtype=torch.float64)[:, None]
        responses, sums = [], []
        with torch.no_grad():
            for seed in range(12):
                features, query, values = draw(seed)
                responses.append(every_tap(values, zoom * features, query=zoom * query))
                sums.append(ring_sum(query, features, values))
        layer = BilateralConv(1, 1, 2, **common).double()
        layer.weight.data = torch.linalg.lstsq(torch.cat(responses), torch.cat(sums)).solution[:, None]

        features, query, values = draw(100)
        expected = ring_sum(query, features, values)
        gaussian_layer = BilateralConv(1, 1, 2, initial="gaussian", **common).double()
        with torch.no_grad():
            result = layer(values, zoom * features, query=zoom * query)
            blurred = gaussian_layer(values, features, query=query)
        assert relative_error(result, expected) < 0.05
        best = blurred * (blurred * expected).sum() / blurred.square().sum()
        assert relative_error(best, expected) > 0.9

    def test_learns_by_gradients(self):
        """From zero to what the weights that made the data do; measured: 3e-5."""
        features, values = cloud(200, 2), cloud(200, 2, seed=1)
        teacher, pupil = BilateralConv(2, 2, 2).double(), BilateralConv(2, 2, 2, initial="zero").double()
        expected = teacher(values, features).detach()
        optimiser = torch.optim.LBFGS(
            pupil.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
        )

        def loss():
            optimiser.zero_grad()
            error = (pupil(values, features) - expected).square().mean()
            error.backward()
            return error

        optimiser.step(loss)
        assert relative_error(pupil(values, features).detach(), expected) < 1e-3

    def test_input_errors(self):
        values, features = torch.ones(4, 2), torch.zeros(4, 3)
        layer = BilateralConv(2, 1, 3)
        with pytest.raises(ValueError, match="`normalization` must be one of 'none', 'after', got 'before'"):
            BilateralConv(2, 1, 3, normalization="before")
        with pytest.raises(ValueError, match="`features` must have dimension 3, got 2"):
            layer(values, features[:, :2])
        with pytest.raises(ValueError, match=r"`features` must have shape \(N, d\)"):
            layer(values, features[0])
        with pytest.raises(
            ValueError, match=r"`values` must have shape \(N, C_in\) with 4 rows, got \(3, 2\)"
        ):
            layer(values[:3], features)
        with pytest.raises(ValueError, match="`values` must have 2 channels, got 1"):
            layer(values[:, :1], features)
        with pytest.raises(TypeError, match="`values` must have the dtype of `weight`"):
            layer.double()(values, features)
        layer.float()
        with pytest.raises(TypeError, match="`values` must have the dtype of `features`"):
            layer(values, features.double())
        with pytest.raises(ValueError, match="`features` must be finite, got nan"):
            layer(values, features / 0)
        with pytest.raises(ValueError, match=r"`query` must have shape \(M, d\) with d = 3, got \(4, 2\)"):
            layer(values, features, query=values)
        with pytest.raises(TypeError, match=r"`query` must be a torch\.Tensor, got list"):
            layer(values, features, query=[1])
        with pytest.raises(ValueError, match="`query_batch` was given without `query`"):
            layer(values, features, query_batch=torch.zeros(4, dtype=torch.int64))
        with pytest.raises(ValueError, match="`batch` must have shape"):
            layer(values, features, batch=torch.zeros(3, dtype=torch.int64))
