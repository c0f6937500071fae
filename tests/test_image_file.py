import errno
import io
import os
import re
import struct
import zlib

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image

from vicinal import image_file
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


@pytest.mark.parametrize("kind", ["big-endian.tif", "grey.pgm"])
def test_sixteen_bits_of_grey_are_kept_however_they_are_stored(tmp_path, kind):
    values = noisy_values(24, 32, 1, 65535)[..., 0].astype(">u2")
    if kind == "grey.pgm":
        (tmp_path / kind).write_bytes(b"P5 32 24 65535\n" + values.tobytes())
    else:
        Image.frombytes("I;16B", (32, 24), values.tobytes()).save(tmp_path / kind)
    denoise_file(tmp_path / kind, tmp_path / "out.png", window=1, sigma=0.1)  # a window of one pixel: the image
    with Image.open(tmp_path / "out.png") as after:
        assert after.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(after), values)


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


@pytest.mark.parametrize("target", ["noisy.png", "other.png", "new.png"])
def test_a_failed_write_leaves_everything_as_it_was(noisy, tmp_path, target, monkeypatch):
    def save(self, file, **options):
        if isinstance(file, io.BytesIO):  # the trial
            return saved(self, file, **options)
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saved = Image.Image.save
    (tmp_path / "other.png").write_bytes(b"precious")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match=r"target: cannot write .*: No space left on device"):
        denoise_file(noisy, tmp_path / target, window=5, sigma=0.1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def described():
    """EXIF data: a description, a turned camera, and an exposure time in its own directory."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a boat", 6
    exif.get_ifd(0x8769)[0x829A] = 0.5
    return exif


@pytest.mark.parametrize("source", ["in.jpg", "in.png", "in.webp", "in.tif"])
@pytest.mark.parametrize("target", ["out.jpg", "out.png", "out.webp", "out.avif", "out.tif"])
def test_metadata_is_kept_and_the_image_upright(noisy, tmp_path, source, target):
    source, target = tmp_path / source, tmp_path / target
    with Image.open(noisy) as image:
        image.save(source, exif=described(), icc_profile=b"profile", dpi=(300, 300), compression="tiff_lzw")
    assert denoise_file(source, target, window=5, sigma=0.1).lost == ()
    with Image.open(source) as before, Image.open(target) as after:
        assert after.size == (24, 32)
        exif = after.getexif()
        assert (exif[0x010E], exif.get(0x0112, 1)) == ("a boat", 1)
        assert exif.get_ifd(0x8769).get(0x829A) == before.getexif().get_ifd(0x8769).get(0x829A)
        assert after.info["icc_profile"] == b"profile"
        after.load()


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tga", ".jp2"])
def test_metadata_that_a_format_cannot_hold_is_named(noisy, tmp_path, suffix, capsys):
    source, target = tmp_path / "in.jpg", tmp_path / f"out{suffix}"
    with Image.open(noisy) as image:
        image.save(source, exif=described(), icc_profile=b"profile")
    assert main(["denoise", str(source), str(target), "--window", "5"]) == 0
    assert f"left out, for {suffix} holds none: EXIF, ICC profile\n" in capsys.readouterr().out


def test_one_frame_of_several(tmp_path, capsys):
    source, target = tmp_path / "two.tif", tmp_path / "out.png"
    frames = [Image.fromarray(noisy_values(24, 32, 1, white)[..., 0].astype(np.uint8)) for white in (255, 100)]
    frames[0].save(source, save_all=True, append_images=frames[1:])
    assert main(["denoise", str(source), str(target), "--window", "5", "--sigma", "20", "--frame", "1"]) == 0
    assert "noise 0.078 (of 255: 20.0)" in capsys.readouterr().out
    with Image.open(target) as after:
        assert np.asarray(after).mean() == pytest.approx(np.asarray(frames[1]).mean(), rel=0.02)


def test_a_transparent_colour_becomes_transparency(tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    values = noisy_values(24, 32, 1, 255)[..., 0].astype(np.uint8)
    Image.fromarray(values).save(source, transparency=int(values[0, 0]))
    denoise_file(source, target, window=5, sigma=0.1)
    with Image.open(target) as after:
        assert after.mode == "LA"
        np.testing.assert_array_equal(np.asarray(after)[..., 1] == 0, values == values[0, 0])


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def deep_png():
    """A PNG of 16 bits a channel, as Pillow does not write them: 32x24, its pixels all black."""
    header = struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(24 * (1 + 32 * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_tiff():
    """The same as TIFF."""
    tags = [(256, 4, 32), (257, 4, 24), (258, 3, 16), (259, 3, 1), (262, 3, 2), (273, 4, 200), (277, 3, 3)]
    tags += [(278, 4, 24), (279, 4, 24 * 32 * 6)]
    entries = []
    for tag, kind, value in tags:
        count = 3 if tag == 258 else 1  # three shorts do not fit: they lie at 190
        packed = struct.pack("<I", 190) if tag == 258 else struct.pack("<I" if kind == 4 else "<Hxx", value)
        entries.append(struct.pack("<HHI", tag, kind, count) + packed)
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + struct.pack("<I", 0)
    head = struct.pack("<2sHI", b"II", 42, 8) + directory
    return head.ljust(190, b"\0") + struct.pack("<3H", 16, 16, 16).ljust(10, b"\0") + bytes(24 * 32 * 6)


def deepened(kind, shallow, deep):
    """A file of 8 bits that says that it has more."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24)).save(file, format=kind)
    assert shallow in file.getvalue()
    return file.getvalue().replace(shallow, deep)


DEEP = {
    "deep.png": deep_png,
    "deep.tif": deep_tiff,
    "deep.ppm": lambda: b"P6 32 24 65535\n" + bytes(24 * 32 * 6),
    "deep.jp2": lambda: deepened("JPEG2000", b"\x03\x07\x01\x01\x07", b"\x03\x0f\x01\x01\x0f"),
    "deep.avif": lambda: deepened(
        "AVIF", b"\x03\x08\x08\x08\0\0\0\x0cav1C\x81\0\x0c", b"\x03\x0a\x0a\x0a\0\0\0\x0cav1C\x81\0\x4c"
    ),
}


@pytest.mark.parametrize("name", DEEP)
def test_colours_deeper_than_pillow_reads_are_refused(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(DEEP[name]())
    assert main(["denoise", str(tmp_path / name), str(tmp_path / "out.png"), "--sigma", "0.1"]) == 2
    bits = 10 if name == "deep.avif" else 16
    assert capsys.readouterr().err.startswith(f"vicinal: IN has {bits} bits a channel in colour")
    assert not (tmp_path / "out.png").exists()


def bomb():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def text_bomb():
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1 << 24)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IEND", b"")


def test_too_little_memory_is_said_beforehand(noisy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_file, "_free_bytes", lambda device: 1000)
    assert main(["denoise", str(noisy), str(tmp_path / "out.png"), "--device", "cpu"]) == 2
    assert re.search(
        r"--window: this image and window need about \S+ GB of memory, 1e-06 GB are free", capsys.readouterr().err
    )


def test_a_long_wait_is_told_beforehand(noisy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_file, "MANY_FLOPS", 0)
    monkeypatch.setattr(image_file, "_flops_per_second", lambda *_: 1e4)
    assert main(["denoise", str(noisy), str(tmp_path / "out.png"), "--window", "5", "--device", "cpu"]) == 0
    assert re.search(r"this will take about \d+ minutes; a smaller --window takes less\n", capsys.readouterr().out)


def test_the_rate_is_measured():
    assert image_file._flops_per_second(1, 3, image_file.torch.device("cpu")) > 0


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
    (["{dir}/bomb.png", "{dir}/out.png"], "IN: .* may be a decompression bomb"),
    (["{dir}/text_bomb.png", "{dir}/out.png"], "IN: cannot read"),
    (["{dir}/cmyk.jpg", "{dir}/out.png"], "IN: images of mode 'CMYK' are not supported"),
    (["{dir}/key16.png", "{dir}/out.png"], "IN has one of its I;16 values for transparent"),
    (["{dir}/frames.gif", "{dir}/out.png"], "IN has 2 frames, choose one, from 0 to 1"),
    (["{dir}/frames.gif", "{dir}/out.png", "--frame", "2"], "--frame must be from 0 to 1 for .*, got 2"),
    (["{dir}/grey16.png", "{dir}/out.webp"], "OUT: WEBP cannot hold an image of mode 'I;16'"),
    (["{dir}/alpha.png", "{dir}/out.bmp"], "OUT: BMP cannot hold an image of mode 'RGBA'"),
    (["{dir}/noisy.png", "{dir}/out.gif"], "OUT must end in an image format's suffix"),
    (["{dir}/noisy.png", "{dir}/out.png", "--sigma", "300"], r"--sigma: must be up to 1 .* or up to 255"),
    (["{dir}/noisy.png", "{dir}/out.png", "--device", "abacus"], "--device"),
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
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "text_bomb.png").write_bytes(text_bomb())
    Image.new("CMYK", (9, 9)).save(tmp_path / "cmyk.jpg")
    Image.new("I;16", (9, 9)).save(tmp_path / "grey16.png")
    Image.new("I;16", (9, 9)).save(tmp_path / "key16.png", transparency=7)
    frames = [Image.new("L", (9, 9), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    Image.new("F", (9, 9)).save(tmp_path / "float.tif")
    Image.new("RGB", (2, 9)).save(tmp_path / "tiny.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "flat.png")
    Image.new("RGBA", (9, 9)).save(tmp_path / "alpha.png")
    before = sorted(tmp_path.iterdir())
    assert main(["denoise", *(a.format(dir=tmp_path) for a in arguments)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("vicinal: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors), errors
    assert sorted(tmp_path.iterdir()) == before
