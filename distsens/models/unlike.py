"""What a file is that is none of weights, in words that say what to do."""

from __future__ import annotations

import io
import pickletools
import zipfile

_BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself: fetch it by git lfs pull",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ\x00": "an xz archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes, and not PyTorch's",
    b"GGUF": "a GGUF file of a language model",
    b"\x93NUMPY": "one array of NumPy (.npy), and weights are several with names",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"PK\x03\x04": "a file of torch.save, or another zip archive, that is damaged or was cut off",
}
_HTML = (b"<!doctype html", b"<html", b"<head", b"<!--")
_SHOWN = 40
_SAMPLE = 4096


def what_it_is(content: bytes) -> str:
    """What a file is, with its article; what else to do about it where that is known."""
    if not content:
        return "empty"
    if not content.strip(b"\0"):
        return "nothing but zeros, as a download that did not end leaves"
    if zipfile.is_zipfile(io.BytesIO(content)):
        return _archive(content)
    for beginning, what in _BEGINNINGS.items():
        if content.startswith(beginning):
            return what
    if content[257:262] == b"ustar":
        return "a tar archive: unpack it, the weights are inside"
    if _is_pickle(content):
        return "a raw pickle, which runs its author's code: write torch.save(model.state_dict(), FILE) instead"
    return _text(content) or "of no format of weights that is known (safetensors, torch.save, npz)"


def _archive(content: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names) and any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program (torch.jit.save) and no state dict: write torch.save(model.state_dict(), FILE)"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "an exported program (torch.export.save) and no state dict: write torch.save(model.state_dict(), FILE)"
    if any("/.data/" in f"/{name}" for name in names):
        return "a package of torch.package, which only its author's code could read"
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a zip archive, and none of torch.save ({some})" if names else "an empty zip archive"


def _is_pickle(content: bytes) -> bool:
    if content[:1] == b"\x80" and content[1:2] <= b"\x05":
        return True
    if content[:1] not in b"(cd}]lIFVS" or b"." not in content:
        return False
    try:  # of protocols 0 and 1, which begin as any text may
        return any(code.name == "STOP" for code, _, _ in pickletools.genops(content))
    except Exception:  # pickletools raises almost anything on what is none
        return False


def _text(content: bytes) -> str | None:
    try:
        text = content[:_SAMPLE].decode("utf-8-sig", errors="strict" if len(content) <= _SAMPLE else "ignore")
    except UnicodeDecodeError:
        return None
    if not all(one.isprintable() or one.isspace() or one == "\x1b" for one in text):
        return None
    begins = text.lstrip().lower().encode()
    if begins.startswith(_HTML):
        return "an HTML page, as a download that failed or needs a login leaves"
    if begins.startswith(b"<?xml"):
        return "an XML page, as a download that failed leaves"
    words = " ".join(text.split())
    return f"text, which begins {words[:_SHOWN]!r}"
