"""Relaxed energies, projected gradient steps on them, and rounding, against double sums over pairs."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import hdcrf
from hdcrf.relaxed import (
    BilateralPotential,
    PairwisePotential,
    RelaxedEnergy,
    SpatialPotential,
    graduated_descent,
    parallel_mean_field,
    project_simplex,
    projected_gradient,
    round_labels,
)
from hdcrf.relaxed.spatial import gaussian_window, spectral_bounds
from lattice import neighbourhood_lattice, neighbourhood_offsets
from lattice.neighbourhood import gaussian_taps


class Written(PairwisePotential):
    """A matrix written out, (P, K, P, K)."""

    def __init__(self, blocks):
        self.num_points, self.num_labels = blocks.shape[:2]
        self.matrix = self.like = blocks.reshape(self.num_points * self.num_labels, -1)

    def message(self, q):
        return (self.matrix @ q.flatten()).view(q.shape)

    def bounds(self):
        sums = self.matrix.abs().sum(1).view(self.num_points, self.num_labels).amax(1, keepdim=True)
        return sums, sums


def random_blocks(points, labels, scale=1.0, generator=None):
    """Return symmetric blocks without those of i = j."""
    blocks = scale * torch.randn(points, labels, points, labels, dtype=torch.float64, generator=generator)
    blocks = blocks + blocks.permute(2, 3, 0, 1)
    blocks[torch.arange(points), :, torch.arange(points)] = 0
    return blocks


def shares(points, labels, generator=None):
    """Return points of the simplex, a third of them at its corners."""
    drawn = -torch.rand(points, labels, dtype=torch.float64, generator=generator).clamp(min=1e-9).log()
    drawn = drawn / drawn.sum(1, keepdim=True)
    whole = torch.nn.functional.one_hot(drawn.argmax(1), labels).double()
    corner = torch.rand(points, 1, dtype=torch.float64, generator=generator) < 1 / 3
    return torch.where(corner, whole, drawn)


def dense(potential, like):
    """Return the (P·K, P·K) matrix of a potential, column by column."""
    points, labels = potential.num_points, potential.num_labels
    identity = torch.eye(points * labels, dtype=like.dtype, device=like.device)
    columns = [potential.message(column.view(points, labels)).flatten() for column in identity]
    return torch.stack(columns, 1)


def spatial_pairs(shape, filters):
    """Return ψ_ij, (P, K, P, K), of a window over B grids: each pair looked at from either side, halved."""
    places = list(itertools.product(*map(range, shape)))
    labels = filters.shape[0]
    blocks = torch.zeros(len(places), labels, len(places), labels, dtype=filters.dtype)
    for (i, here), (j, there) in itertools.permutations(enumerate(places), 2):
        step = [b - a for a, b in zip(here[1:], there[1:], strict=True)]
        reach = [size // 2 for size in filters.shape[2:]]
        if here[0] != there[0] or any(abs(s) > r for s, r in zip(step, reach, strict=True)):
            continue
        place = tuple(s + r for s, r in zip(step, reach, strict=True))
        seen = filters[(slice(None), slice(None), *place)]
        blocks[i, :, j] += 0.5 * seen
        blocks[j, :, i] += 0.5 * seen.T
    return blocks


def bilateral_pairs(lattice, taps, neighbourhood, normalization, constant):
    """Return ψ_ij, (P, K, P, K), of taps on a lattice, from the definition: vertex by vertex."""
    points, labels = lattice.num_points, taps.shape[1]
    interpolation = torch.zeros(points, lattice.num_vertices, dtype=taps.dtype)
    cells = lattice.structure.cells
    for point in range(points):
        for vertex, weight in zip(
            lattice.structure.cell_vertices[cells.cell[point].long()], cells.weights[point], strict=True
        ):
            interpolation[point, vertex.long()] += weight.detach()
    offsets = {
        tuple(offset): tap
        for tap, offset in enumerate(neighbourhood_offsets(lattice.dimension, neighbourhood).tolist())
    }
    coordinates = lattice.structure.coordinates.tolist()
    size = len(coordinates)
    between = torch.zeros(size, size, labels, labels, dtype=taps.dtype)
    gaussian = torch.zeros(size, size, dtype=taps.dtype)
    weights, _ = gaussian_taps(lattice.dimension, neighbourhood)
    batched = lattice.batch is not None
    for (u, first), (v, second) in itertools.product(enumerate(coordinates), repeat=2):
        step = tuple(b - a for a, b in zip(first, second, strict=True))
        if batched and step[0] != 0:
            continue
        tap = offsets.get(step[1:] if batched else step)
        if tap is not None:
            between[u, v] += 0.5 * taps[tap]
            between[v, u] += 0.5 * taps[tap].T
            gaussian[u, v] = weights[tap]
    blocks = torch.einsum("iu,uvab,jv->iajb", interpolation, between, interpolation)
    if normalization == "symmetric":
        root = (interpolation @ gaussian @ interpolation.T).sum(1).rsqrt()
        blocks = blocks * root[:, None, None, None] * root[None, None, :, None]
    else:
        blocks = blocks * constant
    blocks[torch.arange(points), :, torch.arange(points)] = 0
    return blocks


def spatial_case(name):
    shape, window = {
        "pixels": ((2, 4, 5), (3, 5)),
        "one row": ((1, 1, 6), (3, 3)),
        "voxels": ((2, 2, 3, 3), (3, 3, 1)),
        "a signal": ((3, 5), (5,)),
    }[name]
    filters = torch.randn(3, 3, *window, dtype=torch.float64)
    return SpatialPotential(shape, filters), spatial_pairs(shape, filters)


def bilateral_case(dimension, neighbourhood, normalization, batched):
    points, labels = 9, 3
    features = 1.2 * torch.randn(points, dimension, dtype=torch.float64)
    batch = torch.arange(points) % 2 if batched else None
    lattice, constant = neighbourhood_lattice(features, neighbourhood, batch=batch)
    count = len(neighbourhood_offsets(dimension, neighbourhood))
    taps = torch.randn(count, labels, labels, dtype=torch.float64)
    options = {"neighbourhood": neighbourhood, "normalization": normalization, "constant": constant}
    return BilateralPotential(lattice, taps, **options), bilateral_pairs(lattice, taps, **options)


CASES = {
    **{name: (spatial_case, name) for name in ("pixels", "one row", "voxels", "a signal")},
    **{
        f"d={dimension}, s={neighbourhood}, {normalization}, {'batched' if batched else 'one batch'}": (
            bilateral_case,
            dimension,
            neighbourhood,
            normalization,
            batched,
        )
        for dimension, neighbourhood in ((1, 2), (2, 1), (3, 0), (3, 1), (5, 1))
        for normalization in ("symmetric", "none")
        for batched in (False, True)
    },
}


@pytest.fixture(params=CASES)
def case(request):
    """A potential, and its pairs written out from the definition."""
    make, *arguments = CASES[request.param]
    return make(*arguments)


class TestPotentials:
    """Potentials computed by filters equal the pairs that define them."""

    def test_the_energy_is_the_double_sum_over_pairs(self, case):
        potential, blocks = case
        points, labels = blocks.shape[:2]
        unary = torch.randn(points, labels, dtype=torch.float64)
        energy = RelaxedEnergy(unary, [potential])
        q = shares(points, labels)
        pairs = sum(float(q[i] @ blocks[i, :, j] @ q[j]) for i, j in itertools.combinations(range(points), 2))
        assert math.isclose(float(energy.value(q)), float((unary * q).sum()) + pairs, abs_tol=1e-10)
        labelling = torch.randint(labels, (points,))
        counted = sum(float(unary[i, labelling[i]]) for i in range(points)) + sum(
            float(blocks[i, labelling[i], j, labelling[j]])
            for i, j in itertools.combinations(range(points), 2)
        )
        assert math.isclose(float(energy.of_labels(labelling)), counted, abs_tol=1e-10)

    def test_its_gradient_is_that_of_autograd(self, case):
        potential, blocks = case
        points, labels = blocks.shape[:2]
        unary = torch.randn(points, labels, dtype=torch.float64)
        energy = RelaxedEnergy(unary, [potential, potential])
        q = shares(points, labels).requires_grad_()
        (expected,) = torch.autograd.grad(energy.value(q), q)
        torch.testing.assert_close(energy.gradient(q), expected, rtol=0, atol=1e-12)

    def test_messages_are_symmetric_and_send_nothing_to_oneself(self, case):
        potential, blocks = case
        points, labels = blocks.shape[:2]
        matrix = dense(potential, blocks)
        torch.testing.assert_close(matrix, blocks.reshape(matrix.shape), rtol=0, atol=1e-12)
        own = matrix.view(points, labels, points, labels)[torch.arange(points), :, torch.arange(points)]
        assert float(own.abs().max()) < 1e-12

    def test_the_bound_bounds_steps_on_the_simplex(self, case):
        potential, blocks = case
        points, labels = blocks.shape[:2]
        centre = torch.eye(labels, dtype=torch.float64) - 1 / labels
        steps = torch.block_diag(*[centre] * points)
        matrix = steps @ blocks.reshape(points * labels, -1) @ steps
        lower, upper = potential.bounds()
        values = torch.linalg.eigvalsh(matrix)
        for bound, signed, largest in ((lower, -matrix, -values[0]), (upper, matrix, values[-1])):
            assert bound.shape in ((points, 1), (1, 1))
            assert float(bound.min()) >= 0
            limits = torch.diag(bound.expand(points, 1).repeat(1, labels).flatten())
            assert torch.linalg.eigvalsh(limits - signed).min() > -1e-10
            # It is of use: at most 8.4 times what these random potentials need was seen.
            assert float(bound.max()) < 10 * float(largest) + 1e-9

    def test_the_spectrum_bounds_what_sums_cannot(self):
        """On a large grid, the spectrum's bounds are within 60% of the extreme eigenvalues, and are taken."""
        filters = 0.1 * torch.randn(2, 2, 5, 5, dtype=torch.float64)
        potential = SpatialPotential((1, 14, 15), filters)
        q = torch.zeros(210, 2)
        centre = torch.eye(2, dtype=torch.float64) - 0.5
        steps = torch.block_diag(*[centre] * 210)
        values = torch.linalg.eigvalsh(steps @ dense(potential, q.double()) @ steps)
        lower, upper = spectral_bounds(potential.filters)
        assert -float(values[0]) <= float(lower) < -1.6 * float(values[0])
        assert float(values[-1]) <= float(upper) < 1.6 * float(values[-1])
        assert potential.bounds() == (lower, upper)
        assert spectral_bounds(torch.zeros(400, 400, 9, 9)) is None

    def test_the_spectrum_bounds_what_lies_between_its_frequencies(self):
        """Waves half-way between two frequencies: on a long signal, 1.9% more than at either of them."""
        steps = torch.arange(-4, 5, dtype=torch.float64)
        wave = torch.cos(2 * math.pi * 4.5 / 32 * steps)
        potts = 1 - torch.eye(2, dtype=torch.float64)
        for sign in (1.0, -1.0):
            potential = SpatialPotential((1, 300), sign * potts[:, :, None] * wave)
            matrix = dense(potential, torch.zeros(300, 2, dtype=torch.float64))
            signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(300) / math.sqrt(2)
            across = signs.view(300, 2)
            reduced = torch.einsum("ia,iajb,jb->ij", across, matrix.view(300, 2, 300, 2), across)
            values = torch.linalg.eigvalsh(reduced)
            lower, upper = spectral_bounds(potential.filters)
            assert -float(values[0]) <= float(lower) + 1e-9
            assert float(values[-1]) <= float(upper) + 1e-9
            seen = torch.fft.fft(torch.nn.functional.pad(-sign * wave * (steps != 0), (0, 23))).abs().max()
            assert max(-float(values[0]), float(values[-1])) > 1.005 * float(seen)

    def test_gradients_with_respect_to_the_filters(self):
        shape = (1, 3, 3)
        q = shares(9, 2)

        def value(filters):
            return RelaxedEnergy(torch.zeros_like(q), [SpatialPotential(shape, filters)]).value(q)

        filters = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(value, filters)

    @pytest.mark.parametrize("normalization", ["symmetric", "none"])
    def test_gradients_with_respect_to_taps_and_features(self, normalization):
        points, labels, dimension, neighbourhood = 6, 2, 2, 1
        q = shares(points, labels)

        def value(taps, features):
            lattice, constant = neighbourhood_lattice(features, neighbourhood)
            potential = BilateralPotential(
                lattice, taps, neighbourhood=neighbourhood, normalization=normalization, constant=constant
            )
            return RelaxedEnergy(torch.zeros_like(q), [potential]).value(q)

        taps = torch.randn(7, labels, labels, dtype=torch.float64, requires_grad=True)
        features = torch.randn(points, dimension, dtype=torch.float64, requires_grad=True)
        lattice, _ = neighbourhood_lattice(features, neighbourhood)
        assert lattice.structure.cells.weights.min() > 1e-4  # gradcheck stays within the cells
        assert torch.autograd.gradcheck(value, (taps, features))

    def test_strips_of_own_blocks_change_nothing(self, monkeypatch):
        potential, blocks = bilateral_case(3, 1, "symmetric", False)
        lattice, taps = potential.lattice, potential.taps
        q = shares(*blocks.shape[:2])
        monkeypatch.setattr("hdcrf.relaxed.bilateral._MOST_KEPT", 0)
        monkeypatch.setattr("hdcrf.relaxed.bilateral._STRIP", 18)  # two points
        strips = BilateralPotential(lattice, taps, neighbourhood=1)
        torch.testing.assert_close(strips.message(q), potential.message(q))

    def test_other_devices_and_precisions(self, device):
        """Measured in float32: 4e-6 bilateral, 1e-6 spatial."""
        bilateral, _ = bilateral_case(5, 1, "symmetric", False)
        spatial, _ = spatial_case("pixels")
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
            features = bilateral.lattice.features.to(device, dtype)
            taps, filters = (part.to(device, dtype) for part in (bilateral.taps, spatial.filters))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                there = BilateralPotential(neighbourhood_lattice(features, 1)[0], taps, neighbourhood=1)
                pairs = [(there, bilateral.num_points), (SpatialPotential(spatial.shape, filters), 40)]
                q = [shares(points, 3).to(device, dtype) for _, points in pairs]
                messages = [potential.message(part) for (potential, _), part in zip(pairs, q, strict=True)]
            same, _ = neighbourhood_lattice(features.double().cpu(), 1)
            expected = BilateralPotential(same, taps.double().cpu(), neighbourhood=1)
            for message, part, known in zip(messages, q, (expected, spatial), strict=True):
                assert message.dtype == dtype
                torch.testing.assert_close(
                    message.double().cpu(), known.message(part.double().cpu()), rtol=0, atol=tolerance
                )

    def test_the_gaussian_window_sums_to_one_without_its_centre(self):
        window = gaussian_window((5, 3), (2.0, 1.0))
        assert math.isclose(float(window.sum()), 1)
        assert float(window[2, 1]) == 0
        assert math.isclose(float(window[0, 1] / window[1, 1]), math.exp(-0.5 + 0.125))
        assert float(gaussian_window((1, 1), (1.0, 1.0)).abs().sum()) == 0


def random_energy(seed):
    """Return an energy over a few points, with potentials of any sign and strength."""
    generator = torch.Generator().manual_seed(seed)
    points, labels = (int(torch.randint(1, top, (), generator=generator)) for top in (25, 6))
    scale = 10 ** float(torch.randn((), generator=generator))
    blocks = random_blocks(points, labels, scale, generator)
    unary = torch.randn(points, labels, dtype=torch.float64, generator=generator)
    return RelaxedEnergy(unary, [Written(blocks)]), shares(points, labels, generator)


class TestProjectedGradient:
    """Steps against the gradient."""

    @hypothesis.settings(max_examples=300)
    @hypothesis.given(seed=st.integers(0, 10**6))
    def test_the_automatic_step_never_raises_the_energy(self, seed):
        energy, q = random_energy(seed)
        result = projected_gradient(energy, q, iterations=8, track=True)
        # Seen at most 1e-15 of the largest.
        assert float(result.energy.diff().max()) <= 1e-12 * float(result.energy.abs().max())
        assert result.iterations == 8
        assert float(result.relaxed.min()) >= 0
        torch.testing.assert_close(result.relaxed.sum(1), torch.ones_like(q[:, 0]))

    def test_a_step_too_long_may_raise_it(self):
        repulsive = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
        repulsive[0, :, 1] = repulsive[1, :, 0] = torch.eye(2)  # like labels cost
        energy = RelaxedEnergy(torch.zeros(2, 2, dtype=torch.float64), [Written(repulsive)])
        start = torch.tensor([[0.6, 0.4], [0.6, 0.4]], dtype=torch.float64)
        long = projected_gradient(energy, start, iterations=1, step_size=100.0, track=True)
        assert float(long.energy[1]) > float(long.energy[0])
        safe = projected_gradient(energy, start, iterations=1, track=True)
        assert float(safe.energy[1]) <= float(safe.energy[0])

    def test_one_step_is_the_projection_of_the_gradient_step(self):
        energy, q = random_energy(3)
        for leak in (0.0, 0.1):
            result = projected_gradient(energy, q, iterations=1, step_size=0.3, leak=leak)
            expected = project_simplex(q - 0.3 * energy.gradient(q), 1, leak)
            torch.testing.assert_close(result.relaxed, expected)

    def test_the_energies_are_those_of_the_iterates(self):
        energy, q = random_energy(5)
        tracked = projected_gradient(energy, q, iterations=3, track=True).energy
        for iterations, value in enumerate(tracked):
            alone = projected_gradient(energy, q, iterations=iterations)
            torch.testing.assert_close(energy.value(alone.relaxed), value)
            assert alone.energy is None

    def test_without_potentials_it_finds_the_best_labels(self):
        unary = torch.randn(50, 4, dtype=torch.float64)
        energy = RelaxedEnergy(unary, [])
        result = projected_gradient(energy, shares(50, 4), iterations=100)
        assert torch.equal(result.relaxed, torch.nn.functional.one_hot(unary.argmin(1), 4).double())

    def test_progress(self):
        energy, q = random_energy(1)
        seen = []
        projected_gradient(energy, q, iterations=4, progress=seen.append)
        assert seen == [1, 2, 3, 4]

    def test_gradients(self):
        shape, labels = (1, 3, 3), 3

        def relaxed(unary, filters, leak):
            energy = RelaxedEnergy(unary, [SpatialPotential(shape, filters)])
            start = torch.softmax(-unary, 1)
            return projected_gradient(energy, start, iterations=3, step_size=0.2, leak=leak).relaxed

        unary = torch.randn(9, labels, dtype=torch.float64, requires_grad=True)
        filters = 0.3 * torch.randn(labels, labels, 3, 3, dtype=torch.float64)
        filters.requires_grad_()
        for leak in (0.0, 0.1):
            assert torch.autograd.gradcheck(lambda u, f, leak=leak: relaxed(u, f, leak), (unary, filters))


class TestGraduatedDescent:
    """The way from a convex energy."""

    def test_finds_lower_energies(self):
        """Of 60 random energies, after as many iterations: lower for 17, higher for 2."""
        lower = higher = 0
        for seed in range(60):
            energy, q = random_energy(seed)
            plain = round_labels(energy, projected_gradient(energy, q, iterations=100).relaxed)
            result = graduated_descent(energy, q, iterations=100)
            found = float(energy.of_labels(round_labels(energy, result.relaxed)))
            difference = found - float(energy.of_labels(plain))
            lower += difference < -1e-9
            higher += difference > 1e-9
        assert lower >= 10
        assert higher <= 5

    def test_begins_with_a_convex_energy(self):
        """The second differences of what it descends first are those of M + diag(l): none is negative."""
        for seed in range(20):
            energy, q = random_energy(seed)
            points, labels = q.shape
            centre = torch.block_diag(*[torch.eye(labels, dtype=torch.float64) - 1 / labels] * points)
            matrix = centre @ energy.potentials[0].matrix @ centre
            convex = centre @ torch.diag(energy.bounds[0].repeat(1, labels).flatten()) @ centre
            assert torch.linalg.eigvalsh(matrix + convex).min() > -1e-10
            # The first step goes by that energy's gradient.
            lower, upper = energy.bounds
            step = 1.9 / (upper + lower).clamp(min=1.9 / 4)
            first = graduated_descent(energy, q, iterations=1).relaxed
            expected = project_simplex(q - step * (energy.gradient(q) + lower * q), 1)
            torch.testing.assert_close(first, expected)

    def test_does_not_depend_on_the_start(self):
        """At first there is one minimum."""
        energy, q = random_energy(4)
        other = shares(*q.shape)
        first, second = (graduated_descent(energy, start, iterations=400).relaxed for start in (q, other))
        torch.testing.assert_close(first, second)
        plain = (projected_gradient(energy, start, iterations=400).relaxed for start in (q, other))
        assert float((next(plain) - next(plain)).abs().max()) > 0.5

    def test_the_energies_are_those_of_the_iterates(self):
        energy, q = random_energy(5)
        result = graduated_descent(energy, q, iterations=6, track=True)
        torch.testing.assert_close(result.energy[-1], energy.value(result.relaxed))
        assert result.energy.shape == (7,)
        assert torch.equal(graduated_descent(energy, q, iterations=0).relaxed, q)

    def test_gradients(self):
        def relaxed(unary, filters):
            energy = RelaxedEnergy(unary, [SpatialPotential((1, 3, 3), filters)])
            energy.bounds = (torch.full((1, 1), 3.0, dtype=torch.float64),) * 2  # constants, as they count
            return graduated_descent(energy, torch.softmax(-unary, 1), iterations=4).relaxed

        unary = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
        filters = (0.3 * torch.randn(3, 3, 3, 3, dtype=torch.float64)).requires_grad_()
        assert torch.autograd.gradcheck(relaxed, (unary, filters))


class TestMeanField:
    """Mean field on the same energy."""

    def test_one_update(self):
        energy, q = random_energy(7)
        result = parallel_mean_field(energy, q, iterations=1, track=True)
        torch.testing.assert_close(result.relaxed, torch.softmax(-energy.gradient(q), 1))
        torch.testing.assert_close(result.energy[1], energy.value(result.relaxed))

    def test_equals_the_mean_field_of_kernels(self):
        """On Potts potentials by a Gaussian of the position it is what `hdcrf.mean_field` computes."""
        shape, labels, sigma = (1, 6, 7), 3, 1.3
        logits = torch.randn(42, labels, dtype=torch.float64)
        kernel = hdcrf.SmoothnessKernel(shape, torch.tensor(sigma, dtype=torch.float64), 2.0, "none")
        expected = hdcrf.mean_field(logits, [kernel], hdcrf.Compatibility(labels), iterations=4).marginals
        steps = torch.arange(9, dtype=torch.float64) - 4
        along = torch.exp(-0.5 * (steps / sigma) ** 2)
        window = 2.0 * along[:, None] * along
        filters = window * (1 - torch.eye(labels, dtype=torch.float64))[:, :, None, None]
        energy = RelaxedEnergy(-torch.log_softmax(logits, 1), [SpatialPotential(shape, filters)])
        result = parallel_mean_field(energy, torch.softmax(logits, 1), iterations=4)
        torch.testing.assert_close(result.relaxed, expected)


class TestRounding:
    """From relaxed labels to labels."""

    def test_never_raises_the_energy(self):
        """Of 3,000 random instances, of potentials of any sign and strength."""
        for seed in range(3000):
            energy, q = random_energy(seed)
            rounded = float(energy.of_labels(round_labels(energy, q)))
            before = float(energy.value(q))
            # Seen at most 1e-14 of the terms' size.
            assert rounded <= before + 1e-12 * (1 + abs(before) + float(energy.bounds[0].sum())), seed

    def test_never_raises_it_where_moving_all_at_once_would(self):
        """Like labels cost: all points like the same label best, until some have taken it."""
        points = 40
        blocks = torch.zeros(points, 2, points, 2, dtype=torch.float64)
        blocks += torch.eye(2)[:, None]
        blocks[torch.arange(points), :, torch.arange(points)] = 0
        unary = torch.zeros(points, 2, dtype=torch.float64)
        energy = RelaxedEnergy(unary, [Written(blocks)])
        q = torch.tensor([0.5 - 1e-6, 0.5 + 1e-6], dtype=torch.float64).expand(points, 2)
        together = torch.full((points,), int(energy.gradient(q)[0].argmin()))
        assert float(energy.of_labels(together)) > float(energy.value(q))
        labels = round_labels(energy, q)
        assert float(energy.of_labels(labels)) <= float(energy.value(q))
        assert 0.3 < float(labels.double().mean()) < 0.7

    def test_takes_few_messages_on_an_image(self, monkeypatch):
        """Two were seen; the proof, point by point, takes 1,200."""
        shape, labels = (1, 30, 40), 3
        filters = torch.randn(labels, labels, 5, 5, dtype=torch.float64)
        energy = RelaxedEnergy(
            torch.randn(1200, labels, dtype=torch.float64), [SpatialPotential(shape, filters)]
        )
        q = shares(1200, labels)
        calls = []
        message = energy.message
        monkeypatch.setattr(energy, "message", lambda q: calls.append(1) or message(q))
        rounded = round_labels(energy, q)
        assert float(energy.of_labels(rounded)) <= float(energy.value(q))
        assert len(calls) < 20

    def test_items_of_a_batch_are_rounded_each_by_itself(self):
        """One whose energy would rise does not hide behind others whose energy falls."""
        for seed in range(40):
            torch.manual_seed(seed)
            filters = torch.randn(2, 2, 5, 5, dtype=torch.float64)
            unary, q = torch.randn(3 * 36, 2, dtype=torch.float64), shares(3 * 36, 2)
            batch = torch.arange(3).repeat_interleave(36)
            together = RelaxedEnergy(unary, [SpatialPotential((3, 6, 6), filters)], batch)
            labels = round_labels(together, q)
            for i in range(3):
                alone = RelaxedEnergy(unary[batch == i], [SpatialPotential((1, 6, 6), filters)])
                part = labels[batch == i]
                assert torch.equal(part, round_labels(alone, q[batch == i]))
                assert float(alone.of_labels(part)) <= float(alone.value(q[batch == i])) + 1e-10

    def test_no_points(self):
        empty = torch.zeros(0, 2)
        assert round_labels(RelaxedEnergy(empty, []), empty).shape == (0,)

    def test_keeps_whole_labels(self):
        energy, _ = random_energy(11)
        points, labels = energy.unary.shape
        whole = torch.randint(labels, (points,))
        assert torch.equal(round_labels(energy, torch.nn.functional.one_hot(whole, labels).double()), whole)

    def test_labels_lie_between_the_optimum_and_the_relaxation(self):
        """The relaxation is tight: the best labelling is no worse than relaxed labels."""
        points, labels = 6, 3
        energy = RelaxedEnergy(
            torch.randn(points, labels, dtype=torch.float64), [Written(random_blocks(points, labels))]
        )
        best = min(
            float(energy.of_labels(torch.tensor(labelling)))
            for labelling in itertools.product(range(labels), repeat=points)
        )
        for _ in range(20):
            relaxed = projected_gradient(energy, shares(points, labels), iterations=200).relaxed
            rounded = float(energy.of_labels(round_labels(energy, relaxed)))
            assert best - 1e-12 <= rounded <= float(energy.value(relaxed)) + 1e-12


class TestWrongInput:
    """Every message says what is wrong."""

    ENERGY = RelaxedEnergy(torch.zeros(4, 2, dtype=torch.float64), [])

    @pytest.mark.parametrize(
        ("q", "error", "message"),
        [
            (torch.zeros(4, 3, dtype=torch.float64), ValueError, r"shape \(P, K\) = \(4, 2\), got \(4, 3\)"),
            (torch.zeros(4, 2), TypeError, "dtype of `unary`"),
            (torch.full((4, 2), math.nan, dtype=torch.float64), ValueError, "must be finite"),
            (torch.zeros(4, 2, dtype=torch.float64), ValueError, "on the simplex"),
            (torch.tensor([[1.5, -0.5]] * 4, dtype=torch.float64), ValueError, "on the simplex"),
            ([[1, 0]] * 4, TypeError, r"must be a torch.Tensor"),
        ],
    )
    def test_what_rounding_refuses(self, q, error, message):
        with pytest.raises(error, match=message):
            round_labels(self.ENERGY, q)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"iterations": -1}, ValueError, "`iterations` must be at least 0"),
            ({"iterations": 1, "step_size": 0}, ValueError, "`step_size` must be a finite number greater"),
            ({"iterations": 1, "step_size": "fast"}, ValueError, "`step_size` must be one of 'auto'"),
            ({"iterations": 1, "leak": 2}, ValueError, "`leak` must be from 0 to 1, got 2"),
            ({"iterations": 1, "track": 1}, TypeError, "`track` must be True or False"),
            ({"iterations": 1, "progress": 1}, TypeError, "`progress` must be a function"),
            ({"iterations": 1, "backend": "gpu"}, ValueError, "`backend` must be one of"),
        ],
    )
    def test_what_the_steps_refuse(self, options, error, message):
        with pytest.raises(error, match=message):
            projected_gradient(self.ENERGY, shares(4, 2), **options)

    def test_what_leaves_the_range_is_an_error(self):
        energy = RelaxedEnergy(torch.full((4, 2), 1e30), [Written(torch.full((4, 2, 4, 2), 3e38))])
        with pytest.raises(ValueError, match=r"left the range of torch\.float32 within 2 iterations"):
            projected_gradient(energy, shares(4, 2).float(), iterations=2, step_size=1.0)

    @pytest.mark.parametrize(
        ("shape", "filters", "error", "message"),
        [
            ((1, 4, 4), torch.zeros(2, 2, 4, 3), ValueError, "odd size for each of 2 axes, got"),
            ((1, 4, 4), torch.zeros(2, 1, 3, 3), ValueError, r"must have shape \(K, K, \*k\)"),
            ((1, 4, 4), torch.zeros(2, 2, 3), ValueError, r"must have shape \(K, K, \*k\)"),
            ((1, 4, 4), torch.zeros(2, 2, 3, 3).long(), TypeError, "`filters` must be float32 or float64"),
            ((1, 4, 4), torch.full((2, 2, 3, 3), math.nan), ValueError, "`filters` must be finite"),
            ((1, 2, 2, 2, 2), torch.zeros(2, 2, 3, 3, 3, 3), ValueError, "one to three axes"),
        ],
    )
    def test_what_spatial_potentials_refuse(self, shape, filters, error, message):
        with pytest.raises(error, match=message):
            SpatialPotential(shape, filters)

    @pytest.mark.parametrize(
        ("taps", "options", "error", "message"),
        [
            (torch.zeros(6, 2, 2), {}, ValueError, r"shape \(O, K, K\) with O = 7, got \(6, 2, 2\)"),
            (torch.zeros(7, 2, 3), {}, ValueError, r"shape \(O, K, K\)"),
            (torch.zeros(7, 2, 2).double(), {}, TypeError, "`taps` must have the dtype of"),
            (torch.full((7, 2, 2), math.inf), {}, ValueError, "`taps` must be finite"),
            (torch.zeros(7, 2, 2), {"normalization": "before"}, ValueError, "`normalization` must be one of"),
            (torch.zeros(7, 2, 2), {"constant": -1.0}, ValueError, "`constant` must be a finite number"),
        ],
    )
    def test_what_bilateral_potentials_refuse(self, taps, options, error, message):
        lattice, _ = neighbourhood_lattice(torch.rand(5, 2), 1)
        with pytest.raises(error, match=message):
            BilateralPotential(lattice, taps, neighbourhood=1, **options)

    def test_what_energies_refuse(self):
        potential = SpatialPotential((1, 2, 2), torch.zeros(2, 2, 3, 3))
        with pytest.raises(TypeError, match=r"must be a list of potentials, got one; write \[potential\]"):
            RelaxedEnergy(torch.zeros(4, 2), potential)
        with pytest.raises(TypeError, match="must hold PairwisePotentials, got str"):
            RelaxedEnergy(torch.zeros(4, 2), ["Potts"])
        energy = RelaxedEnergy(torch.zeros(4, 2), [potential])
        with pytest.raises(ValueError, match=r"`q` must have shape \(P, K\) = \(4, 2\), got \(1, 2\)"):
            energy.value(torch.ones(1, 2))
        for labels, message in (
            ([0, 1, 2, 0], "below K = 2, got 2"),
            ([0, -1, 0, 0], "0 or greater, got -1"),
        ):
            with pytest.raises(ValueError, match=message):
                energy.of_labels(torch.tensor(labels))
        with pytest.raises(TypeError, match="`labels` must hold integers"):
            energy.of_labels(torch.zeros(4))
        for minimise in (projected_gradient, graduated_descent, parallel_mean_field):
            with pytest.raises(TypeError, match=r"`start` must be a torch\.Tensor, got list"):
                minimise(energy, [[1, 0]] * 4, iterations=1)

    def test_potentials_over_other_points_are_refused(self):
        potential = SpatialPotential((1, 2, 2), torch.zeros(3, 3, 3, 3))
        with pytest.raises(ValueError, match=r"must have shape \(P, K\) = \(4, 3\), as `potentials` have"):
            RelaxedEnergy(torch.zeros(4, 2), [potential])
