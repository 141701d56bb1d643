"""What Python 3.10 lacks; JetPack 6 and ROS 2 Humble have no newer one."""

import hashlib
import sys
from typing import BinaryIO

if sys.version_info >= (3, 11):
    from enum import StrEnum  # novm
    from typing import Self  # novm
else:
    from enum import Enum

    from typing_extensions import Self

    class StrEnum(str, Enum):
        """Members that are their own text."""

        __str__ = str.__str__


__all__ = ["Self", "StrEnum", "sha256"]


def sha256(file: BinaryIO) -> str:
    """Digest what is left of a file, in hexadecimal; `hashlib.file_digest` came with 3.11."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
