"""Where a file comes from: https://, http://, file:///, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY or hf://ORG/REPO/FILE@REVISION."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from nlocalmodels_downloader.errors import ConfigError

_HUB = re.compile(r"hf://(?P<org>[\w.-]+)/(?P<repo>[\w.-]+)/(?P<file>[^@?#]+)@(?P<revision>[\w./-]+)")
# Names of buckets as Amazon allows them, older ones included; keys are taken literally.
_S3 = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9])/(?P<key>[^/?#][^?#]*)")
_OCI = re.compile(
    r"oci://(?P<registry>[A-Za-z0-9][A-Za-z0-9.-]*(?::[1-9][0-9]{0,4})?)/(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?(?:#(?P<file>[^#?]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Source:
    """A source as written. `revision` is None unless it is a Hugging Face file."""

    text: str
    hub_path: str | None = None
    revision: str | None = None

    @property
    def is_hub(self) -> bool:
        return self.hub_path is not None

    @property
    def is_local(self) -> bool:
        return self.text.startswith("file://")

    @property
    def is_s3(self) -> bool:
        return self.text.startswith("s3://")

    @property
    def is_oci(self) -> bool:
        return self.text.startswith("oci://")

    @property
    def is_pinned(self) -> bool:
        """Whether the origin can never serve other bytes under this name: a whole commit hash or a manifest's digest."""
        if self.is_oci:
            return parse_artifact(self.text).digest is not None
        return self.revision is not None and bool(_COMMIT.fullmatch(self.revision))

    def url(self, hub_endpoint: str) -> str:
        return f"{hub_endpoint}/{self.hub_path}" if self.is_hub else self.text

    def __str__(self) -> str:
        return redact(self.text)


@dataclass(frozen=True, slots=True)
class Artifact:
    """An oci:// source. `tag` or `digest`, its manifest's, is there; `file` chooses among several files."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None
    file: str | None

    def __str__(self) -> str:
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"oci://{self.registry}/{self.repository}{tag}{digest}"


def parse_source(text: str) -> Source:
    """Parses a source.

    Raises:
        ConfigError: it has none of the forms.
    """
    if text.startswith("hf://"):
        match = _HUB.fullmatch(text)
        if match is None or ".." in match["file"].split("/"):
            raise ConfigError(f"'{redact(text)}' is not of the form hf://ORG/REPO/FILE@REVISION; add what is missing.")
        path = f"{match['org']}/{match['repo']}/resolve/{quote(match['revision'], safe='')}/{quote(match['file'])}"
        return Source(text, path, match["revision"])
    if text.startswith("file:///") and len(text) > len("file:///"):
        return Source(text)
    if text.startswith("s3://"):
        split_s3(text)
        return Source(text)
    if text.startswith("oci://"):
        parse_artifact(text)
        return Source(text)
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"'{redact(text)}' is not a source; give https://…, http://…, file:///…, s3://BUCKET/KEY, "
            "oci://REGISTRY/REPOSITORY@DIGEST or hf://ORG/REPO/FILE@REVISION."
        )
    return Source(text)


def split_s3(text: str) -> tuple[str, str]:
    """Returns bucket and key of an s3:// source.

    Raises:
        ConfigError: it names none.
    """
    match = _S3.fullmatch(text)
    if match is None or match["key"].endswith("/"):
        raise ConfigError(f"'{redact(text)}' is not of the form s3://BUCKET/KEY; give both, without ? and #.")
    return match["bucket"], match["key"]


def parse_artifact(text: str) -> Artifact:
    """Parses an oci:// source.

    Raises:
        ConfigError: it is not of its form.
    """
    match = _OCI.fullmatch(text)
    if match is None or not (match["tag"] or match["digest"]):
        raise ConfigError(
            f"'{redact(text)}' is not of the form oci://REGISTRY/REPOSITORY@sha256:DIGEST (the manifest's) or "
            "oci://REGISTRY/REPOSITORY:TAG, with #FILE behind if there are several; correct it."
        )
    return Artifact(match["registry"], match["repository"], match["tag"], match["digest"], match["file"])


def redact(url: str) -> str:
    """Returns the URL without user, password, query and fragment, which can hold secrets (signed URLs)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a malformed URL)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin(url: str) -> tuple[str, str, int | None]:
    """Returns scheme, host and port: what must stay the same for a token to be sent (RFC 6454 section 4)."""
    parts = urlsplit(url)
    default = {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default
