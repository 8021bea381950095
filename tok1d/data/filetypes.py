"""Which files of a folder or shard are images, by the suffix of their name or else by their first bytes."""

import os
from functools import cache

from PIL import Image, features

# Suffixes of the images that are read, by Pillow's name of their format.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "QOI": (".qoi",),
    "PCX": (".pcx",),
    "SGI": (".sgi",),
    "DDS": (".dds",),
    "ICO": (".ico",),
}
READ = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_PICTURES = (
    ".heic .heif .hif .jxl .jxr .wdp .svg .svgz .psd .psb .xcf .kra .ai .eps .exr .hdr .pfm .dng .cr2 .cr3 .crw .nef "
    ".nrw .arw .srf .sr2 .orf .raf .rw2 .pef .srw .x3f .3fr .raw .dcm .fits .cur .icns .wmf .emf .bpg .flif"
)
# Suffixes of pictures that are not read: formats that Pillow lacks, raw files of cameras, drawings, layers, floats.
NOT_READ = frozenset(_PICTURES.split())
_FILES = (
    ".txt .caption .json .jsonl .ndjson .csv .tsv .xml .yaml .yml .toml .ini .cfg .md .rst .html .htm .css .js .py "
    ".pyc .ipynb .sh .bat .log .db .sqlite .lnk .url .pdf .doc .docx .xls .xlsx .pptx .odt .npy .npz .mat .h5 .hdf5 "
    ".pkl .pickle .pt .pth .ckpt .safetensors .onnx .parquet .arrow .feather .tfrecord .lmdb .mdb .bin .dat .zip .tar "
    ".gz .tgz .bz2 .xz .zst .7z .rar .md5 .sha1 .sha256 .mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wav .mp3 .flac .ogg "
    ".aae .xmp .thm .part .partial .crdownload .download .tmp .temp .bak .swp .lock"
)
# Suffixes of files that are no pictures; their content is not looked at. Unfinished downloads are among them.
OTHER = frozenset(_FILES.split())
_FOLDERS = "@eadir #recycle #snapshot @recycle $recycle.bin recycler recycled lost+found __pycache__ __macosx cvs"
# Folders that programs and operating systems make, in lower case. They are nobody's class, nor are hidden folders.
PROGRAM_FOLDERS = frozenset((*_FOLDERS.split(), "@recently-snapshot", "system volume information"))
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"8BPS", "psd"),
    (b"\xff\x0a", "jxl"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"<svg", "svg"),
)
_HEADERS_OF_BMP = (12, 40, 52, 56, 64, 108, 124)


@cache
def unavailable() -> dict[str, str]:
    """Return the suffixes of `READ` whose format this Pillow cannot read, each with the name of the format."""
    Image.init()
    # Formats whose library is missing are known to Pillow, but fail when they are opened.
    needs = {"JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp", "AVIF": "avif", "PNG": "zlib"}
    lacking = [
        name for name in FORMATS if name not in Image.OPEN or (name in needs and not features.check(needs[name]))
    ]
    return {suffix: name for name in lacking for suffix in FORMATS[name]}


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, in lower case, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether the suffix of a file's name is that of an image that is read."""
    return suffix_of(name) in READ


def folder_reason(name: str) -> str | None:
    """Return why a folder is left out with all that it holds, or None, from its name."""
    if name.startswith("."):
        return "hidden"
    return f"in a folder {name}/ of a program" if name.lower() in PROGRAM_FOLDERS else None


def file_reason(path: str) -> str | None:
    """Return why a regular file is not read, or None if it is an image; also named by its kind if it is a picture.

    The suffix decides. Files without one, or with an unknown one, are recognised by their first bytes.
    """
    name = path.rpartition("/")[2]
    if name.startswith("."):
        return "hidden"
    suffix = suffix_of(name)
    if suffix in READ:
        lacking = unavailable().get(suffix)
        return None if lacking is None else f"this Pillow cannot read {lacking}"
    if suffix in NOT_READ:
        return f"{suffix[1:]} is not read"
    if suffix in OTHER or name.endswith("~"):
        return "not an image"
    return _reason_by_content(path)


def _reason_by_content(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            kind = format_of(file.read(64))
    except OSError:
        return "no known suffix, and it cannot be opened"
    if kind in FORMATS:
        lacking = FORMATS[kind][0] in unavailable()
        return f"this Pillow cannot read {kind}" if lacking else None
    return f"{kind} is not read" if kind else "not an image"


def format_of(head: bytes) -> str:
    """Return the format of an image from the first bytes of its file.

    A key of `FORMATS`, or a name in lower case of a format that is not read, or "" for other files.
    """
    for start, name in _SIGNATURES:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _HEADERS_OF_BMP:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in (b"\n", b" ", b"\r", b"\t"):
        return "PPM"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "AVIF"
        return "heic" if brand[:3] in (b"hei", b"hev", b"mif", b"msf") else ""
    return ""
