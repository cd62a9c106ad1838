"""The cluster's certificates, made with openssl: an authority, and a key with a certificate for everyone who must be known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster import layout
from cluster.commands import run

VALID_DAYS = "3650"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256", "-days", VALID_DAYS)


@dataclass(frozen=True)
class Identity:
    """A user, and the names under which it serves, if it does."""

    user: str
    group: str = ""
    hosts: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        return (f"/O={self.group}" if self.group else "") + f"/CN={self.user}"

    @property
    def extensions(self) -> list[str]:
        """Returns what the certificate is good for, in the words of x509v3_config(5)."""
        words = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature,keyEncipherment"]
        words.append("extendedKeyUsage=clientAuth" + (",serverAuth" if self.hosts else ""))
        if self.hosts:
            kinds = (f"{'IP' if host.replace('.', '').isdigit() else 'DNS'}:{host}" for host in self.hosts)
            words.append("subjectAltName=" + ",".join(kinds))
        return words


IDENTITIES: Mapping[str, Identity] = {
    "apiserver": Identity(
        "kube-apiserver",
        # It asks the kubelets with this one, for logs and exec.
        "system:masters",
        (
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"kubernetes.default.svc.{layout.DOMAIN}",
            "localhost",
            "127.0.0.1",
            layout.API_SERVICE_IP,
            layout.NODE_IP,
        ),
    ),
    "admin": Identity("admin", "system:masters"),
    "controller-manager": Identity("system:kube-controller-manager"),
    "scheduler": Identity("system:kube-scheduler"),
    "proxy": Identity("system:kube-proxy"),
    "kubelet": Identity(f"system:node:{layout.NODE}", "system:nodes", (layout.NODE, layout.NODE_IP)),
    "coredns": Identity("coredns"),
}


def certificate(name: str) -> Path:
    return layout.CERTIFICATES / f"{name}.crt"


def key(name: str) -> Path:
    return layout.CERTIFICATES / f"{name}.key"


def issue(name: str, subject: str, extensions: list[str], authority: str | None) -> None:
    if certificate(name).exists():
        return
    signer = ("-CA", certificate(authority), "-CAkey", key(authority)) if authority else ()
    options = [word for extension in extensions for word in ("-addext", extension)]
    part = certificate(name).with_suffix(".part")
    run("openssl", "req", "-x509", "-subj", subject, *NEW_KEY, *signer, *options, "-keyout", key(name), "-out", part)
    part.rename(certificate(name))


def ensure_certificates() -> None:
    """Makes what is missing; what is there stays, so that a restarted cluster still knows everyone."""
    layout.CERTIFICATES.mkdir(parents=True, exist_ok=True)
    os.chmod(layout.CERTIFICATES, 0o700)
    issue("ca", "/CN=nlocalmodels-cluster", ["keyUsage=critical,keyCertSign,cRLSign,digitalSignature"], None)
    issue("service-accounts", "/CN=service-accounts", [], None)
    for name, known in IDENTITIES.items():
        issue(name, known.subject, known.extensions, "ca")
