"""Parameters in a file: what is read, what is refused, and that every command takes them."""

import inspect
import io

import click
import numpy as np
import pytest
import torch
from calling import Command, contents
from PIL import Image

import hdcrf
from hdcrf.commands import main as command_line
from hdcrf.crf_layer import CRFLayer
from hdcrf.files import InputError
from hdcrf.params_file import keys_of, layer_params, owners_of, read_params, write_params

LAYERS = (hdcrf.DenseCRF, hdcrf.VideoCRF, hdcrf.VolumeCRF, hdcrf.PointCRF, hdcrf.TrilateralCRF)

VALUES = {
    "appearance_weight": 4.0,
    "appearance_sigma_xy": 30.0,
    "appearance_sigma_rgb": 8.0,
    "smoothness_weight": 0.0,
    "smoothness_sigma": 1.5,
    "iterations": 3,
    "normalization": "after",
    "exclude_self": False,
    "method": "voxel",
    "order": 2,
    "halo": 1,
    "tolerance": 0.001,
    "compatibility": [[0.0, 2.0], [1.0, 0.0]],
}

image = Command("image")


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Return a function that writes lines to params.toml, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="params.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def photo(params, tmp_path):
    """A working directory with a photo and probabilities."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save("photo.png")
    values = random.random((20, 24, 2)).astype(np.float32) + 0.1
    np.save("probabilities.npy", values / values.sum(2, keepdims=True))
    return tmp_path


ARGUMENTS = ("photo.png", "--probabilities", "probabilities.npy", "-o", "out.png")


def marginals(*options):
    image.succeed(*ARGUMENTS, "--save-marginals", "m.npy", *options)
    return np.load("m.npy")


class TestFile:
    def test_what_is_written_is_read(self, tmp_path):
        path = tmp_path / "params.toml"
        with open(path, "wb") as file:
            write_params(file, VALUES, ["made by hand", "of a\nname\x07", ""])
        assert read_params(path) == VALUES
        lines = path.read_text().splitlines()
        assert lines[:5] == ["# made by hand", "# of a?name?", "#", "", "appearance_weight = 4.0"]

    def test_whole_numbers_are_numbers(self, params):
        read = read_params(params("appearance_weight = 4\nsmoothness_sigma = 2"))
        assert read == {"appearance_weight": 4.0, "smoothness_sigma": 2.0}
        assert all(isinstance(value, float) for value in read.values())

    def test_a_mark_of_the_encoding(self, tmp_path):
        path = tmp_path / "params.toml"
        path.write_bytes(b"\xef\xbb\xbfiterations = 3\n")
        assert read_params(path) == {"iterations": 3}

    @pytest.mark.parametrize("value", ['"potts"', "[1.0, 2.0]", "[[0, 1], [1, 0]]"])
    def test_compatibilities(self, value, params):
        assert "compatibility" in read_params(params(f"compatibility = {value}"))

    def test_keys_are_the_options_of_the_layers(self):
        for layer in LAYERS:
            taken = set(inspect.signature(hdcrf.DenseCRF).parameters) | set(
                inspect.signature(layer).parameters
            )
            assert set(keys_of(layer)) <= taken
        assert set(VALUES) == set(keys_of(hdcrf.DenseCRF))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("apearance_weight = 4", r"no parameter `apearance_weight`; did you mean `appearance_weight`\?"),
            ("Appearance-Sigma-XY = 4", r"did you mean `appearance_sigma_xy`\?"),
            ("zzz = 1", "no parameter `zzz`; they are "),
            ("num_labels = 3", "`num_labels` is not a parameter of the model"),
            ("[crf]\niterations = 3", r"`\[crf\]` is a table; write the keys without one"),
            ('iterations = "3"', "`iterations` must be a whole number, got '3'"),
            ("iterations = 3.0", "`iterations` must be a whole number, got 3.0"),
            ("iterations = true", "`iterations` must be a whole number, got True"),
            ("appearance_weight = true", "`appearance_weight` must be a number, got True"),
            (f"appearance_weight = 1{'0' * 400}", "`appearance_weight` must be a number, got 1000"),
            ("exclude_self = 0", "`exclude_self` must be true or false, got 0"),
            ("method = 3", "`method` must be text in quotes, got 3"),
            ('compatibility = "costs.npy"', "`compatibility` must be 'potts', or numbers"),
            ("compatibility = [[0, 1], [1]]", "`compatibility` must be 'potts', or numbers"),
            ("compatibility = [[0, 1, 2], [1, 0, 2]]", "`compatibility` must be 'potts', or numbers"),
            ("compatibility = [1e39, 1]", r"`compatibility` must hold finite numbers within .*, got 1e\+39"),
            ("compatibility = [[0, 1], [nan, 0]]", "`compatibility` must hold finite numbers .*, got nan"),
            ("compatibility = [-inf, 1]", "`compatibility` must hold finite numbers .*, got -inf"),
            ("compatibility = []", "`compatibility` must be 'potts', or numbers"),
            ("iterations", "is not in TOML"),
            ("iterations = 3\niterations = 4", "is not in TOML"),
            (f"iterations = 1{'0' * 5000}", "is not in TOML"),
            (f"iterations = {'[' * 5000}", "is not in TOML"),
        ],
    )
    def test_refused(self, text, message, params):
        with pytest.raises(InputError, match=message) as caught:
            read_params(params(text))
        assert "params.toml" in str(caught.value)

    def test_other_files(self, params, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            read_params(tmp_path / "missing.toml")
        with pytest.raises(InputError, match="is a folder"):
            read_params(tmp_path)
        (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
        with pytest.raises(InputError, match="is not in TOML"):
            read_params(tmp_path / "photo.png")

    def test_a_film_is_not_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hdcrf.params_file._MOST_BYTES", 1 << 20)
        with open(tmp_path / "film.mp4", "wb") as file:
            file.truncate((1 << 20) + 1)
        with pytest.raises(InputError, match="more than 1 MiB"):
            read_params(tmp_path / "film.mp4")

    def test_nothing_to_write_with(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "tomli_w", None)
        with pytest.raises(InputError, match=r'tomli-w: pip install "hdcrf\[tune\]"'):
            write_params(io.BytesIO(), VALUES)


class TestLayer:
    def test_all_of_a_file(self, tmp_path):
        path = tmp_path / "params.toml"
        with open(path, "wb") as file:
            write_params(file, VALUES)
        made = hdcrf.DenseCRF.from_params(path, 2, learn=())
        matrix = torch.tensor(VALUES["compatibility"])
        expected = hdcrf.DenseCRF(2, learn=(), **{**VALUES, "compatibility": matrix})
        assert repr(made) == repr(expected)
        assert made.tolerance == expected.tolerance
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(made.get_parameter(name), parameter, rtol=0, atol=0)

    def test_options_win(self, params):
        path = params("iterations = 3\nappearance_weight = 4")
        crf = hdcrf.DenseCRF.from_params(path, 2, iterations=7, output="logits", learn=())
        assert (crf.iterations, crf.output, float(crf.appearance_weight)) == (7, "logits", 4)

    def test_what_options_replace_need_not_fit(self, params):
        """A matrix for three labels, where another one is given for four."""
        path = params("compatibility = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]\norder = 0\niterations = 3")
        given = {"compatibility": "potts", "order": 1}
        assert layer_params(path, hdcrf.DenseCRF, 4, given) == {"iterations": 3}
        with pytest.raises(InputError, match=r"params\.toml: `order` must"):
            layer_params(path, hdcrf.DenseCRF, 4, {"compatibility": "potts"})

    def test_options_win_where_the_file_does_not_fit(self, params):
        path = params("compatibility = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]\niterations = 4")
        crf = hdcrf.DenseCRF.from_params(path, 4, compatibility="potts", learn=())
        assert (crf.num_labels, crf.iterations) == (4, 4)
        with pytest.raises(InputError, match=r"params\.toml: `compatibility` must have shape \(4,\)"):
            hdcrf.DenseCRF.from_params(path, 4)

    @pytest.mark.parametrize("layer", LAYERS)
    def test_every_layer(self, layer, params):
        made = layer.from_params(str(params("iterations = 3")), 2)
        assert type(made) is layer
        assert made.iterations == 3

    def test_of_images_for_videos(self, params):
        crf = hdcrf.VideoCRF.from_params(params("appearance_sigma_xy = 30.0"), 2)
        assert float(crf.appearance_sigma_xy) == pytest.approx(30)
        assert float(crf.appearance_sigma_t) == pytest.approx(3)

    def test_of_another_layer(self, params):
        path = params("appearance_sigma_xy = 30.0")
        message = "`appearance_sigma_xy` is not a parameter of VolumeCRF, but of DenseCRF and VideoCRF"
        with pytest.raises(InputError, match=message):
            hdcrf.VolumeCRF.from_params(path, 2)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("appearance_sigma_xy = 0", "`appearance_sigma_xy` must be a finite number greater than 0"),
            ("appearance_weight = inf", "`appearance_weight` must be finite"),
            ("order = 0", "`order` must"),
            ('normalization = "both"', "`normalization` must be one of"),
            ("compatibility = [1, 2, 3]", r"`compatibility` must have shape \(2,\) or \(2, 2\), got \(3,\)"),
        ],
    )
    def test_values_out_of_range_are_the_files(self, text, message, params):
        with pytest.raises(InputError, match=r"params\.toml: " + message):
            hdcrf.DenseCRF.from_params(params(text), 2)

    def test_layers_of_users(self, params, monkeypatch):
        """Those that only inherit a parameter are not named for it; those that have one of their own are."""
        monkeypatch.setattr(CRFLayer, "registered", dict(CRFLayer.registered))
        inherited = owners_of("sigma_t")

        class Plain(hdcrf.TrilateralCRF):
            pass

        class Steeper(hdcrf.DenseCRF):
            def __init__(self, num_labels, *, steepness=1.0, **options):
                super().__init__(num_labels, **options)
                self.steepness = steepness

        assert owners_of("sigma_t") == inherited == ["TrilateralCRF"]
        assert owners_of("steepness") == ["Steeper"]
        path = params("steepness = 2.0\nappearance_weight = 4.0\niterations = 3")
        made = Steeper.from_params(path, 2, learn=())
        assert (made.steepness, float(made.appearance_weight), made.iterations) == (2, pytest.approx(4), 3)
        with pytest.raises(InputError, match="`steepness` is not a parameter of DenseCRF, but of Steeper"):
            hdcrf.DenseCRF.from_params(path, 2)
        assert type(Plain.from_params(params("sigma_t = 2.0"), 2)) is Plain

    def test_other_errors_are_not(self, params):
        path = params("iterations = 3")
        with pytest.raises(ValueError, match=r"^`num_labels` must"):
            hdcrf.DenseCRF.from_params(path, 0)
        with pytest.raises(ValueError, match=r"^`halo` must"):
            hdcrf.DenseCRF.from_params(path, 2, halo=-1)
        with pytest.raises(TypeError, match="no_such"):
            hdcrf.DenseCRF.from_params(path, 2, no_such=1)


class TestCommand:
    def test_every_command_that_has_the_model_takes_them(self):
        for name, command in command_line.commands.commands.items():
            names = {parameter.name for parameter in command.params}
            assert ("iterations" in names) == ("params" in names), name

    def test_reaches_the_model(self, photo, params):
        values = {**VALUES, "method": "permutohedral"}
        with open("params.toml", "wb") as file:
            write_params(file, values)
        expected = hdcrf.refine(
            np.asarray(Image.open("photo.png")),
            probabilities=np.load("probabilities.npy"),
            return_marginals=True,
            **values,
        )
        np.testing.assert_array_equal(marginals("--params", "params.toml"), expected)
        again = marginals("--iterations", 3, "--params", "params.toml", "--method", "permutohedral")
        np.testing.assert_array_equal(again, expected)

    @pytest.mark.parametrize("first", [True, False])
    def test_given_options_win(self, first, photo, params):
        params("iterations = 0\nexclude_self = false\nappearance_sigma_xy = 5.0")
        given = ("--iterations", 2, "--exclude-self")
        file = ("--params", "params.toml")
        expected = marginals(*given, "--appearance-sigma-xy", 5)
        np.testing.assert_array_equal(marginals(*(given + file if first else file + given)), expected)

    def test_help_shows_them_as_defaults(self, params):
        params("appearance_sigma_xy = 12.5")
        help_text = Command("image").succeed("--params", "params.toml", "--help").stdout
        assert "[default: 12.5; x>0]" in " ".join(help_text.split())

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("iterations = -1", "params params.toml: `iterations`: -1 is not in the range 0<=x<=1000000."),
            ("appearance_sigma_xy = 0", "params params.toml: `appearance_sigma_xy`: 0.0 is not in the range"),
            (
                "appearance_weight = nan",
                "params params.toml: `appearance_weight`: nan is not a finite number.",
            ),
            ('method = "fft"', "params params.toml: `method`: 'fft' is not one of 'permutohedral'"),
            ("apearance_weight = 1", "did you mean `appearance_weight`?"),
            ('output = "labels.png"', "`output` is not a parameter of the model"),
            (
                "compatibility = [1, 2, 3]",
                "params params.toml: `compatibility` must have shape (2,) or (2, 2)",
            ),
        ],
    )
    def test_refused(self, text, message, photo, params):
        params(text)
        before = contents(photo)
        assert message in image.refuse(*ARGUMENTS, "--params", "params.toml")
        assert contents(photo) == before

    def test_missing(self, photo):
        assert "params missing.toml does not exist" in image.refuse(*ARGUMENTS, "--params", "missing.toml")
        assert "the name is empty" in image.refuse(*ARGUMENTS, "--params", "")

    def test_is_no_output(self, photo, params):
        params("iterations = 1", "params.png")
        arguments = (*ARGUMENTS[:-1], "./params.png", "--params", "params.png")
        assert "is also the file of --params" in image.refuse(*arguments)

    def test_parameters_of_other_layers_are_noted(self, photo, params):
        params("iterations = 1\nappearance_sigma_xyz = 0.5\nsigma_t = 2.0")
        result = image.succeed(*ARGUMENTS, "--params", "params.toml")
        assert result.stderr == (
            "Note: params params.toml: left out, as this command has no such option: "
            "`appearance_sigma_xyz` (of PointCRF, VolumeCRF), `sigma_t` (of TrilateralCRF)\n"
        )
        assert image.succeed(*ARGUMENTS, "--params", "params.toml", "--quiet").output == ""

    def test_lengths_in_other_units_are_left_out(self, params):
        """Pixels are no metres, although both have a `smoothness_sigma`."""
        random = np.random.default_rng(0)
        np.savez("cloud.npz", positions=random.random((50, 3)), labels=random.integers(0, 2, 50))
        points = Command("points")
        arguments = ("cloud.npz", "--annotation", "-o", "out.npz", "--save-marginals", "m.npy")
        points.succeed(*arguments)
        expected = np.load("m.npy")
        params("smoothness_sigma = 5.0\nappearance_sigma_xy = 30.0")
        result = points.succeed(*arguments, "--params", "params.toml")
        np.testing.assert_array_equal(np.load("m.npy"), expected)
        first, second, *_ = result.stderr.splitlines()
        assert "`appearance_sigma_xy` (of DenseCRF, VideoCRF)" in first
        assert second == (
            "Note: params params.toml: `smoothness_sigma` is left out too, as it is in the unit of these"
        )
        params("smoothness_sigma = 5.0\nappearance_sigma_xyz = 0.3")
        assert "left out" not in points.succeed(*arguments, "--params", "params.toml").stderr
        assert not np.array_equal(np.load("m.npy"), expected)

    def test_sigmas_that_a_cloud_does_not_use(self, params):
        """One given as an option is an error, but a file may hold it for another cloud."""
        params("appearance_sigma_rgb = 5.0\nsmoothness_sigma = 1.0\nappearance_sigma_xyz = 2.0")
        random = np.random.default_rng(0)
        np.savez("cloud.npz", positions=random.random((50, 3)), labels=random.integers(0, 2, 50))
        points = Command("points")
        arguments = ("cloud.npz", "--annotation", "-o", "out.npz")
        points.succeed(*arguments, "--params", "params.toml")
        assert "--appearance-sigma-rgb goes with colours" in points.refuse(
            *arguments, "--params", "params.toml", "--appearance-sigma-rgb", 5
        )

    def test_no_callback_while_a_shell_completes(self, params):
        command = command_line.commands.commands["image"]
        context = command.make_context("image", ["--params", "missing.toml"], resilient_parsing=True)
        assert isinstance(context, click.Context)
