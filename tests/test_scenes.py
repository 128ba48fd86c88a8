"""The scenes that demos, tests and benchmarks share: their form, their seeds, how hard they are."""

import numpy as np
import pytest

from demos import scenes
from demos.scenes.room import Room, Solids, cast_rays, furnished_room
from demos.scenes.street import BUILDING


def right_by_colour_alone(colours, labels):
    """Return the share of labels that the nearest mean colour of a class finds."""
    colours, labels = colours.reshape(-1, 3).astype(np.float64), labels.ravel()
    means = np.stack([colours[labels == k].mean(0) for k in range(labels.max() + 1)])
    return (np.square(colours[:, None] - means).sum(2).argmin(1) == labels).mean()


def same(made, again):
    return all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))


class TestMovingScene:
    @pytest.mark.parametrize("seed", range(4))
    def test_form(self, seed):
        video, labels, names = scenes.moving_scene(5, 80, 121, seed)
        assert video.shape == (5, 80, 121, 3)
        assert video.dtype == np.uint8
        assert labels.shape == (5, 80, 121)
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(np.unique(labels), range(len(names)))
        # Measured: 0.47 to 0.57.
        assert right_by_colour_alone(video, labels) < 0.8

    def test_seeds(self):
        made = scenes.moving_scene(2, 32, 48, 7)
        assert same(made, scenes.moving_scene(2, 32, 48, 7))
        assert not same(made[:1], scenes.moving_scene(2, 32, 48, 8)[:1])

    @pytest.mark.parametrize("seed", range(4))
    def test_the_camera_pans_and_near_things_faster(self, seed):
        _, labels, _ = scenes.moving_scene(12, 80, 120, seed)
        columns = {"first": labels[0], "last": labels[-1]}
        # How far the houses' outline moved: the shift at which the skylines agree best.
        skyline = {name: (frame == BUILDING).argmax(0) for name, frame in columns.items()}
        shifts = np.arange(-30, 31)
        gaps = [np.abs(skyline["first"][30 - s : 90 - s] - skyline["last"][30:90]).mean() for s in shifts]
        assert 3 <= abs(shifts[int(np.argmin(gaps))]) <= 12  # 0.012 · 0.6 · 11 frames · 80 pixels = 6.3

    @pytest.mark.parametrize("shape", [(1, 9, 7), (0, 16, 16), (3, 24, 100)])
    def test_odd_shapes(self, shape):
        video, labels, _ = scenes.moving_scene(*shape)
        assert video.shape == (*shape, 3)
        assert labels.shape == shape


class TestNetworkOutput:
    @pytest.fixture(scope="class")
    @staticmethod
    def street():
        _, labels, _ = scenes.moving_scene(6, 120, 180, 0)
        return labels, scenes.network_output(labels, 6, 0)

    def test_mediocre(self, street):
        labels, probabilities = street
        assert probabilities.shape == (*labels.shape, 6)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)  # float32
        assert 0.7 < (probabilities.argmax(-1) == labels).mean() < 0.9  # measured: 0.80

    def test_errors_last_in_part_and_flicker_in_part(self, street):
        still = np.repeat(street[0][:1], 6, axis=0)

        def again(frames):
            """Return which share of the errors is there in the next frame too."""
            wrong = frames != still
            return (wrong[1:] & wrong[:-1]).sum() / wrong[1:].sum()

        together = again(scenes.network_output(still, 6, 0).argmax(-1))
        apart = again(np.stack([scenes.network_output(still[0], 6, seed).argmax(-1) for seed in range(6)]))
        assert apart + 0.12 < together < 0.9  # measured: 0.47 and 0.62

    @pytest.mark.parametrize("stride", [1, 4, 7, 8])
    def test_no_shift(self, stride):
        # Without errors the cells of an image that is symmetric give a symmetric answer, but for the half
        # pixel by which an even stride has no middle.
        labels = np.zeros((2 * stride, 8 * stride), int)
        labels[:, 2 * stride : 6 * stride] = 1
        calm = scenes.network_output(labels, 2, stride=stride, noise=0, confusion=0)
        # The border is displaced at random, by 0.4 of a stride for one standard deviation.
        assert (calm.argmax(-1) == labels)[:, [0, stride - 1, -stride, -1]].all()
        assert (calm.argmax(-1) == labels).mean() > 0.75

    def test_an_image(self):
        labels = np.random.default_rng(0).integers(0, 3, (3, 5)).repeat(9, 0).repeat(9, 1)[:-2, :-1]
        probabilities = scenes.network_output(labels, 4, 1)
        assert probabilities.shape == (25, 44, 4)
        np.testing.assert_array_equal(probabilities, scenes.network_output(labels, 4, 1))
        np.testing.assert_array_equal(probabilities, scenes.network_output(labels[None], 4, 1)[0])
        assert not np.array_equal(probabilities, scenes.network_output(labels, 4, 2))


class TestDamagedLabels:
    LABELS = np.arange(20_000) % 5

    def test_shares(self):
        damaged = scenes.damaged_labels(self.LABELS, 0.2, 0.5, 0)
        known = damaged >= 0
        assert damaged.min() == -1
        # Four standard deviations of the shares.
        assert abs(known.mean() - 0.5) < 4 * np.sqrt(0.25 / 20_000)
        assert abs((damaged != self.LABELS)[known].mean() - 0.2) < 4 * np.sqrt(0.16 / 10_000)
        wrong = known & (damaged != self.LABELS)
        offsets = np.bincount((damaged - self.LABELS)[wrong] % 5, minlength=5) / wrong.sum()
        np.testing.assert_allclose(offsets, [0, 0.25, 0.25, 0.25, 0.25], atol=4 * np.sqrt(0.19 / 2000))

    def test_extremes(self):
        np.testing.assert_array_equal(scenes.damaged_labels(self.LABELS, 0, 0), self.LABELS)
        assert (scenes.damaged_labels(self.LABELS, 0, 1) == -1).all()
        assert (scenes.damaged_labels(self.LABELS, 1, 0) != self.LABELS).all()
        assert scenes.damaged_labels(np.zeros(0, int)).shape == (0,)

    def test_seeds(self):
        damaged = scenes.damaged_labels(self.LABELS, seed=3)
        np.testing.assert_array_equal(damaged, scenes.damaged_labels(self.LABELS, seed=3))
        assert (damaged != scenes.damaged_labels(self.LABELS, seed=4)).any()


class TestScannedRoom:
    @pytest.mark.parametrize("seed", range(4))
    def test_form(self, seed):
        positions, colours, normals, labels, names = scenes.scanned_room(20_001, seed)
        for array in (positions, colours, normals):
            assert array.shape == (20_001, 3)
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
        assert colours.min() >= 0
        assert colours.max() <= 255
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)  # float32
        assert labels.dtype == np.int64
        assert np.bincount(labels, minlength=len(names)).min() > 20
        # Measured: 0.41 to 0.44.
        assert right_by_colour_alone(colours, labels) < 0.8

    def test_seeds(self):
        made = scenes.scanned_room(3000, 1)
        assert same(made, scenes.scanned_room(3000, 1))
        assert not same(made[:1], scenes.scanned_room(3000, 2)[:1])

    @pytest.mark.parametrize("points", [0, 1, 2, 11])
    def test_few_points(self, points):
        assert len(scenes.scanned_room(points)[0]) == points

    @pytest.mark.parametrize("seed", range(4))
    def test_no_point_behind_a_box(self, seed):
        positions, _, _, labels, _ = scenes.scanned_room(3000, seed)
        room = furnished_room(np.random.default_rng(seed))
        boxes = [
            (centre, half, yaw)
            for centre, half, yaw, ball in zip(*room.solids[:4], strict=True)
            if not ball and half.min() > 0.02
        ]
        assert len(boxes) > 20
        scanner = room.scanners[(np.arange(3000) >= 1500).astype(int)]
        ray = positions - scanner
        reach = np.linalg.norm(ray, axis=1)
        # 200 places between the scanner and 6 cm before the point: the range errs by 1 cm or less, mostly.
        share = (1 - 0.06 / reach) * np.linspace(0, 1, 200)[:, None]
        between = (scanner + share[:, :, None] * ray).reshape(-1, 3)
        blocked = np.zeros(len(between), bool)
        for centre, half, yaw in boxes:
            x, y, z = (between - centre).T
            along, across = np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x
            inside = (np.abs(along) < half[0] - 1e-3) & (np.abs(across) < half[1] - 1e-3)
            blocked |= inside & (np.abs(z) < half[2] - 1e-3)
        assert not blocked.any()
        assert np.isin(labels[reach > 2], [scenes.ROOM.index(n) for n in ("wall", "shelf", "book")]).any()

    def test_range_error_grows_and_density_falls(self):
        positions, _, _, labels, _ = scenes.scanned_room(100_000, 0)
        room = furnished_room(np.random.default_rng(0))
        ceiling = labels == scenes.ROOM.index("ceiling")
        scanner = room.scanners[(np.arange(100_000) >= 50_000).astype(int)]
        reach = np.linalg.norm(positions - scanner, axis=1)
        # Along the ray: the ceiling is flat, so the height shows the error, foreshortened.
        steep = np.abs(positions[:, 2] - scanner[:, 2]) / reach
        error = (positions[:, 2] - room.size[2]) / steep
        near, far = ceiling & (reach < 1.5), ceiling & (reach > 3)
        assert near.sum() > far.sum() > 100
        assert 0.003 < error[near].std() < 0.005  # 2 mm + 1.5 mm/m · 1.1 to 1.5 m
        assert 0.006 < error[far].std() < 0.011  # 3 to 5 m


class TestCastRays:
    ROOM = Room(
        size=np.array([10.0, 10.0, 10.0]),
        solids=Solids(
            centre=np.array([(8.0, 5.0, 5.0), (5.0, 8.0, 5.0), (2.0, 5.0, 5.0)]),
            half=np.array([(1.0, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.0, 1.0)]),
            yaw=np.array([0, 0, np.pi / 4]),
            round=np.array([False, True, False]),
            label=np.array([5, 6, 7]),
            colour=np.zeros((3, 3)),
        ),
        scanners=np.full((1, 3), 5.0),
        light=np.full(3, 5.0),
        colours=np.zeros((3, 3)),
    )

    @pytest.mark.parametrize(
        ("direction", "distance", "solid", "normal", "label"),
        [
            ((1, 0, 0), 2, 0, (-1, 0, 0), 5),
            ((0, 1, 0), 2.5, 1, (0, -1, 0), 6),
            ((0, -1, 0), 5, -1, (0, 1, 0), scenes.ROOM.index("wall")),
            ((0, 0, 1), 5, -1, (0, 0, -1), scenes.ROOM.index("ceiling")),
            ((0, 0, -1), 5, -1, (0, 0, 1), scenes.ROOM.index("floor")),
            # The edge of the turned box is √2 from its middle; a little aside of it, its right face.
            ((-1, 1e-6, 0), 3 - np.sqrt(2), 2, (np.sqrt(0.5), np.sqrt(0.5), 0), 7),
        ],
    )
    def test_known_hits(self, direction, distance, solid, normal, label):
        hit = cast_rays(self.ROOM, np.full(3, 5.0), np.array([direction], dtype=float))
        np.testing.assert_allclose(hit[0], [distance], atol=1e-5)  # the last ray is 1e-6 aside
        assert hit[1] == solid
        np.testing.assert_allclose(hit[2], [normal], atol=1e-5)
        assert hit[3] == label

    def test_a_solid_hides_what_is_behind_it(self):
        solids = self.ROOM.solids
        behind = solids._replace(centre=np.array([(8.0, 5.0, 5.0), (6.0, 5.0, 5.0), (9.5, 5.0, 5.0)]))
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
            room = self.ROOM._replace(solids=Solids(*(array[order] for array in behind)))
            distance, _, _, label = cast_rays(room, np.array([2.0, 5, 5]), np.array([(1.0, 0, 0)]))
            assert label == 6
            np.testing.assert_allclose(distance, 3)


class TestMovingVoxels:
    @pytest.mark.parametrize("seed", range(4))
    def test_form(self, seed):
        coordinates, colours, labels, names = scenes.moving_voxels(6, seed)
        count = len(coordinates)
        assert coordinates.shape == (count, 4)
        assert colours.shape == (count, 3)
        assert colours.dtype == np.float32
        assert labels.shape == (count,)
        assert coordinates.dtype == labels.dtype == np.int64
        assert 1000 < count / 6 < 4000
        np.testing.assert_array_equal(np.unique(coordinates[:, 3]), range(6))
        np.testing.assert_array_equal(np.unique(labels), range(len(names)))
        order = np.lexsort(coordinates[:, [2, 1, 0, 3]].T)
        np.testing.assert_array_equal(order, np.arange(count))
        assert len(np.unique(coordinates, axis=0)) == count
        # Measured: 0.32 to 0.43.
        assert right_by_colour_alone(colours, labels) < 0.8

    def test_seeds(self):
        made = scenes.moving_voxels(2, 5)
        assert same(made, scenes.moving_voxels(2, 5))
        other = scenes.moving_voxels(2, 6)
        assert len(made[0]) != len(other[0]) or not same(made[:1], other[:1])

    def test_only_cars_and_people_move(self):
        coordinates, _, labels, names = scenes.moving_voxels(4, 0, missing=0)
        by_frame = [
            {
                name: set(map(tuple, coordinates[(coordinates[:, 3] == t) & (labels == k), :3]))
                for k, name in enumerate(names)
            }
            for t in (0, 3)
        ]
        for name in ("building", "tree"):  # but for the voxels that a person before them covers
            first, last = by_frame[0][name], by_frame[1][name]
            assert len(first ^ last) < 0.05 * len(first)
        for name in ("car", "person"):
            first, last = by_frame[0][name], by_frame[1][name]
            assert len(first ^ last) > 0.2 * len(first)

    def test_surface_only(self):
        coordinates, *_ = scenes.moving_voxels(1, 0, missing=0)
        stored = set(map(tuple, coordinates[:, :3]))
        steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
        buried = [v for v in stored if all(tuple(np.add(v, step)) in stored for step in steps)]
        # A crown of leaves may have a hole in its middle whose walls count; nothing is solid.
        assert len(buried) < 0.01 * len(stored)

    def test_nothing(self):
        coordinates, colours, labels, _ = scenes.moving_voxels(0)
        assert coordinates.shape == (0, 4)
        assert colours.shape == (0, 3)
        assert labels.shape == (0,)


class TestScores:
    def test_mean_iou(self):
        truth = np.array([0, 0, 0, 1, 1, 3])
        labels = np.array([0, 0, 1, 1, -1, 3])
        # 2 of 3, 1 of 3, and all of the last; class 2 is in neither.
        assert scenes.mean_iou(labels, truth, 4) == pytest.approx((2 / 3 + 1 / 3 + 1) / 3)
        assert scenes.mean_iou(truth, truth, 4) == 1

    def test_flicker(self):
        truth = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 1]], [[0, 0, 0, 1]]])
        labels = np.array([[[0, 1, 1, 1]], [[0, 0, 0, 1]], [[1, 0, 0, 0]]])
        # The third pixel of the first step changes as the truth does.
        np.testing.assert_array_equal(scenes.flicker(labels, truth), [0.25, 0.5])
        assert not scenes.flicker(truth, truth).any()
