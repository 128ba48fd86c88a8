"""The pictures for people: colours, overlays, the plots of the energy and of pairwise terms."""

import io

import numpy as np
import pytest
from PIL import Image

from hdcrf.pictures import affinity_plot, energy_plot, overlay, palette


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


class TestAffinityPlot:
    PHOTO = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    TERMS = np.random.default_rng(1).standard_normal((2, 4, 6))
    PIXELS = ((1, 2), (7, 11))

    def test_a_row_for_each_pixel(self):
        figure = affinity_plot(self.PHOTO, self.PIXELS, {"first": self.TERMS, "second": list(3 * self.TERMS)})
        bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
        panels = [axes for axes in figure.axes if axes not in bars]
        assert (len(bars), len(panels)) == (2, 2 * 3)
        assert [axes.get_title() for axes in panels] == ["reference pixel", "first", "second", "", "", ""]
        for row, (pixel, terms) in enumerate(zip(self.PIXELS, self.TERMS, strict=True)):
            photo, *maps = panels[3 * row : 3 * row + 3]
            np.testing.assert_array_equal(photo.images[0].get_array(), self.PHOTO)
            for factor, panel in zip((1, 3), maps, strict=True):
                below, drawn = panel.images
                np.testing.assert_array_equal(drawn.get_array(), factor * terms)
                # A coarse map covers all of the photo, and a row has one scale about 0.
                assert drawn.get_extent() == below.get_extent() == photo.images[0].get_extent()
                largest = 3 * np.abs(terms).max()
                assert drawn.get_clim() == (-largest, largest)
            for panel in (photo, *maps):
                for marker in panel.lines:
                    np.testing.assert_array_equal(marker.get_xydata(), [pixel[::-1]])

    def test_the_bar_ends_at_0_where_no_term_is_below(self):
        terms = {"terms": np.stack([np.abs(self.TERMS[0]), self.TERMS[1]])}
        figure = affinity_plot(self.PHOTO, self.PIXELS, terms)
        first, second = (axes for axes in figure.axes if axes.get_label() == "<colorbar>")
        assert first.get_ylim() == (0, np.abs(self.TERMS[0]).max())
        assert second.get_ylim()[0] == -np.abs(self.TERMS[1]).max()

    @pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
    def test_is_drawn(self, factor):
        file = io.BytesIO()
        affinity_plot(self.PHOTO, self.PIXELS[:1], {"terms": factor * self.TERMS[:1]}).savefig(
            file, format="png"
        )
        with Image.open(file) as image:
            assert np.asarray(image.convert("L")).std() > 5

    def test_no_global_state(self):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        affinity_plot(self.PHOTO, self.PIXELS, {"terms": self.TERMS})
        assert pyplot.get_fignums() == []

    @pytest.mark.parametrize("photo", [PHOTO[..., 0], PHOTO[..., :2], PHOTO.astype(float), PHOTO[:0]])
    def test_wrong_photo(self, photo):
        with pytest.raises(ValueError, match=r"`photo` must have shape \(H, W, 3\) and be uint8, got"):
            affinity_plot(photo, self.PIXELS, {"terms": self.TERMS})

    @pytest.mark.parametrize("pixel", [(8, 0), (0, 12), (-1, 0), (0,), (0, 0, 0), 3])
    def test_pixel_outside(self, pixel):
        with pytest.raises(ValueError, match=r"`pixels` must be \(row, column\) within \(8, 12\), got"):
            affinity_plot(self.PHOTO, [pixel], {"terms": self.TERMS[:1]})

    def test_nothing_to_show(self):
        with pytest.raises(ValueError, match="one at least, got 2 pixels and 0 maps"):
            affinity_plot(self.PHOTO, self.PIXELS, {})
        with pytest.raises(ValueError, match="one at least, got 0 pixels and 1 maps"):
            affinity_plot(self.PHOTO, [], {"terms": self.TERMS[:0]})

    def test_a_map_for_each_pixel(self):
        with pytest.raises(ValueError, match="a map for each of 2 pixels, got 1 for 'terms'"):
            affinity_plot(self.PHOTO, self.PIXELS, {"terms": self.TERMS[:1]})

    @pytest.mark.parametrize("terms", [np.full((2, 4, 6), np.nan), np.ones((2, 4)), np.ones((2, 0, 6))])
    def test_wrong_map(self, terms):
        with pytest.raises(ValueError, match=r"finite maps \(h, w\), got shape .* for 'terms'"):
            affinity_plot(self.PHOTO, self.PIXELS, {"terms": terms})
