"""What the cluster's programs are told."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from cluster import certificates, configuration, layout, manifests, programs


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The certificates of a cluster that never runs."""
    monkeypatch.setattr(layout, "CERTIFICATES", tmp_path)
    certificates.ensure_certificates()
    return tmp_path


def test_everyone_has_a_certificate_of_the_same_authority(known: Path) -> None:
    leaves = [certificates.certificate(name) for name in certificates.IDENTITIES]
    subprocess.run(["openssl", "verify", "-CAfile", certificates.certificate("ca"), *leaves], check=True, capture_output=True)


def test_certificates_that_are_there_stay(known: Path) -> None:
    before = {path: path.read_bytes() for path in known.iterdir()}
    certificates.ensure_certificates()
    assert {path: path.read_bytes() for path in known.iterdir()} == before


def test_only_the_owner_reads_keys(known: Path) -> None:
    assert {path.stat().st_mode & 0o077 for path in known.glob("*.key")} == {0}


def test_files_are_written_only_when_they_change(known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "files", lambda: {tmp_path / "a": "as before", tmp_path / "b": "new"})
    (tmp_path / "a").write_text("as before")
    (tmp_path / "b").write_text("old")
    for path in (tmp_path / "a", tmp_path / "b"):
        os.utime(path, (1, 1))
    configuration.write_files()
    assert (tmp_path / "a").stat().st_mtime == 1
    assert (tmp_path / "b").read_text() == "new"


def test_files_are_well_formed_and_each_user_has_a_kubeconfig(known: Path) -> None:
    files = configuration.files()
    for path, text in files.items():
        if path.suffix == ".toml":
            assert tomllib.loads(text)["grpc"]["address"] == str(layout.CONTAINERD_SOCKET)
        elif path.name != "Corefile":
            json.loads(text)
    assert {path.stem for path in files if path.suffix == ".kubeconfig"} == set(certificates.IDENTITIES) - {"apiserver"}


@pytest.mark.parametrize(("resolver", "forwards"), [("nameserver 192.0.2.1\n", True), ("search example\n", False)])
def test_dns_server_asks_others_only_where_there_are_any(tmp_path: Path, resolver: str, forwards: bool) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(resolver)
    assert (f"forward . {path}" in configuration.corefile(path)) is forwards


def test_every_program_has_a_command_and_names_files_that_are_written(known: Path) -> None:
    commands = programs.commands({name: Path("/bin", name) for name in programs.FROM_GO})
    assert set(commands) == {*programs.FROM_DEBIAN, *programs.FROM_GO}
    named = {Path(word.rpartition("=")[2]) for words in commands.values() for word in words}
    assert {path for path in named if path.is_relative_to(layout.CONFIGURATION)} <= set(configuration.files())


def test_volumes_are_for_many_writers() -> None:
    spec = manifests.rwx_volume("one")["spec"]
    assert (spec["accessModes"], spec["hostPath"]["path"]) == (["ReadWriteMany"], str(layout.VOLUMES / "one"))
