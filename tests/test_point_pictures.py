"""Pictures of point clouds: what lands where, what hides what, and what is refused."""

import numpy as np
import pytest

from hdcrf.pictures import render_points

WHITE = (255, 255, 255)
# From 2 before the origin towards y, x to the right, z up; 50.5 pixels to a unit of x / depth.
VIEW = {"eye": (0, -2, 0), "target": (0, 0, 0), "height": 101, "width": 101, "field_of_view": 90}
POINT = {**VIEW, "radius": 0.5, "shading": 0}


def test_a_known_point_lands_at_a_known_pixel():
    # Column 50.5 + 50.5 · 0.5 / 2 = 63.1; row 50.5 - 50.5 · 0.25 / 2 = 44.2.
    picture = render_points(np.array([(0.5, 0, 0.25)]), np.array([(10, 20, 30)]), **POINT)
    assert picture.shape == (101, 101, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[44, 63], (10, 20, 30))
    assert (picture != WHITE).any(2).sum() == 1


def test_what_is_up():
    positions = np.array([(0, 0, 0.5), (0.5, 0, 0)])
    colours = np.array([(255, 0, 0), (0, 0, 255)])
    picture = render_points(positions, colours, **POINT, up=(1, 0, 0))
    # With x up, z points to the left.
    np.testing.assert_array_equal(picture[50, 37], (255, 0, 0))
    np.testing.assert_array_equal(picture[37, 50], (0, 0, 255))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_nearer_hides_farther(order):
    positions = np.array([(0.0, -1, 0), (0.0, 3, 0)])[order]
    colours = np.array([(200, 0, 0), (0, 200, 0)])[order]
    picture = render_points(positions, colours, **VIEW, radius=3, shading=0)
    np.testing.assert_array_equal(picture[50, 50], (200, 0, 0))
    assert not (picture == (0, 200, 0)).all(2).any()


def test_nearer_is_larger():
    def area(y):
        return (render_points(np.array([(0.0, y, 0)]), np.zeros((1, 3)), **VIEW, radius=3) == 0).all(2).sum()

    assert area(0) == 29  # the pixels within 3 of the middle one
    assert area(-1) > area(0) > area(2) >= 1


def test_an_empty_cloud_gives_background():
    picture = render_points(np.zeros((0, 3)), np.zeros((0, 3)), **VIEW, background=(1, 2, 3))
    assert (picture == (1, 2, 3)).all()


@pytest.mark.parametrize("point", [(0, -3, 0), (0, -2, 0), (50, 0, 0), (0, 0, -50), (1e300, 0, 0)])
def test_what_is_not_in_view(point):
    picture = render_points(np.array([point], dtype=float), np.zeros((1, 3)), **VIEW)
    assert (picture == WHITE).all()


def test_keep():
    random = np.random.default_rng(0)
    positions, colours = random.normal(0, 0.5, (500, 3)), random.integers(0, 256, (500, 3), dtype=np.uint8)
    keep = random.random(500) < 0.5
    np.testing.assert_array_equal(
        render_points(positions, colours, **VIEW, keep=keep),
        render_points(positions[keep], colours[keep], **VIEW),
    )
    assert (render_points(positions, colours, **VIEW, keep=np.zeros(500, bool)) == WHITE).all()


def test_input_is_left_alone_and_the_order_does_not_matter():
    random = np.random.default_rng(0)
    positions, colours = random.normal(0, 0.5, (2000, 3)), random.uniform(0, 255, (2000, 3))
    copies = positions.copy(), colours.copy()
    picture = render_points(positions, colours, **VIEW)
    np.testing.assert_array_equal(positions, copies[0])
    np.testing.assert_array_equal(colours, copies[1])
    shuffle = random.permutation(2000)
    np.testing.assert_array_equal(picture, render_points(positions[shuffle], colours[shuffle], **VIEW))


def wall(y, half):
    """Return points in the plane y, one for each pixel in view or more, to `half` from the middle."""
    x, z = np.meshgrid(np.arange(-half, half, 0.03), np.arange(-half, half, 0.03))
    return np.stack([x, np.full_like(x, y), z], axis=-1).reshape(-1, 3)


def test_holes_are_filled():
    near, far = wall(0, 0.5), wall(1, 3.0)
    gap = np.abs(near[:, [0, 2]]).max(1) > 0.02  # one point or a few of the middle are missing
    positions = np.concatenate([near[gap], far])
    colours = np.repeat([(200, 100, 50), (0, 0, 255)], [gap.sum(), len(far)], axis=0)
    picture = render_points(positions, colours, **{**POINT, "radius": 0.8})
    assert gap.sum() < len(near)
    np.testing.assert_array_equal(picture[40:61, 40:61], np.broadcast_to((200, 100, 50), (21, 21, 3)))


def test_shading_darkens_what_lies_behind_an_edge():
    near, far = wall(0, 0.5), wall(1, 3.0)
    positions = np.concatenate([near, far])
    colours = np.full((len(positions), 3), 200)
    picture = render_points(positions, colours, **VIEW, radius=1.5, shading=1.0)[:, :, 0]
    assert (picture[42:59, 42:59] == 200).all()  # in front
    assert (picture[10:20, 10:90] == 200).all()  # behind, and far from the edge
    assert picture[50, 60:75].min() < 100
    assert (render_points(positions, colours, **VIEW, radius=1.5, shading=0)[10:90, 10:90] == 200).all()


@pytest.mark.parametrize("shapes", [((5, 2), (5, 3)), ((5, 3), (4, 3)), ((5,), (5,)), ((5, 4), (5, 4))])
def test_shapes(shapes):
    with pytest.raises(ValueError, match=r"must both have shape \(N, 3\)"):
        render_points(np.zeros(shapes[0]), np.zeros(shapes[1]), **VIEW)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("height", 0, "`height` must be at least 1, got 0"),
        ("width", -3, "`width` must be at least 1, got -3"),
        ("field_of_view", 180, "`field_of_view` must lie between"),
        ("field_of_view", float("nan"), "`field_of_view` must lie between"),
        ("radius", 0, "`radius` must be positive"),
        ("radius", float("inf"), "`radius` must be positive"),
        ("shading", -1, "`shading` must be at least 0"),
        ("eye", (0, 0, 0), "`eye` and `target` must differ"),
        ("eye", (0, 0), "`eye` must be three finite numbers"),
        ("target", (0, 0, float("nan")), "`target` must be three finite numbers"),
        ("up", (0, 1, 0), "`up` must not be zero or run along the view"),
        ("up", (0, 0, 0), "`up` must not be zero or run along the view"),
        ("keep", np.ones(4, bool), r"`keep` must be boolean with shape \(5,\)"),
        ("keep", np.ones(5), r"`keep` must be boolean with shape \(5,\)"),
        ("background", (0, 0), "`background` must be three numbers from 0 to 255"),
        ("background", (0, 0, 256), "`background` must be three numbers from 0 to 255"),
    ],
)
def test_bad_options(option, value, message):
    with pytest.raises(ValueError, match=message):
        render_points(np.zeros((5, 3)), np.zeros((5, 3)), **{**VIEW, option: value})


@pytest.mark.parametrize("name", ["positions", "colours"])
def test_not_finite(name):
    arrays = {"positions": np.zeros((5, 3)), "colours": np.zeros((5, 3))}
    arrays[name][3, 1] = np.nan
    with pytest.raises(ValueError, match=f"`{name}` must be finite, but point 3"):
        render_points(**arrays, **VIEW)
