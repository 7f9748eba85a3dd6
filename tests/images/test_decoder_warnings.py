"""Tests of warnings of image libraries: counted in a note, and not shown."""

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.images import decoder_warnings
from cyclestyle.images.decoder_warnings import collected, note
from cyclestyle.photoset import worker_tasks
from cyclestyle.photoset.worker_tasks import Reading


def test_decoder_warnings_are_collected_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with collected(stderr=True) as lines:
        for _ in range(3):
            warnings.warn("odd tag", UserWarning, stacklevel=1)
        os.write(2, b"libtiff: unknown field\n")
    assert lines == ["odd tag"] * 3 + ["libtiff: unknown field"]
    assert note(lines) == ("4 warnings of the decoder: odd tag",)
    assert capfd.readouterr().err == ""
    assert note([]) == ()
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "later\n"


def test_threads_collect_their_own_warnings() -> None:
    barrier = threading.Barrier(2)
    found: dict[str, list[str]] = {}

    def work(name: str) -> None:
        with collected(stderr=False) as lines:
            barrier.wait()
            warnings.warn(name, UserWarning, stacklevel=1)
            barrier.wait()
        found[name] = lines

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"one": ["one"], "two": ["two"]}
    assert decoder_warnings._active == 0


def test_warning_filters_are_restored_after_an_error() -> None:
    before = warnings.showwarning, list(warnings.filters)
    with pytest.raises(ZeroDivisionError), collected(stderr=True):
        raise ZeroDivisionError
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_pillow_warning_becomes_a_note_of_the_photo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.tif"
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file)
    content = bytearray(file.read_bytes())
    offset = int.from_bytes(content[4:8], "little")  # position of the directory
    entries = int.from_bytes(content[offset : offset + 2], "little")
    places = {
        int.from_bytes(content[at : at + 2], "little"): at for at in range(offset + 2, offset + 2 + 12 * entries, 12)
    }
    # In place of the planar configuration, tag 305 (software): text of 99 bytes beyond the end of the file.
    tag = [(305, 2), (2, 2), (99, 4), (10**6, 4)]
    content[places[284] : places[284] + 12] = b"".join(number.to_bytes(size, "little") for number, size in tag)
    file.write_bytes(content)
    photo = worker_tasks.read(file, Reading())
    assert [text for text in photo.notes if "of the decoder" in text] != []
    assert photo.pixels[0, 0].tolist() == [90, 90, 90]
    assert capfd.readouterr().err == ""
