"""The pictures for people: colours, overlays, the plot of the energy."""

import io

import numpy as np
import pytest
from PIL import Image

from hdcrf.pictures import energy_plot, overlay, palette


class TestPalette:
    def test_shape_and_repeatability(self):
        for count in (0, 1, 5, 21, 300):
            colours = palette(count)
            assert colours.shape == (count, 3)
            assert colours.dtype == np.uint8
            np.testing.assert_array_equal(colours, palette(count))

    def test_a_longer_palette_begins_with_a_shorter_one(self):
        longest = palette(300)
        for count in (1, 6, 7, 8, 40):
            np.testing.assert_array_equal(palette(count), longest[:count])

    def test_colours_differ_from_one_another_and_from_black(self):
        colours = np.concatenate([np.zeros((1, 3)), palette(64)])
        distance = np.linalg.norm(colours[:, None] - colours, axis=2)
        assert distance[~np.eye(65, dtype=bool)].min() > 30  # measured: 35.5

    def test_thousands_are_all_different(self):
        assert len(np.unique(palette(4096), axis=0)) == 4096

    def test_more_repeat(self):
        colours = palette(5000)
        np.testing.assert_array_equal(colours[4096:], colours[: 5000 - 4096])

    def test_negative(self):
        with pytest.raises(ValueError, match="at least 0, got -1"):
            palette(-1)


class TestOverlay:
    PHOTO = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    LABELS = np.arange(35).reshape(5, 7) % 3
    COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)

    def test_extremes(self):
        np.testing.assert_array_equal(overlay(self.PHOTO, self.LABELS, self.COLOURS, 0), self.PHOTO)
        np.testing.assert_array_equal(
            overlay(self.PHOTO, self.LABELS, self.COLOURS, 1), self.COLOURS[self.LABELS]
        )

    @pytest.mark.parametrize("opacity", [0.25, 0.5, 0.7])
    def test_mixture_is_rounded(self, opacity):
        exact = self.PHOTO * (1 - opacity) + self.COLOURS[self.LABELS] * opacity
        error = np.abs(overlay(self.PHOTO, self.LABELS, self.COLOURS, opacity) - exact)
        assert error.max() <= 0.5 + 1e-4

    def test_unknown_shows_the_photo(self):
        labels = np.where(self.LABELS == 1, -1, self.LABELS)
        result = overlay(self.PHOTO, labels, self.COLOURS, 1)
        expected = np.where((labels == -1)[..., None], self.PHOTO, self.COLOURS[labels])
        np.testing.assert_array_equal(result, expected)

    def test_the_photo_is_left_alone(self):
        photo = self.PHOTO.copy()
        overlay(photo, self.LABELS, self.COLOURS)
        np.testing.assert_array_equal(photo, self.PHOTO)

    @pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
    def test_opacity_out_of_range(self, opacity):
        with pytest.raises(ValueError, match="between 0 and 1"):
            overlay(self.PHOTO, self.LABELS, self.COLOURS, opacity)

    @pytest.mark.parametrize("label", [-2, 3])
    def test_label_without_a_colour(self, label):
        with pytest.raises(ValueError, match="from -1 to 2, as there are 3 colours"):
            overlay(self.PHOTO, np.full((5, 7), label), self.COLOURS)

    def test_shapes_that_do_not_match(self):
        with pytest.raises(ValueError, match=r"got \(5, 7, 3\) and \(7, 5\)"):
            overlay(self.PHOTO, self.LABELS.T, self.COLOURS)


class TestEnergyPlot:
    def test_curves(self):
        figure = energy_plot([3.0, 2.0, 1.5], np.array([2.5, 1.0, 0.5]))
        (axes,) = figure.axes
        energy, kl = axes.lines
        np.testing.assert_array_equal(energy.get_xydata(), [(0, 3), (1, 2), (2, 1.5)])
        np.testing.assert_array_equal(kl.get_xydata(), [(0, 2.5), (1, 1), (2, 0.5)])
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert len(axes.get_legend().get_texts()) == 2

    @pytest.mark.parametrize("values", [[1.0], [1e9, -1e9], [0.0, 0.0]])
    def test_is_drawn(self, values):
        file = io.BytesIO()
        energy_plot(values, values).savefig(file, format="png")
        with Image.open(file) as image:
            assert np.asarray(image.convert("L")).std() > 5

    def test_no_global_state(self):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        energy_plot([2.0, 1.0], [2.0, 1.0])
        assert pyplot.get_fignums() == []

    @pytest.mark.parametrize(("energy", "kl"), [([], []), ([1.0], [1.0, 2.0])])
    def test_lengths(self, energy, kl):
        with pytest.raises(ValueError, match="one entry an iteration each, got"):
            energy_plot(energy, kl)
