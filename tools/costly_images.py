"""Files of a few kilobytes that would cost a decoder minutes, for tests."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def many_scans(count: int, side: int = 16) -> bytes:
    """A progressive JPEG of at least so many scans; the last is repeated, which changes nothing."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    missing = max(0, count - content.count(b"\xff\xda"))
    return content[:end] + content[last:end] * missing + content[end:]


def many_pieces(count: int, kind: str = "PNG") -> bytes:
    """A PNG with so many empty chunks, or a JPEG with so many empty comments, before its pixels."""
    buffer = io.BytesIO()
    Image.new("L", (16, 16), 128).save(buffer, kind)
    content = buffer.getvalue()
    if kind == "JPEG":
        return content[:2] + b"\xff\xfe\0\2" * count + content[2:]
    at, name = content.index(b"IDAT") - 4, b"teSt"
    chunk = struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name))
    return content[:at] + chunk * count + content[at:]
