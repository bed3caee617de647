"""One image from a file or an array: its content digest and its pixels as RGB."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from store.errors import InvalidInputError

# `decode` refuses by the same limit, and says so in a sentence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.Image")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
# Whatever the parsers of the many formats trip over in damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageSource(Protocol):
    """Where one image comes from; what is wrong with it is an `InvalidInputError` whose text is a clause."""

    def digest(self) -> str:
        """Return the SHA-256 hex digest of the content."""

    def read(self) -> Image.Image:
        """Return the image in RGB."""

    def check(self, known: Container[str]) -> str:
        """Return the digest from one reading, having decoded the image unless its digest is among the known ones."""


class EncodedImage(ABC):
    """An image in a file format, wherever its bytes are; its digest is that of the bytes."""

    __slots__ = ()

    @abstractmethod
    def content(self) -> bytes:
        """Return all bytes."""

    def digest(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()

    def read(self) -> Image.Image:
        return decode(self.content())

    def check(self, known: Container[str]) -> str:
        content = self.content()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in known:
            decode(content)
        return digest


@dataclass(frozen=True, slots=True)
class FileImage(EncodedImage):
    """An image file, or `size` bytes from `offset` on in a file that holds many."""

    path: Path
    offset: int = 0
    size: int | None = None

    def content(self) -> bytes:
        try:
            # A pipe or a device would be waited for without end.
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise InvalidInputError("is not a regular file")
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise InvalidInputError(f"cannot be read: {error.strerror or error}") from error


def place_of(source: ImageSource, name: str) -> str:
    """Return what a message calls an image: its file, or `name` if no file is that image alone."""
    return str(source.path) if isinstance(source, FileImage) and source.size is None else name


@dataclass(frozen=True, slots=True)
class ArrayImage:
    """An image in memory: uint8, shape (height, width), (height, width, 1) or (height, width, 3)."""

    pixels: NDArray[np.uint8]

    def digest(self) -> str:
        header = f"{self.pixels.shape}".encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.pixels).tobytes()).hexdigest()

    def read(self) -> Image.Image:
        pixels = self.pixels[:, :, 0] if self.pixels.ndim == 3 and self.pixels.shape[2] == 1 else self.pixels
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")

    def check(self, known: Container[str]) -> str:
        return self.digest()


def decode(content: bytes) -> Image.Image:
    """Return the image in `content`, upright and in RGB.

    Orientation tags are applied, transparency is laid over white, 16-bit greyscale is scaled to 8 bits, and of an
    animation the first frame is taken. Colour profiles are ignored, as in the training of the backbones.

    Parameters
    ----------
    content : bytes
        A file in any format Pillow reads.

    Returns
    -------
    Image
        Mode RGB.

    Raises
    ------
    InvalidInputError
        If it is no image, damaged, truncated, or larger than Pillow's limit against decompression bombs. The message
        is a clause without subject, such as ``"is an empty file"``.
    """
    if not content:
        raise InvalidInputError("is an empty file")
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise InvalidInputError("is not an image that Pillow can read") from error
    except (*_DAMAGE, Image.DecompressionBombWarning) as error:
        raise InvalidInputError(f"cannot be opened: {_reason(error)}") from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise InvalidInputError(f"has {image.width} x {image.height} pixels, more than the limit of {limit}")
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise InvalidInputError(f"is damaged or truncated: {_reason(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return `image` in mode RGB, as `decode` describes.

    Raises
    ------
    InvalidInputError
        If its numbers have no range to scale from, as in floating-point files.
    """
    if image.mode in _ALPHA or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InvalidInputError("has 32-bit integer pixels, whose range is unknown; convert it to 8 or 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InvalidInputError("has floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    return image.convert("RGB")


def _reason(error: Exception | Warning) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
