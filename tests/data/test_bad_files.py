"""Training folders with unusable files: which files are used, notes to the user, and errors."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cyclestyle.data import UnpairedFolders
from cyclestyle.errors import CommandError, DataError
from tests.filesystem.test_listing import ODD_NAMES
from tests.forked import in_a_child
from tests.pictures import folder_of, picture, two_domains


def unpaired(root: Path, **settings: object) -> UnpairedFolders:
    return UnpairedFolders(str(root), **{"load_size": 16, "crop_size": 16, **settings})


def inspected(root: Path, **settings: object) -> UnpairedFolders:
    data = unpaired(root, **settings)
    data.inspect()
    return data


def copies(folder: Path, count: int) -> list[Path]:
    """Write `count` copies of one image to `folder`, as 000.png, 001.png, ..."""
    folder.mkdir(parents=True)
    picture(1).save(folder / "000.png")
    content = (folder / "000.png").read_bytes()
    files = [folder / f"{number:03}.png" for number in range(count)]
    for file in files:
        file.write_bytes(content)
    return files


def refused(root: Path, **settings: object) -> list[str]:
    """Return the lines of the DataError that inspection of `root` raises."""
    with pytest.raises(DataError) as caught:
        inspected(root, **settings)
    assert caught.value.code == 3
    return str(caught.value).splitlines()


def test_bad_files_are_listed_by_path_and_reason(tmp_path: Path) -> None:
    two_domains(tmp_path)
    intact = (tmp_path / "trainA" / "000.png").read_bytes()
    contents = {
        "empty.jpg": b"",
        "flipped.png": intact[:-20] + bytes([intact[-20] ^ 1]) + intact[-19:],
        "truncated.png": intact[:-30],
        "web.jpg": b"<html><body>404 Not Found</body></html>",
    }
    for name, content in contents.items():
        (tmp_path / "trainA" / name).write_bytes(content)
    Image.new("F", (20, 20)).save(tmp_path / "trainA" / "float.tif")

    data = unpaired(tmp_path)
    with pytest.raises(DataError) as caught:
        data.inspect()
    first, *rest = str(caught.value).splitlines()
    assert first == (
        f"5 of 8 pictures of a in {tmp_path}/trainA are damaged, more than the 1 % that is skipped (0): "
        f"repair or remove them, or raise data.tolerance=0.01"
    )
    reasons = {
        "empty.jpg": "empty, not a picture that can be read",
        "flipped.png": "damaged or unreadable picture (the checksum of a part b'IDAT' is wrong)",
        "float.tif": "damaged or unreadable picture (floating-point colours are not supported)",
        "truncated.png": "damaged or unreadable picture (the checksum of a part b'IDAT' is wrong)",
        "web.jpg": "a web page, not a picture that can be read",
    }
    assert rest == [f"  {tmp_path}/trainA/{name}: {reason}" for name, reason in reasons.items()]
    assert data.bad == {"a": reasons, "b": {}}


def test_bad_files_up_to_one_percent_are_skipped(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 399)
    for file in files[:3]:
        file.write_bytes(b"damaged")
    data = inspected(tmp_path, b=str(tmp_path / "many"))
    assert str(data) == "3 a, 396 b"
    assert list(data.bad["b"]) == ["000.png", "001.png", "002.png"]
    assert [note.splitlines()[0] for note in data.notes] == ["3 of 399 pictures of b are not used:"]
    assert f"{files[0]}: not a picture that can be read" in data.notes[0]

    files[3].write_bytes(b"damaged")
    lines = refused(tmp_path, b=str(tmp_path / "many"))
    assert lines[0].startswith(f"4 of 399 pictures of b in {tmp_path}/many are damaged, more than the 1 % ")


def test_single_bad_file_is_rejected_in_folder_of_fewer_than_100_files(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 100)
    files[7].write_bytes(b"damaged")
    assert str(inspected(tmp_path, b=str(tmp_path / "many"))) == "3 a, 99 b"
    files[8].unlink()
    assert refused(tmp_path, b=str(tmp_path / "many"))[0].startswith("1 of 99 pictures of b in ")


def test_single_bad_file_is_rejected_if_option_bad_files_is_error(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 200)
    files[7].write_bytes(b"damaged")
    lines = refused(tmp_path, b=str(tmp_path / "many"), bad_files="error")
    assert "data.bad_files=skip" in lines[0]
    assert lines[1:] == [f"  {files[7]}: not a picture that can be read"]


def test_error_for_nine_bad_files_lists_only_four(tmp_path: Path) -> None:
    two_domains(tmp_path, a=9, b=4)
    for file in [*(tmp_path / "trainA").iterdir(), tmp_path / "trainB" / "001.png"]:
        file.write_bytes(b"damaged")
    data = unpaired(tmp_path)
    with pytest.raises(DataError) as caught:
        data.inspect()
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "  and 5 more"
    assert {side: len(reasons) for side, reasons in data.bad.items()} == {"a": 9, "b": 1}


def test_file_indices_are_unchanged_by_a_bad_file(tmp_path: Path) -> None:
    two_domains(tmp_path)
    copies(tmp_path / "many", 100)
    before = unpaired(tmp_path, b=str(tmp_path / "many")).files
    size = (tmp_path / "many" / "007.png").stat().st_size
    (tmp_path / "many" / "007.png").write_bytes(b"damaged")
    after = inspected(tmp_path, b=str(tmp_path / "many"))
    assert list(after.files["b"]) == list(before["b"])
    assert after.files["b"] == before["b"] | {"007.png": len(b"damaged")}
    assert before["b"]["007.png"] == size
    assert len(after.draws(0)) == 100


def test_known_bad_file_is_in_no_pair(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 100)
    files[7].write_bytes(b"damaged")
    draws = inspected(tmp_path, a=str(tmp_path / "many")).draws(0)
    drawn = [draws.files(n)[0] for n in range(200)]
    assert files[7] not in drawn
    assert all(not draws[n].replaced for n in range(100))


@pytest.mark.parametrize("damaged", [0, 1])
def test_fewer_than_two_usable_images_are_rejected(tmp_path: Path, damaged: int) -> None:
    two_domains(tmp_path, a=3)
    for index, name in enumerate(("000.png", "001.png")):
        large = Image.new("RGB", (1 if index < damaged else 50, 50))
        large.save(tmp_path / "trainA" / name)
    lines = refused(tmp_path, max_pixels=1000, resize="none", small_images="skip")
    assert lines[0] == f"2 of 3 pictures of a in {tmp_path}/trainA are not used; training needs two usable ones"


SMALL = {"resize": "none", "crop_size": 16}


def with_small_images(root: Path) -> Path:
    two_domains(root)
    picture(9, 15, 40).save(root / "trainA" / "small.png")
    Image.new("RGB", (1, 1)).save(root / "trainA" / "dot.png")
    return root


def test_small_images_are_enlarged_and_noted_if_option_small_images_is_resize(tmp_path: Path) -> None:
    data = inspected(with_small_images(tmp_path), **SMALL)
    assert data.bad == {"a": {}, "b": {}}
    assert data.notes == ["2 of 5 pictures of a are smaller than data.crop_size=16 and enlarged (dot.png, small.png)"]
    assert all(data.draws(0)[n].a.shape == (3, 16, 16) for n in range(5))


def test_skipped_small_images_do_not_count_as_damaged(tmp_path: Path) -> None:
    data = inspected(with_small_images(tmp_path), small_images="skip", **SMALL)
    assert str(data) == "3 a, 5 b"
    assert data.bad["a"] == {
        "dot.png": "1 x 1 pixels are less than data.crop_size=16",
        "small.png": "15 x 40 pixels are less than data.crop_size=16",
    }
    assert {drawn_name(data, n) for n in range(50)} == {f"00{n}.png" for n in range(3)}
    assert data.notes[0].splitlines()[0] == "2 of 5 pictures of a are not used:"


def drawn_name(data: UnpairedFolders, draw: int) -> str:
    return data.draws(0).files(draw)[0].name


def test_small_images_are_rejected_if_option_small_images_is_error(tmp_path: Path) -> None:
    lines = refused(with_small_images(tmp_path), small_images="error", **SMALL)
    assert lines[0].startswith(f"2 of 5 pictures of a in {tmp_path}/trainA are too small: ")
    assert "data.crop_size" in lines[0]
    assert lines[1] == f"  {tmp_path}/trainA/dot.png: 1 x 1 pixels are less than data.crop_size=16"


@pytest.mark.parametrize("resize", ["stretch", "short"])
def test_images_enlarged_by_resize_do_not_count_as_small(tmp_path: Path, resize: str) -> None:
    data = inspected(with_small_images(tmp_path), small_images="error", resize=resize)
    assert data.bad == {"a": {}, "b": {}}


def test_small_images_are_detected_after_exif_rotation(tmp_path: Path) -> None:
    two_domains(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, 40, 10).save(tmp_path / "trainA" / "x.jpg", exif=exif)
    data = inspected(tmp_path, small_images="skip", **SMALL)
    assert data.bad["a"] == {"x.jpg": "10 x 40 pixels are less than data.crop_size=16"}


def test_image_above_max_pixels_is_skipped_undecoded(tmp_path: Path) -> None:
    two_domains(tmp_path)
    Image.new("RGB", (100, 100)).save(tmp_path / "trainA" / "large.png")
    intact = (tmp_path / "trainA" / "large.png").read_bytes()
    (tmp_path / "trainA" / "large.png").write_bytes(intact[:60])  # decoding this file would fail
    data = inspected(tmp_path, max_pixels=9999)
    assert data.bad["a"] == {"large.png": "100 x 100 pixels are more than 9,999 (data.max_pixels)"}
    assert "trainA is damaged" in refused(tmp_path, max_pixels=10_000)[0]


def test_first_frame_of_animated_image_is_used_and_noted(tmp_path: Path) -> None:
    two_domains(tmp_path)
    frames = [picture(200), picture(9)]
    for name in ("x.gif", "x.webp", "y.png", "y.tif"):
        frames[0].convert("RGB").save(tmp_path / "trainA" / name, save_all=True, append_images=frames[1:])
    data = inspected(tmp_path)
    assert data.notes == [
        "4 of 7 pictures of a are animated: the first frame is used (x.gif, x.webp, y.png and 1 more)"
    ]
    assert "x.gif" in data.files["a"]


def test_inspection_does_not_block_on_pipes_devices_or_links(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 300)
    for number in range(3):
        files[number].unlink()
    os.mkfifo(files[0])
    files[1].symlink_to("/dev/zero")
    files[2].symlink_to("nowhere")
    (tmp_path / "many" / "x.jpg").mkdir()
    picture(3).save(tmp_path / "many" / "x.jpg" / "inside.png")
    (tmp_path / "many" / "again.png").symlink_to("100.png")

    def inspect() -> tuple[dict[str, str], list[str], int]:
        data = inspected(tmp_path, b=str(tmp_path / "many"))
        draws = data.draws(0)
        return data.bad["b"], data.notes, len({draws[n].b.shape for n in range(50)})

    bad, notes, shapes = in_a_child(inspect)
    assert bad == {
        "000.png": "not a regular file but a pipe",
        "001.png": "not a regular file but a device",
        "002.png": "a link to nothing",
    }
    assert shapes == 1
    assert notes[0] == "folders among the pictures of b that are named like files: x.jpg"
    assert notes[1] == "further names of the same pictures of b are left out: again.png"
    assert notes[2].startswith("3 of 301 pictures of b are not used:\n")


def test_files_with_odd_names_are_usable(tmp_path: Path) -> None:
    two_domains(tmp_path)
    for name in ODD_NAMES:
        picture(7).save(tmp_path / "trainA" / name)
    data = inspected(tmp_path)
    assert set(ODD_NAMES) <= set(data.files["a"])
    assert all(data.draws(0)[n].a.shape == (3, 16, 16) for n in range(9))
    for name in ODD_NAMES:
        (tmp_path / "trainA" / name).write_bytes(b"damaged")
    lines = refused(tmp_path)
    assert len(lines) == 6
    "\n".join(lines).encode()
    assert any(r"a\nb.png: " in line for line in lines)


def test_bad_test_images_are_left_out_without_error(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = folder_of(tmp_path / "testA", 4, first=50)
    for file in files[:2]:
        file.write_bytes(b"damaged")
    data = inspected(tmp_path)
    assert data.bad == {"a": {}, "b": {}}
    a, _ = data.probes(4)
    assert [int(image[2, 8, 8]) for image in a] == [52, 53]
    assert data.notes[0].startswith("2 of 4 test pictures of a are not used:")

    for file in files:
        file.write_bytes(b"damaged!")
    a, _ = inspected(tmp_path).probes(4)
    assert [int(image[2, 8, 8]) for image in a] == [0, 1, 2]


def test_probe_images_taken_from_training_images_include_no_bad_file(tmp_path: Path) -> None:
    two_domains(tmp_path)
    files = copies(tmp_path / "many", 100)
    files[0].write_bytes(b"damaged")
    a, _ = inspected(tmp_path, a=str(tmp_path / "many")).probes(4)
    assert len(a) == 4


def test_no_file_is_marked_unused_if_inspection_is_stopped(tmp_path: Path) -> None:
    two_domains(tmp_path)
    (tmp_path / "trainA" / "000.png").write_bytes(b"damaged")
    data = unpaired(tmp_path)
    data.inspect(stopping=lambda: True)
    assert data.bad == {"a": {}, "b": {}}
    progress: list[tuple[int, int]] = []
    with pytest.raises(DataError):
        data.inspect(on_progress=lambda *counts: progress.append(counts))
    assert progress[-1] == (8, 8)


def test_transparent_images_get_background_colour(tmp_path: Path) -> None:
    two_domains(tmp_path)
    for file in (tmp_path / "trainA").iterdir():
        Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(file)
    data = inspected(tmp_path, transparent_as="#0a141e")
    for pixels in (data.draws(0)[0].a, data.probes(1)[0][0]):
        assert pixels[:, 8, 8].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("key", "value"), [("transparent_as", "greenish"), ("transparent_as", ""), ("max_pixels", 0), ("workers", -1)]
)
def test_invalid_setting_is_named_in_error(tmp_path: Path, key: str, value: object) -> None:
    two_domains(tmp_path)
    with pytest.raises(CommandError, match=f"data.{key}={value}: give"):
        unpaired(tmp_path, **{key: value})


@pytest.mark.parametrize("case", ["inside", "outside", "a link inside", "a link below both"])
def test_domains_sharing_a_folder_are_rejected(tmp_path: Path, case: str) -> None:
    two_domains(tmp_path)
    a, b = tmp_path / "trainA", tmp_path / "trainB"
    if case == "a link inside":
        (b / "more").symlink_to(a)
    elif case == "a link below both":
        folder_of(tmp_path / "more", 2)
        (a / "more").symlink_to(tmp_path / "more")
        (b / "other").symlink_to(tmp_path / "more")
    else:
        folder_of(a / "deep" / "er", 2)
        a, b = (a, a / "deep") if case == "outside" else (a / "deep", a)
    with pytest.raises(DataError) as caught:
        UnpairedFolders(a=str(a), b=str(b))
    text = str(caught.value)
    assert str(a) in text
    assert str(b) in text
    assert ("by a link" if "link" in case else "lies inside") in text
    assert "\n" not in text
