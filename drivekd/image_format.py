"""What an image file is, read from its own bytes: nothing is decoded here, and its name is not asked.

Four formats are taken: JPEG, PNG, WebP, BMP. Pillow is told which of them to open and so never tries another: it would hand a
PostScript file to Ghostscript, whatever the file is called. Everything else gets a name a person knows, for the error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

ImageFormat: TypeAlias = Literal["JPEG", "PNG", "WEBP", "BMP"]  # Pillow's names

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # which files of a folder are taken for images
OTHER_SUFFIXES = (
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".exr",
    ".dng",
)  # images, too
FORMATS_TAKEN = "JPEG, PNG, WebP and BMP"

_PNG = b"\x89PNG\r\n\x1a\n"
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of its second header: two letters "BM" also begin a text
_PROBED = 512  # first bytes that a foreign file is told by


def image_format(data: bytes) -> ImageFormat | None:
    """The format that these bytes begin; None when it is not one of the four."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def bits_a_channel(data: bytes, form: ImageFormat) -> int:
    """The bits a channel that the file says it has; 8 when it says nothing.

    Pillow does not tell: it halves a 16-bit RGB PNG to 8 bits and calls its mode RGB. Camera pictures with 12 used bits of 16
    become black that way.
    """
    if form == "PNG":
        return max((header[8] for kind, header in _png_chunks(data) if kind == b"IHDR" and len(header) > 8), default=8)
    if form == "JPEG":
        return max((segment[0] for marker, segment in _jpeg_segments(data) if marker in _JPEG_FRAMES and segment), default=8)
    return 8


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk before the pixels (PNG, third edition, section 5.3)."""
    place = len(_PNG)
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind == b"IDAT":
            return
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length  # length, kind, content, checksum


_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15; their first byte is the precision in bits


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before the pixels (ITU-T T.81, annex B)."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) <= len(data) - 4:
        marker = data[place + 1]
        if marker == 0xFF:  # fills up
            place += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these have no content
            place += 2
        elif marker in (0xD9, 0xDA):  # the end; the pixels
            return
        else:
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            yield marker, data[place + 4 : place + 2 + length]
            place += 2 + max(length, 2)


def seems(data: bytes) -> str:
    """In words, what bytes that are none of the four formats look like; never fails, quotes at most a few of them."""
    head = data[:_PROBED]
    for place, magic, name in _KNOWN:
        if head[place : place + len(magic)] == magic:
            return name
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video (MP4 or MOV)")
    if not head.strip(b"\0"):
        return "nothing but zeros: a copy or download that broke off?"
    return _text(head) or f"unknown (first bytes {head[:8].hex(' ')})"


def _text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig").lstrip()
    except UnicodeDecodeError as error:
        if len(head) < _PROBED or error.start < len(head) - 4:  # only a letter that our probe cut in two is forgiven
            return None
        text = head[: error.start].decode("utf-8-sig").lstrip()
    if not text or any(not letter.isprintable() and letter not in "\r\n\t" for letter in text):
        return None
    for beginning, name in _TEXTS:
        if text.lower().startswith(beginning.lower()):
            return name
    if "<svg" in text.lower():
        return "an SVG drawing"
    return f"text ({text.splitlines()[0][:40]!r})"


_TIFF = "a TIFF picture (or a camera's raw format)"
_KNOWN: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, name
    (0, b"%!", "PostScript"),
    (0, b"\x04%!", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"II+\0", _TIFF),
    (0, b"MM\0+", _TIFF),
    (0, b"GIF8", "a GIF"),
    (0, b"%PDF", "a PDF"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"qoif", "a QOI picture"),
    (0, b"\0\0\x01\0", "an icon (ICO)"),
    *((0, b"P%d%c" % (kind, blank), "a netpbm picture (PBM, PGM, PPM)") for kind in range(1, 7) for blank in b" \n\r\t"),
    (0, b"Pf\n", "a PFM picture of floats"),
    (0, b"PF\n", "a PFM picture of floats"),
    (0, b"\0\0\0\x01", "an H.264 or H.265 stream"),
    (8, b"AVI ", "a video (AVI)"),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\0\x05\x16\x07", "macOS's notes about a file (names that begin with ._), not the file"),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "a HEIC picture"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF picture"),
    b"crx ": "a camera's raw format (CR3)",
}
_TEXTS = (  # how it begins, name; a Git LFS pointer stands where its file should be
    ("version https://git-lfs", "a Git LFS pointer, not the picture: run `git lfs pull`"),
    ("<!doctype html", "a web page (HTML): an error page in place of a download?"),
    ("<html", "a web page (HTML): an error page in place of a download?"),
    ("<svg", "an SVG drawing"),
    ("<?xml", "XML (SVG?)"),
    ("/9j/", "a JPEG as base64 text"),
    ("iVBORw0KGgo", "a PNG as base64 text"),
    ("data:image/", "a picture as a data: address"),
    ("{", "JSON text"),
    ("[", "JSON text"),
)


def suffixes_not_taken(names: Iterable[str]) -> str:
    """Says of a folder's file names how many are images of other formats, as "3 .tif, 1 .gif"; "" when none is."""
    suffixes = Counter(name[name.rfind(".") :].lower() for name in names if not name.startswith(".") and "." in name)
    return ", ".join(f"{suffixes[suffix]} {suffix}" for suffix in OTHER_SUFFIXES if suffixes[suffix])
