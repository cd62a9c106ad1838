"""Builds pinned Go programs once on this machine and prints the paths of the cached binaries: `go_binaries.py helm ct`.

A program is a package of a module at a version. Go takes what that module's go.mod names and verifies all of it against the
public checksum database, so the version alone pins every byte. Kubernetes cannot be built that way, since it replaces its own
staging modules: it has a go.mod and a go.sum in this repository, and one go command builds all its programs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from llama_wheel import ROOT, cache_dir, exclusive

KUBERNETES_MODULE = ROOT / "tests" / "cluster" / "kubernetes"
KUBERNETES_VERSION = "v1.35.4"


@dataclass(frozen=True)
class Build:
    """One go command: what it makes of which module, and the variables that it stamps as the project's own releases do.

    A module is a name, or the folder of its go.mod.
    """

    name: str
    version: str
    module: str | Path
    packages: tuple[str, ...]
    about_minutes: int
    stamps: dict[str, str] = field(default_factory=dict)

    @property
    def link_flags(self) -> str:
        return " ".join(["-s", "-w", *(f"-X {variable}={value}" for variable, value in self.stamps.items())])

    @property
    def programs(self) -> list[str]:
        return [package.rsplit("/", 1)[-1] for package in self.packages]

    def directory(self) -> Path:
        """Returns where the binaries are cached; whatever changes their bytes changes it, but for the Go toolchain."""
        digest = hashlib.sha256(repr((self.packages, self.link_flags, platform.machine())).encode())
        if isinstance(self.module, Path):
            for name in ("go.mod", "go.sum"):
                digest.update((self.module / name).read_bytes())
        return cache_dir() / "go" / f"{self.name}-{self.version}-{digest.hexdigest()[:8]}"

    def command(self, output: Path) -> list[str]:
        # A module that was written for this build alone gets its go.sum during it.
        mode = "readonly" if isinstance(self.module, Path) else "mod"
        return ["go", "build", f"-mod={mode}", "-trimpath", f"-ldflags={self.link_flags}", "-o", f"{output}/", *self.packages]


BUILDS = (
    Build(
        "helm",
        "v3.22.0",
        "helm.sh/helm/v3",
        ("helm.sh/helm/v3/cmd/helm",),
        2,
        {
            "helm.sh/helm/v3/internal/version.version": "v3.22.0",
            # `helm template` and `helm lint` judge by this Kubernetes, that of its client-go, when they ask no cluster.
            "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor": "1",
            "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": "37",
            "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor": "1",
            "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor": "37",
        },
    ),
    Build(
        "helm4",
        "v4.3.1",
        "helm.sh/helm/v4",
        ("helm.sh/helm/v4/cmd/helm",),
        2,
        {"helm.sh/helm/v4/internal/version.version": "v4.3.1"},
    ),
    Build(
        "ct",
        "v3.14.0",
        "github.com/helm/chart-testing/v3",
        ("github.com/helm/chart-testing/v3/ct",),
        1,
        {"github.com/helm/chart-testing/v3/ct/cmd.Version": "v3.14.0"},
    ),
    Build(
        "kube-score",
        "v1.20.0",
        "github.com/zegl/kube-score",
        ("github.com/zegl/kube-score/cmd/kube-score",),
        1,
        {"main.version": "1.20.0"},
    ),
    Build(
        "helm-docs",
        "v1.14.2",
        "github.com/norwoodj/helm-docs",
        ("github.com/norwoodj/helm-docs/cmd/helm-docs",),
        1,
        {"main.version": "1.14.2"},
    ),
    Build("coredns", "v1.15.0", "github.com/coredns/coredns", ("github.com/coredns/coredns",), 3),
    # An S3 store that checks signatures, for the downloader's tests.
    Build("versitygw", "v1.8.0", "github.com/versity/versitygw", ("github.com/versity/versitygw/cmd/versitygw",), 2),
    # The OCI registry of reference, for the downloader's tests.
    Build(
        "registry",
        "v3.1.2",
        "github.com/distribution/distribution/v3",
        ("github.com/distribution/distribution/v3/cmd/registry",),
        2,
    ),
    Build("kind", "v0.33.0", "sigs.k8s.io/kind", ("sigs.k8s.io/kind",), 1),
    Build(
        "kubernetes",
        KUBERNETES_VERSION,
        KUBERNETES_MODULE,
        tuple(
            f"k8s.io/kubernetes/cmd/{program}"
            for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
        ),
        6,
        {
            # Unstamped it calls itself v0.0.0-master, and a chart's kubeVersion would be judged by that.
            "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
            "k8s.io/component-base/version.gitMajor": "1",
            "k8s.io/component-base/version.gitMinor": "35",
            "k8s.io/component-base/version.gitTreeState": "clean",
            "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES_VERSION,
        },
    ),
)

# What `ensure` can be asked for. A name of a build that makes one program means that program, whatever its package calls it.
BUILD_BY_PROGRAM = {program: build for build in BUILDS if len(build.packages) > 1 for program in build.programs} | {
    build.name: build for build in BUILDS if len(build.packages) == 1
}


def say(text: str) -> None:
    """Speaks on standard error: the paths alone go to standard output."""
    print(f"[go] {text}", file=sys.stderr, flush=True)


def module_folder(build: Build, scratch: Path) -> Path:
    """Returns the folder to build in. `go install PACKAGE@VERSION` would do without, but asks for all versions there are."""
    if isinstance(build.module, Path):
        return build.module
    # Of the Go versions, the oldest with every feature of go.mod; Go raises it to what the module wants.
    (scratch / "go.mod").write_text(f"module build\n\ngo 1.24\n\nrequire {build.module} {build.version}\n")
    return scratch


def compile_into(build: Build, directory: Path) -> None:
    go = shutil.which("go")
    if go is None:
        sys.exit(
            f"go_binaries: {build.name} {build.version} is built from source and needs Go (https://go.dev/dl) on the PATH."
        )
    log_path = directory / "build.log"
    say(f"building {build.name} {build.version}: about {build.about_minutes} min on 2 cores, once on this machine")
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as scratch, open(log_path, "wb") as log:
        module, output = module_folder(build, Path(scratch)), Path(scratch) / "bin"
        environment = {**os.environ, "CGO_ENABLED": "0"}
        start = time.monotonic()
        process = subprocess.Popen(build.command(output), cwd=module, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                code = process.wait(timeout=30)
                break
            except subprocess.TimeoutExpired:
                say(f"  {build.name}: {time.monotonic() - start:.0f} s")
        if code:
            tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-30:])
            sys.exit(
                f"{tail}\ngo_binaries: building {build.name} {build.version} ended with {code}. The whole log is {log_path}."
            )
        for binary in output.iterdir():
            binary.rename(directory / binary.name)
    log_path.unlink()


def ensure(name: str) -> Path:
    """Returns the cached program `name`, after building it if need be."""
    build = BUILD_BY_PROGRAM[name]
    directory = build.directory()
    program = directory / (name if len(build.packages) > 1 else build.programs[0])
    if not program.exists():
        with exclusive(directory):
            if not program.exists():
                compile_into(build, directory)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="+", choices=sorted(BUILD_BY_PROGRAM), metavar="NAME", help=", ".join(BUILD_BY_PROGRAM))
    for name in parser.parse_args().names:
        print(ensure(name))


if __name__ == "__main__":
    main()
