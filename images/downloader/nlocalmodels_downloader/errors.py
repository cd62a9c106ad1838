"""What can go wrong, each with the exit code that a Job or a person can act on.

DownloaderError
├── ConfigError        2   downloads.yaml or the command line is wrong
├── DeniedError       10   the source wants a token or refuses the one it got
├── GoneError         11   the source has no such file
├── SpaceError        12   the volume is full or cannot be written
├── CorruptError      13   the bytes are not what was declared, or not GGUF
├── ExhaustedError    14   retries used up without progress, or waited in vain
├── RefusedError      15   the source asks for something unsafe or unverifiable
├── StoppedError     143   SIGTERM or SIGINT
├── TransientError         worth another attempt; never leaves the package
│   └── ExpiredError       the address was good once; the origin can name a new one
└── RangeError             this source cannot serve byte ranges; never leaves the package
"""

from __future__ import annotations


class DownloaderError(Exception):
    """A failure that says the value, the problem and the remedy."""

    exit_code = 1


class ConfigError(DownloaderError):
    exit_code = 2


class DeniedError(DownloaderError):
    exit_code = 10


class GoneError(DownloaderError):
    exit_code = 11


class SpaceError(DownloaderError):
    exit_code = 12


class CorruptError(DownloaderError):
    exit_code = 13


class ExhaustedError(DownloaderError):
    exit_code = 14


class RefusedError(DownloaderError):
    exit_code = 15


class StoppedError(DownloaderError):
    exit_code = 143


class TransientError(DownloaderError):
    """A failure that another attempt may not meet.

    `retry_after_seconds` is what the server asked for (RFC 9110 section 10.2.3), None if it asked for nothing.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ExpiredError(TransientError):
    """A signed address that has run out."""


class RangeError(DownloaderError):
    """The source ignores or garbles byte ranges, so the whole body must come in one stream."""
