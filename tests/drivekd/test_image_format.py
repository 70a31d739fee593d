"""What is no image of ours is named by its own bytes, whatever its name; and no program is started to look at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drivekd.errors import DataError
from drivekd.image_format import OTHER_SUFFIXES, image_format, seems, suffixes_not_taken
from drivekd.images import load_image

FOREIGN = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "EPS": b"\xc5\xd0\xd3\xc6\x1e\0\0\0",
    "TIFF": b"II*\0\x08\0\0\0",
    "raw format": b"MM\0*\0\0\0\x08",
    "GIF": b"GIF89a\x01\0",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
    "video": b"\0\0\0\x20ftypisom\0\0\0\0",
    "PDF": b"%PDF-1.7\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "XML": b'<?xml version="1.0"?>\n<note/>',
    "web page": b"\n<!DOCTYPE html><html><title>404",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\xff\x0a\x00\x10",
    "netpbm": b"P6\n8 8\n255\n",
    "OpenEXR": b"\x76\x2f\x31\x01\x02\0\0\0",
    "numpy": b"\x93NUMPY\x01\0",
    "ZIP": b"PK\x03\x04\x14\0",
    "JPEG as base64": b"/9j/4AAQSkZJRgABAQ==",
    "data: address": b"data:image/png;base64,iVBORw0KGgo=",
    "JSON": b'{"error": "not found"}',
    "zeros": bytes(4096),
    "macOS": b"\0\x05\x16\x07\0\x02\0\0",
    "text .'Stra\u00dfe frei\u2026'.": "Stra\u00dfe frei\u2026\nzwei".encode(),
    "first bytes 80 04 95 de": bytes.fromhex("800495dead"),
}


@pytest.mark.parametrize(("name", "data"), FOREIGN.items(), ids=FOREIGN)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_another_format_is_refused_by_its_first_bytes_and_named(tmp_path: Path, name: str, data: bytes, suffix: str) -> None:
    path = tmp_path / f"CAM_FRONT{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"not an image of a format that is taken .JPEG, PNG, WebP and BMP.: .*{name}") as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_bytes_at_all_are_too_odd_to_be_named() -> None:
    for data in FOREIGN.values():
        for end in range(1, len(data)):
            assert seems(data[:end])
            assert image_format(data[:end]) is None
    assert "text" in seems("\u00e4".encode() * 400), "a letter cut in two by our probe is no reason"
    assert "unknown" in seems("Stra\u00dfe".encode("latin-1"))


def test_names_of_other_formats_are_counted() -> None:
    assert suffixes_not_taken(["a.TIF", "b.tif", "c.gif", "d.jpg", "e", ".f.tif"]) == "2 .tif, 1 .gif"
    assert suffixes_not_taken(["a.jpg", "b.png", "notes.txt"]) == ""
    assert all(suffix == suffix.lower() for suffix in OTHER_SUFFIXES)


# A program that is started to look at a picture: Pillow asks `gs` for PostScript, by any name of file.
WATCHED = """
import subprocess, sys
from pathlib import Path

def forbid(event, arguments):
    if event in {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}:
        print("STARTED", event, arguments, flush=True)

sys.path.insert(0, ROS)
from drivekd.errors import DataError
from drivekd.images import load_image
from drivekd_ros.input.conversions import rgb_from_compressed
from types import SimpleNamespace
data = Path(sys.argv[1]).read_bytes()
message = SimpleNamespace(header=None, format="jpeg", data=data)
sys.addaudithook(forbid)
if sys.argv[2] == "pillow":
    from PIL import Image
    Image.open(sys.argv[1]).load()
for read in (lambda: load_image(Path(sys.argv[1])), lambda: rgb_from_compressed(message, "/camera")):
    try:
        read()
    except DataError as error:
        print("REFUSED", error)
"""
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("by", ["drivekd", "pillow"])
def test_no_program_is_started_by_a_picture(tmp_path: Path, by: str) -> None:
    (tmp_path / "road.jpg").write_bytes(POSTSCRIPT)
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n", encoding="utf-8")
    ghostscript.chmod(0o755)
    root = Path(__file__).resolve().parents[2]
    script = f"ROS = {str(root / 'ros2_ws' / 'src' / 'drivekd_ros')!r}\n{WATCHED}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "road.jpg"), by],
        env={"PATH": f"{ghostscript.parent}:/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if by == "pillow":  # the watch sees what it is there for
        assert "STARTED subprocess.Popen" in done.stdout
        assert (tmp_path / "started").exists()
    else:
        assert done.stdout.count("REFUSED") == 2, done.stderr
        assert "STARTED" not in done.stdout
        assert not (tmp_path / "started").exists()
