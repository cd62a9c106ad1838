"""CRC-32, of which the journal has one per block: zlib's values, at zlib-ng's speed where that is installed."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:
    # A machine that there is no wheel for: the same values, at 5 instead of 90 GB/s.
    from zlib import crc32

__all__ = ["crc32"]
