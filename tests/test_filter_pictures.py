"""The pictures of learned potentials and of convergence show the numbers that they were given."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hdcrf.pictures import convergence_plot, filter_plot, tap_plot
from hdcrf.relaxed.bilateral import BilateralPotential, symmetric_taps
from hdcrf.relaxed.spatial import SpatialPotential, symmetric_filters
from lattice.elevation import elevation_matrix, lattice_scale
from lattice.neighbourhood import (
    gaussian_taps,
    neighbourhood_lattice,
    neighbourhood_offsets,
    neighbourhood_scale,
    tap_count,
)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def maps_of(figure):
    """Return the panels of heat maps."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def pixels_of(figure):
    """Draw a figure and return it in grey."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as image:
        return np.asarray(image.convert("L"))


class TestFilterPlot:
    FILTERS = random(3, 3, 5, 7)

    def test_maps_are_the_symmetric_part(self):
        pairs = [(0, 1), (1, 0), (2, 2)]
        figure = filter_plot(self.FILTERS, pairs)
        symmetric = symmetric_filters(self.FILTERS).numpy()
        panels = maps_of(figure)
        assert [panel.get_title() for panel in panels] == ["0 – 1", "1 – 0", "2 – 2"]
        away = np.ones((5, 7), dtype=bool)
        away[2, 3] = False
        largest = max(np.abs(symmetric[pair]).max() for pair in pairs)
        for pair, panel in zip(pairs, panels, strict=True):
            (image,) = panel.images
            shown = image.get_array()
            np.testing.assert_array_equal(shown.mask, ~away)
            np.testing.assert_array_equal(shown.data[away], symmetric[pair][away])
            # A cell is a pixel, the centre lies at (0, 0), and down is down.
            assert image.get_extent() == [-3.5, 3.5, 2.5, -2.5]
            assert image.get_clim() == (-largest, largest)
            (centre,) = panel.patches
            assert centre.get_hatch()
            assert centre.get_bbox().bounds == (-0.5, -0.5, 1, 1)

    def test_a_cell_is_the_energy_of_a_pixel_at_that_shift(self):
        (panel,) = maps_of(filter_plot(self.FILTERS, [(0, 1)]))
        (image,) = panel.images
        left, right, bottom, top = image.get_extent()
        potential = SpatialPotential((1, 9, 9), self.FILTERS)
        for y, x in ((-2, 1), (1, -3), (0, 2)):
            alone = torch.zeros(9, 9, 3, dtype=torch.float64)
            alone[4 + y, 4 + x, 1] = 1
            expected = potential.message(alone.view(81, 3)).view(9, 9, 3)[4, 4, 0]
            row = (y - top) / (bottom - top) * 5
            column = (x - left) / (right - left) * 7
            assert image.get_array()[int(row), int(column)] == pytest.approx(float(expected), rel=1e-12)

    def test_axes_and_bar(self):
        figure = filter_plot(self.FILTERS)
        assert figure.get_supxlabel() == "x-shift (pixels)"
        assert figure.get_supylabel() == "y-shift (pixels)"
        (bar,) = (axes for axes in figure.axes if axes.get_label() == "<colorbar>")
        assert bar.get_ylabel() == "energy"
        low, high = bar.get_ylim()
        assert low == -high

    def test_the_largest_pairs_first_and_none_of_zeros(self):
        filters = torch.zeros(4, 4, 3, 3)
        filters[0, 1] = 1
        filters[3, 2] = -3
        filters[2, 2] = 1
        filters[1, 3, 1, 1] = 9  # at the centre, where there is no potential
        titles = [panel.get_title() for panel in maps_of(filter_plot(filters))]
        assert titles == ["2 – 3", "2 – 2", "0 – 1"]

    def test_a_dozen_at_most(self):
        panels = maps_of(filter_plot(random(12, 12, 3, 3)))
        assert len(panels) == 12
        pairs = [tuple(map(int, panel.get_title().split(" – "))) for panel in panels]
        assert all(a <= b for a, b in pairs)
        assert len(set(pairs)) == 12

    @pytest.mark.parametrize("count", [1, 4, 5, 13, 100])
    def test_as_many_panels_as_pairs(self, count):
        assert len(maps_of(filter_plot(random(2, 2, 3, 3), [(0, 1)] * count))) == count

    def test_names(self):
        names = ["terrain", "traffic light", "a name of more words than one line can hold"]
        panels = maps_of(filter_plot(self.FILTERS, [(0, 1), (0, 2)], names))
        first, second = (panel.get_title() for panel in panels)
        assert first == "terrain – traffic light"
        assert second.split() == ["terrain", "–", *names[2].split()]
        assert max(map(len, second.split("\n"))) <= 26

    def test_a_name_is_no_formula(self):
        names = ["$\\no$", "_"]
        assert pixels_of(filter_plot(random(2, 2, 3, 3), names=names)).std() > 5
        assert pixels_of(tap_plot(random(7, 2, 2), 2, 1, names=names)).std() > 5
        assert pixels_of(convergence_plot([[2.0, 1.0]], [0.0, 1.0], names[0])).std() > 5

    def test_titles_do_not_overlap(self):
        names = ["a label with quite a long name", "motor_cycle_with_side_car_and_more", "$x_1$", "_"]
        figure = filter_plot(random(4, 4, 9, 9), names=names)
        pixels_of(figure)  # lays it out
        boxes = [panel.title.get_window_extent() for panel in maps_of(figure)]
        boxes += [panel.get_window_extent() for panel in maps_of(figure)]
        for index, box in enumerate(boxes):
            assert 0 <= box.x0 < box.x1 <= figure.bbox.width
            assert not any(box.overlaps(other) for other in boxes[:index])

    def test_tensors_of_training_and_arrays(self):
        expected = maps_of(filter_plot(self.FILTERS, [(0, 1)]))[0].images[0].get_array()
        for filters in (torch.nn.Parameter(self.FILTERS), self.FILTERS.numpy(), self.FILTERS.tolist()):
            shown = maps_of(filter_plot(filters, np.array([(0, 1)])))[0].images[0].get_array()
            np.testing.assert_array_equal(shown, expected)
        assert filter_plot(self.FILTERS.bfloat16())

    @pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
    @pytest.mark.parametrize("sizes", [(1, 1), (9, 9), (1, 15), (15, 1)])
    def test_is_drawn(self, factor, sizes):
        assert pixels_of(filter_plot(factor * random(2, 2, *sizes))).std() > 5

    def test_no_global_state(self):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        filter_plot(self.FILTERS)
        tap_plot(random(7, 2, 2), 2, 1)
        convergence_plot([[2.0, 1.0]], [0.0, 1.0])
        assert pyplot.get_fignums() == []

    @pytest.mark.parametrize("shape", [(3, 3, 5), (3, 2, 5, 5), (0, 0, 5, 5), (2, 2, 4, 5), (2, 2, 5, 0)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"shape \(K, K, h, w\), h and w odd, not empty, got \("):
            filter_plot(torch.zeros(shape))

    def test_volume(self):
        filters = random(2, 2, 5, 3, 7)
        with pytest.raises(ValueError, match=r"middle slice, filters\[:, :, filters.shape\[2\] // 2\]"):
            filter_plot(filters)
        shown = maps_of(filter_plot(filters[:, :, 2], [(0, 1)]))[0].images[0].get_array()
        np.testing.assert_array_equal(shown.data, symmetric_filters(filters)[0, 1, 2])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad):
        filters = self.FILTERS.clone()
        filters[0, 1, 2, 3] = bad
        with pytest.raises(ValueError, match=r"`filters` must be finite, got .* at index \(0, 1, 2, 3\)"):
            filter_plot(filters)

    @pytest.mark.parametrize("filters", ["abc", torch.zeros(2, 2, 3, 3, dtype=torch.complex64), None])
    def test_no_numbers(self, filters):
        with pytest.raises(TypeError, match="`filters` must be an array of real numbers"):
            filter_plot(filters)

    @pytest.mark.parametrize("pair", [(0, 3), (-1, 0), (0.0, 1), (True, 1), ("0", "1")])
    def test_label_out_of_range(self, pair):
        with pytest.raises(ValueError, match=r"`pairs` must hold labels, integers from 0 to 2, got \("):
            filter_plot(self.FILTERS, [(0, 1), pair])

    @pytest.mark.parametrize("pairs", [[], (0, 1), [(0, 1, 2)], [(0, 1), (2,)], 3, [(0, 1)] * 101])
    def test_no_list_of_pairs(self, pairs):
        with pytest.raises(ValueError, match=r"list of 1 to 100 pairs \(label, label\), got shape"):
            filter_plot(self.FILTERS, pairs)

    def test_wrong_names(self):
        with pytest.raises(ValueError, match="`names` must name 3 labels, got 2 names"):
            filter_plot(self.FILTERS, names=["a", "b"])
        for names in ("abc", ["a", "b", 3]):
            with pytest.raises(TypeError, match="`names` must be a list of strings, got"):
                filter_plot(self.FILTERS, names=names)


class TestTapPlot:
    @pytest.mark.parametrize(("dimension", "neighbourhood"), [(1, 2), (2, 1), (2, 2), (5, 1)])
    def test_a_point_is_the_energy_of_two_points_so_far_apart(self, dimension, neighbourhood):
        """Two points at vertices of the lattice an offset apart send each other exactly that tap."""
        taps = random(tap_count(dimension, neighbourhood), 2, 2)
        (panel,) = tap_plot(taps, dimension, neighbourhood, [(0, 1)]).axes
        shown = panel.lines[0].get_xydata()
        assert len(shown) == len(taps)
        # The elevation backwards: its columns are orthonormal.
        offsets = neighbourhood_offsets(dimension, neighbourhood).double()
        whole = torch.cat([offsets, -offsets.sum(1, keepdim=True)], 1)
        scale = lattice_scale(dimension, 1) * neighbourhood_scale(dimension, neighbourhood)
        features = whole @ elevation_matrix(dimension) / scale
        other = torch.tensor([[0, 0], [0, 1]], dtype=torch.float64)
        for (distance, energy), feature in list(zip(shown, features, strict=True))[1:]:
            assert distance == pytest.approx(float(feature.norm()), rel=1e-12)
            lattice, _ = neighbourhood_lattice(
                torch.stack([torch.zeros_like(feature), feature]), neighbourhood
            )
            potential = BilateralPotential(lattice, taps, neighbourhood=neighbourhood, normalization="none")
            # Rounding leaves weights of 1e-15 at other vertices.
            assert energy == pytest.approx(float(potential.message(other)[0, 0]), abs=1e-12)

    @pytest.mark.parametrize(("dimension", "neighbourhood"), [(1, 1), (2, 2), (5, 1), (3, 3)])
    def test_the_gaussian_has_variance_one(self, dimension, neighbourhood):
        """The variance of the taps and of the interpolation, 1/6 of a lattice step, squared, make one."""
        weights, _ = gaussian_taps(dimension, neighbourhood)
        (panel,) = tap_plot(weights[:, None, None], dimension, neighbourhood).axes
        distance, energy = panel.lines[0].get_data()
        scale = lattice_scale(dimension, 1) * neighbourhood_scale(dimension, neighbourhood)
        interpolation = (dimension + 1) ** 2 / 6 / scale**2
        assert energy @ distance**2 / dimension + interpolation == pytest.approx(1, rel=1e-12)

    def test_lines(self):
        taps = random(63, 3, 3)
        figure = tap_plot(taps, 5, 1, [(0, 2), (1, 1)], ["a", "b", "c"])
        assert [panel.get_title() for panel in figure.axes] == ["a – c", "b – b"]
        weights = gaussian_taps(5, 1)[0].numpy()
        for (a, b), panel in zip([(0, 2), (1, 1)], figure.axes, strict=True):
            points, mean, dashed, _zero = panel.lines
            values = symmetric_taps(taps, 5, 1)[:, a, b].numpy()
            distances, energies = points.get_data()
            np.testing.assert_array_equal(energies, values)
            (factor,) = np.linalg.lstsq(weights[:, None], values, rcond=None)[0]
            for line, of_line in ((mean, values), (dashed, factor * weights)):
                assert len(line.get_xdata()) == 4  # steps along 0, 1 or 5, 2 or 4, and 3 of the axes
                for distance, value in line.get_xydata():
                    at_distance = np.isclose(distances, distance)
                    assert value == pytest.approx(of_line[at_distance].mean(), rel=1e-9)
            assert dashed.get_linestyle() == "--"
        assert "standard deviations" in figure.get_supxlabel()
        assert "energy" in figure.get_supylabel()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["tap", "mean", "nearest Gaussian"]

    def test_gaussian_taps_lie_on_the_dashed_line(self):
        taps = -2.5 * gaussian_taps(5, 1)[0][:, None, None].expand(-1, 2, 2)
        for panel in tap_plot(taps, 5, 1).axes:
            _points, mean, dashed, _zero = panel.lines
            np.testing.assert_allclose(mean.get_xydata(), dashed.get_xydata(), rtol=1e-12)

    def test_the_largest_pairs_first_and_none_of_zeros(self):
        taps = torch.zeros(7, 3, 3)
        taps[:, 0, 1] = 1
        taps[2, 2, 2] = 5
        titles = [panel.get_title() for panel in tap_plot(taps, 2, 1).axes]
        assert titles == ["2 – 2", "0 – 1"]

    @pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
    @pytest.mark.parametrize("neighbourhood", [0, 1, 2])
    def test_is_drawn(self, factor, neighbourhood):
        taps = factor * random(tap_count(3, neighbourhood), 2, 2)
        assert pixels_of(tap_plot(taps, 3, neighbourhood)).std() > 5

    @pytest.mark.parametrize("shape", [(62, 2, 2), (63, 2, 3), (63, 2), (63, 0, 0)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match="O = 63, as neighbourhood 1 in 5 dimensions has, got"):
            tap_plot(torch.zeros(shape), 5, 1)

    def test_wrong_neighbourhood(self):
        with pytest.raises(ValueError, match="`neighbourhood` must be at least 0"):
            tap_plot(torch.zeros(63, 2, 2), 5, -1)
        with pytest.raises(TypeError, match="`dimension` must be an integer"):
            tap_plot(torch.zeros(63, 2, 2), 5.0, 1)

    def test_wrong_values(self):
        with pytest.raises(ValueError, match=r"`taps` must be finite, got nan at index \(0, 0, 0\)"):
            tap_plot(np.full((7, 2, 2), np.nan), 2, 1)
        with pytest.raises(ValueError, match="integers from 0 to 1"):
            tap_plot(torch.zeros(7, 2, 2), 2, 1, [(0, 2)])


class TestConvergencePlot:
    ENERGIES = np.array([[-100.0, -130, -140], [8, 4, 4], [5, 5, 5], [1, 4, 2]])
    # Negative energies are no exception; one does not change, and the last rises before it falls.
    SHOWN = np.array([[1, 0.25, 0], [1, 0, 0], [0, 0, 0], [-0.5, 1, 0]])

    def test_energies_end_at_0(self):
        (panel,) = convergence_plot(self.ENERGIES).axes
        *images, mean = panel.lines
        for line, shown in zip(images, self.SHOWN, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
            np.testing.assert_array_equal(line.get_ydata(), shown)
        np.testing.assert_array_equal(mean.get_ydata(), self.SHOWN.mean(0))
        assert mean.get_linewidth() > 2 * images[0].get_linewidth()
        assert panel.get_xlabel() == "iterations"
        assert [text.get_text() for text in panel.get_legend().get_texts()] == ["an image", "mean"]

    def test_scores(self):
        scores = torch.tensor([0.5, 0.625, 0.75])
        _, panel = convergence_plot(torch.from_numpy(self.ENERGIES), scores, "accuracy").axes
        (line,) = panel.lines
        np.testing.assert_array_equal(line.get_xydata(), [(0, 0.5), (1, 0.625), (2, 0.75)])
        assert panel.get_ylabel() == "accuracy"
        assert panel.get_xlabel() == "iterations"

    def test_the_energies_are_left_alone(self):
        energies = self.ENERGIES.copy()
        convergence_plot(energies)
        np.testing.assert_array_equal(energies, self.ENERGIES)

    @pytest.mark.parametrize("energies", [[[3.0]], [[0.0, 0.0]], [[3e38, -3e38]], [[1e-40, 0]] * 300])
    def test_is_drawn(self, energies):
        assert pixels_of(convergence_plot(energies, np.zeros(len(energies[0])))).std() > 5

    @pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (2, 3, 4)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"shape \(N, T \+ 1\), not empty, got .* pass energies\[None\]"):
            convergence_plot(np.zeros(shape))

    @pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
    def test_wrong_scores(self, shape):
        with pytest.raises(ValueError, match=r"`scores` must have shape \(T \+ 1,\) = \(3,\), as"):
            convergence_plot(self.ENERGIES, np.zeros(shape))

    def test_not_finite(self):
        with pytest.raises(ValueError, match=r"`energies` must be finite, got nan at index \(0, 1\)"):
            convergence_plot([[1.0, math.nan]])
        with pytest.raises(ValueError, match=r"`scores` must be finite, got inf at index \(0,\)"):
            convergence_plot(self.ENERGIES, [math.inf, 0, 0])

    def test_rows_that_differ_in_length(self):
        with pytest.raises(ValueError, match="`energies` must have rows of one length"):
            convergence_plot([[1.0, 2.0], [1.0]])

    def test_no_name(self):
        with pytest.raises(TypeError, match="`score_name` must be a string, got NoneType"):
            convergence_plot(self.ENERGIES, [0, 0, 0], None)
