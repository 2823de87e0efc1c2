"""A file in memory that can be read only so often: Pillow's loops over it come to an end."""

from __future__ import annotations

import io

from fmoe.data.pictures.limits import READS
from fmoe.data.pictures.refused import Refused


class Stream(io.BytesIO):
    """Of headers and metadata Pillow reads byte by byte, marker by marker, in Python."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > READS:
            raise Refused("cut into too many pieces; save it again")
        return super().read(size)
