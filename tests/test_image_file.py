import re

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from vicinal.cli import main
from vicinal.image_file import denoise_file


def noisy_values(height, width, channels, white):
    generator = np.random.default_rng(0)
    values = 0.5 + 0.1 * generator.standard_normal((height, width, channels))
    values[:, width // 2 :] += 0.2
    return (values.clip(0, 1) * white).round()


@pytest.fixture
def noisy(tmp_path):
    """A noisy colour image on disk."""
    path = tmp_path / "noisy.png"
    Image.fromarray(noisy_values(24, 32, 3, 255).astype(np.uint8)).save(path)
    return path


def save(path, mode):
    if mode == "I;16":
        Image.fromarray(noisy_values(24, 32, 1, 65535)[..., 0].astype(np.uint16)).save(path)
    else:
        bands = {"L": 1, "RGB": 3, "RGBA": 4, "LA": 2}[mode]
        values = noisy_values(24, 32, bands, 255).astype(np.uint8)
        Image.fromarray(values[..., 0] if bands == 1 else values).save(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_modes_and_depths_are_kept(tmp_path, mode):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    save(source, mode)
    done = denoise_file(source, target, window=11, sigma=0.1)
    with Image.open(source) as before, Image.open(target) as after:
        assert (after.mode, after.size) == (before.mode, before.size) == (mode, (32, 24))
        before, after = np.asarray(before).astype(float), np.asarray(after).astype(float)
    if mode.endswith("A"):
        np.testing.assert_array_equal(before[..., -1], after[..., -1])
        before, after = before[..., :-1], after[..., :-1]
    assert after[:, :12].std() < 0.5 * before[:, :12].std()
    assert done.channels == {"L": 1, "LA": 1, "I;16": 1}.get(mode, 3)


def test_palettes_become_colour(tmp_path, noisy):
    source, target = tmp_path / "palette.png", tmp_path / "out.png"
    with Image.open(noisy) as image:
        image.quantize(64).save(source)
    denoise_file(source, target, window=5, sigma=0.1)
    with Image.open(target) as after:
        assert after.mode == "RGB"


def test_it_may_write_onto_itself(noisy):
    before = noisy.read_bytes()
    denoise_file(noisy, noisy, window=5)
    assert noisy.read_bytes() != before


def test_command(noisy, tmp_path, capsys):
    target = tmp_path / "clean.jpg"
    assert main(["denoise", str(noisy), str(target), "--window", "7", "--patch", "3", "--strength", "1"]) == 0
    assert "32x24, estimated noise 0.1" in capsys.readouterr().out
    with Image.open(target) as after:
        assert after.size == (32, 24)


WRONG = [
    (["{dir}/no.png", "{dir}/out.png"], "IN: no file"),
    (["{dir}/text.png", "{dir}/out.png"], "IN: .* is not an image that Pillow reads"),
    (["{dir}", "{dir}/out.png"], "IN: cannot read"),
    (["{dir}/cut.png", "{dir}/out.png"], "IN: cannot read"),
    (["{dir}/float.tif", "{dir}/out.png"], "IN: images of mode 'F' are not supported, only L, "),
    (["{dir}/tiny.png", "{dir}/out.png"], "IN must have more than 2 rows and columns for patch 5, got 2x9"),
    (["{dir}/flat.png", "{dir}/out.png"], "--sigma: the noise of this image is estimated as 0"),
    (["{dir}/noisy.png", "{dir}/no/out.png"], "OUT: no folder"),
    (["{dir}/noisy.png", "{dir}/out.xyz"], "OUT must end in an image format's suffix"),
    (["{dir}/noisy.png", "{dir}/folder.png"], "OUT: cannot write .*: Is a directory"),
    (["{dir}/alpha.png", "{dir}/out.jpg"], "OUT: JPEG cannot hold an image of mode 'RGBA'"),
    (["{dir}/noisy.png", "{dir}/out.png", "--window", "6"], "--window must be odd and at least 1, got 6"),
    (["{dir}/noisy.png", "{dir}/out.png", "--patch", "0"], "--patch must be odd and at least 1, got 0"),
    (["{dir}/noisy.png", "{dir}/out.png", "--strength", "0"], "--strength must be finite and above 0, got 0"),
    (["{dir}/noisy.png", "{dir}/out.png", "--sigma", "nan"], "--sigma must be finite and above 0, got nan"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_commands(noisy, tmp_path, capsys, arguments, message):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(noisy.read_bytes()[:200])
    (tmp_path / "folder.png").mkdir()
    Image.new("F", (9, 9)).save(tmp_path / "float.tif")
    Image.new("RGB", (2, 9)).save(tmp_path / "tiny.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "flat.png")
    Image.new("RGBA", (9, 9)).save(tmp_path / "alpha.png")
    before = sorted(tmp_path.iterdir())
    assert main(["denoise", *(a.format(dir=tmp_path) for a in arguments)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("vicinal: ")
    assert re.search(message, errors), errors
    assert sorted(tmp_path.iterdir()) == before
