"""Seeded mutations of what a node is sent; plain objects stand for messages."""

import struct
import zlib
from io import BytesIO
from types import SimpleNamespace as Message

import numpy as np
from PIL import Image

TEXTS = (
    "",
    "\x00",
    "rgb8\n",
    "RGB8",
    "{0.__class__}",
    "%s%n",
    "é" * 300,
    "a" * 10**5,
    "../..",
    "\ud800",
    "nan",
    "8UC3",
)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e39, 0.0, 1e-320)
WHOLE = (0, 1, -1, 2, 3, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
STRIDES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1, "8UC3": 3, "8UC4": 4,
           "uyvy": 2, "yuv422": 2, "yuyv": 2, "yuv422_yuy2": 2, "nv12": 1, "nv21": 1}  # fmt: skip
"""Encoding -> bytes of a pixel in a row."""


class Mutator:
    """Draws messages; the same seed draws the same ones."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def one_of(self, values):
        return values[self.random.integers(len(values))]

    def is_so(self, chance):
        return self.random.random() < chance

    def stamp(self, now):
        """Mostly of this moment."""
        if self.is_so(0.8):
            return Message(sec=int(now), nanosec=int(now % 1 * 1e9))
        return Message(
            sec=self.one_of((0, -1, int(now) + 5, 2**31 - 1, -(2**31))), nanosec=self.one_of(WHOLE[:-1])
        )

    def header(self, now, frame="base"):
        return Message(stamp=self.stamp(now), frame_id=self.one_of(TEXTS) if self.is_so(0.1) else frame)

    def image(self, now=1.0, size=(6, 8)):
        """A raw picture; what is true of it goes with it unless something was changed."""
        encoding = self.one_of(list(STRIDES))
        height, width = size
        step = width * STRIDES[encoding] + int(self.one_of((0, 0, 5)))
        rows = height * 3 // 2 if encoding.startswith("nv") else height
        data = self.random.integers(0, 256, rows * step, np.uint8).tobytes()
        message = Message(
            header=self.header(now),
            encoding=encoding,
            width=width,
            height=height,
            step=step,
            data=data,
            is_bigendian=0,
        )
        for _ in range(self.random.integers(0, 3)):
            field = self.one_of(("encoding", "width", "height", "step", "data", "swap"))
            if field == "encoding":
                message.encoding = self.one_of((*TEXTS, *STRIDES, "16UC1", "32FC1", "bayer_rggb8"))
            elif field == "data":
                message.data = self.bytes(message.data)
            elif field == "swap":
                message.width, message.height = message.height, message.width
            else:
                near = getattr(message, field)
                setattr(message, field, self.one_of((*WHOLE, near - 1, near + 1, near * 2, near // 2)))
        return message

    def bytes(self, data):
        """Some bytes changed, cut off, doubled or put in."""
        data, at = bytearray(data), int(self.random.integers(0, len(data) + 1))
        kind = self.random.integers(5)
        if kind == 0:
            for place in self.random.integers(0, max(1, len(data)), self.random.integers(1, 9)):
                if place < len(data):
                    data[place] = int(self.random.integers(256))
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data += data[at:]
        elif kind == 3:
            data[at:at] = self.random.integers(0, 256, self.random.integers(1, 40), np.uint8).tobytes()
        elif len(data) > 40:
            struct.pack_into(
                ">I", data, int(self.random.integers(0, len(data) - 4)), self.one_of(WHOLE[:-1]) % 2**32
            )
        return bytes(data)

    def compressed(self, pixels, now=1.0):
        """A PNG or JPEG of these pixels, mostly broken."""
        kind, stream = self.one_of(("png", "png", "jpeg")), BytesIO()
        mode = self.one_of(("RGB", "RGB", "L", "RGBA", "P", "CMYK" if kind == "jpeg" else "I;16", "1"))
        picture = Image.fromarray(pixels)
        if kind == "jpeg" and mode in ("RGBA", "P", "1"):
            mode = "RGB"
        picture = (
            picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        )
        picture.save(stream, kind)
        data = stream.getvalue()
        if kind == "png" and self.is_so(0.2):
            data = data[:33] + self.chunk() + data[33:]
        for _ in range(self.random.integers(0, 3)):
            data = self.bytes(data)
        message = Message(
            header=self.header(now), format=self.one_of((*TEXTS, "rgb8; png compressed bgr8")), data=data
        )
        return message, kind, mode

    @staticmethod
    def png(pixels):
        """A good PNG."""
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        return stream.getvalue()

    def text_bomb(self, n=40):
        """A PNG of 2 x 2 pixels and megabytes of text, in some ten thousand bytes."""
        body = b"a\0\0" + zlib.compress(b"0" * (2 << 20))
        text = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
        data = self.png(np.zeros((2, 2, 3), np.uint8))
        return data[:33] + text * n + data[33:]

    def chunk(self):
        """A chunk for a PNG: texts that say little at great length, profiles, sizes that lie."""
        kind = self.one_of(
            (b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"eXIf", b"gAMA", b"PLTE", b"tRNS", b"IHDR", b"abcD")
        )
        body = self.random.integers(0, 256, self.random.integers(0, 30), np.uint8).tobytes()
        if kind in (b"zTXt", b"iCCP") and self.is_so(0.7):
            body = b"a\0\0" + zlib.compress(b"0" * (2 << 20))
        length = self.one_of((len(body), len(body), 0, 2**31 - 1, 2**32 - 1))
        return struct.pack(">I", length) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def joints(self, names, now=1.0, count=0):
        """Some joints in some order; numbers tell which message they are of."""
        names = list(self.random.permutation([*names, "x", "y"])[: self.random.integers(1, len(names) + 3)])
        position = [float(100 * count + ord(name[-1])) for name in names]
        message = Message(
            header=self.header(now), name=[str(n) for n in names], position=position, velocity=[], effort=[]
        )
        for _ in range(self.random.integers(0, 3)):
            kind = self.random.integers(6)
            at = int(self.random.integers(0, max(1, len(message.name))))
            if kind == 0:
                message.name[at : at + 1] = [self.one_of((*TEXTS, *names))]
            elif kind == 1:
                message.position[at : at + 1] = [self.one_of(NUMBERS)]
            elif kind == 2:
                message.position = message.position[:at]
            elif kind == 3:
                message.name = message.name[:at]
            elif kind == 4:
                message.name, message.position = message.name * 2, message.position * 2
            else:
                message.position += list(NUMBERS[:2]) * int(self.one_of((1, 1, 3000)))
        return message

    def pose(self, now=1.0):
        """A pose with a rotation that may be none."""
        turned = self.random.normal(size=4)
        turned /= np.linalg.norm(turned)
        numbers = [*self.random.normal(size=3), *turned]
        for _ in range(self.random.integers(0, 3)):
            numbers[self.random.integers(7)] = self.one_of((*NUMBERS, 0.5, -1.0))
        x, y, z, qx, qy, qz, qw = map(float, numbers)
        at, turn = Message(x=x, y=y, z=z), Message(x=qx, y=qy, z=qz, w=qw)
        return Message(header=self.header(now), pose=Message(position=at, orientation=turn))

    def value(self):
        """Anything a parameter might be given."""
        return self.one_of(
            [
                *TEXTS,
                *NUMBERS,
                *WHOLE,
                True,
                False,
                None,
                [],
                ["a"],
                [1, "a"],
                [0.1] * 3,
                ["a=b", "c"],
                [[1]],
                {},
                b"a",
            ]
        )

    def parameters(self, known, good):
        """Good parameters, with some given other values and some misspelt."""
        given = dict(good)
        for _ in range(self.random.integers(1, 4)):
            name = str(self.one_of(list(known)))
            if self.is_so(0.2):
                at = int(self.random.integers(len(name)))
                name = name[:at] + name[at + 1 :]
            given[name] = self.value() if self.is_so(0.7) else self.one_of(list(known.values()))
        return given
