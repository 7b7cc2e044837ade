"""Execute a Dockerfile's steps in clean roots, and start what they make: `make image-check`. No container engine needed.

Every instruction is run as an engine would, in roots made by debootstrap; then the image's entry point serves the demo
model from a root that cannot be written. Says what everything takes in MiB and seconds. Needs root and a network.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.image_dockerfile import Dockerfile, Instruction, Stage, expand, parse
from scripts.image_exercise import STOP_LIMIT_S, Failed, exercise, free_port, wait_ready
from scripts.image_prune import MIB, size_bytes
from scripts.image_roots import Process, StepFailed, copy_of, debian, run, start

ROOT = Path(__file__).resolve().parents[1]
MIRROR = "http://deb.debian.org/debian"
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "tcc", "as", "ld", "make")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BASE = "debian:"


@dataclass(slots=True)
class Build:
    """A Dockerfile, and one root per stage below `work`."""

    dockerfile: Dockerfile
    work: Path
    cache: Path
    arguments: dict[str, str]

    def root_of(self, stage: Stage) -> Path:
        return self.work / f"stage-{stage.name}"

    @property
    def final_root(self) -> Path:
        return self.root_of(self.dockerfile.final)

    def base_of(self, stage: Stage) -> Path:
        """Raises `StepFailed` for a base that is neither a stage nor a release of Debian."""
        for other in self.dockerfile.stages:
            if other.name == stage.base:
                return self.root_of(other)
        if not stage.base.startswith(_BASE):
            raise StepFailed(f"FROM {stage.base}: only releases of Debian can be made here")
        suite = stage.base.removeprefix(_BASE).split("@")[0].removesuffix("-slim")
        return debian(suite, self.cache, mirror=MIRROR)

    def run(self) -> dict[str, str]:
        """Build every stage; the variables that the last one leaves to its entry point. Raises `StepFailed`."""
        environment: dict[str, str] = {}
        for stage in self.dockerfile.stages:
            copy_of(self.base_of(stage), self.root_of(stage))
            environment = self._run_stage(stage)
        return environment

    def _run_stage(self, stage: Stage) -> dict[str, str]:
        root, environment, arguments, folder = self.root_of(stage), {"PATH": PATH}, dict[str, str](), "/"
        for instruction in stage.instructions:
            started_s = time.monotonic()
            variables = {**arguments, **environment}
            if instruction.kind == "ARG":
                name = instruction.text.partition("=")[0]
                value = self.arguments.get(name, instruction.pairs().get(name))
                if value is not None:
                    arguments[name] = value
            elif instruction.kind == "ENV":
                environment |= {k: expand(v, variables) for k, v in instruction.pairs().items()}
            elif instruction.kind == "WORKDIR":
                folder = os.path.join(folder, instruction.text)
                (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction.kind == "COPY":
                self._copy(instruction, root, folder)
            elif instruction.kind == "RUN":
                run(root, ["/bin/sh", "-c", instruction.text], Process({**arguments, **environment}, folder))
            elif instruction.kind == "LABEL":
                for value in instruction.pairs().values():
                    expand(value, variables)
            _say(
                f"{stage.name:>5} {time.monotonic() - started_s:6.1f} s  {instruction.kind} {instruction.text[:90]}"
            )
        return environment

    def _copy(self, instruction: Instruction, root: Path, folder: str) -> None:
        *sources, target = instruction.words()
        destination = root / os.path.join(folder, target).lstrip("/")
        stage = instruction.option("from")
        for source in sources:
            if stage is not None:
                origin = self.work / f"stage-{stage}" / source.lstrip("/")
                destination.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-aT", str(origin), str(destination)], check=True)
                continue
            for path in context_files(source):
                relative = path.relative_to(ROOT / source) if (ROOT / source).is_dir() else Path(path.name)
                into = (
                    destination / relative
                    if (ROOT / source).is_dir() or target.endswith("/")
                    else destination
                )
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into)


def context_files(source: str) -> list[Path]:
    """Files of the build context at or below `source`. Raises `StepFailed` when .dockerignore leaves none."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line.rstrip("/") for line in lines if line and not line.startswith("#")]

    def ignored(path: Path) -> bool:
        name, verdict = path.relative_to(ROOT).as_posix(), False
        parents = [name, *(str(parent) for parent in Path(name).parents)]
        for pattern in patterns:
            bare = pattern.removeprefix("!")
            forms = (
                (bare, bare.removeprefix("**/"), f"*/{bare.removeprefix('**/')}")
                if "**/" in bare
                else (bare,)
            )
            if any(fnmatch.fnmatchcase(parent, form) for parent in parents for form in forms):
                verdict = not pattern.startswith("!")
        return verdict

    start_at = ROOT / source
    candidates = [start_at] if start_at.is_file() else sorted(p for p in start_at.rglob("*") if p.is_file())
    kept = [path for path in candidates if not ignored(path)]
    if not kept:
        raise StepFailed(f"COPY {source}: nothing of that name is in the build context")
    return kept


def compilers_in(root: Path) -> list[str]:
    """Compilers and linkers in the folders for programs, and in the environment's."""
    folders = [root / name for name in ("bin", "usr/bin", "usr/local/bin", "usr/sbin", "opt/venv/bin")]
    names = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return sorted(
        n for n in names if n in COMPILERS or n.startswith(("gcc-", "clang-", "x86_64-linux-gnu-gcc"))
    )


def check(root: Path, stage: Stage, environment: dict[str, str], *, device: str) -> None:
    """Serve from `root` as SageMaker would start it. Raises `Failed`."""
    if found := compilers_in(root):
        raise Failed(f"the image holds {', '.join(found)}")
    (entrypoint,) = stage.of_kind("ENTRYPOINT")
    port = free_port()
    settings = {
        "HF_MODEL_ID": "demo",
        "HOSTNAME": "127.0.0.1",
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "DEVICE": device,
    }
    process = Process({**environment, **settings, "HOME": "/nonexistent"}, read_only=True, forward=False)
    server = start(root, [*entrypoint.exec_form(), "serve"], process)
    try:
        _say(
            f"ready after {wait_ready(port, server):.1f} s, on a root that cannot be written, with no compiler"
        )
        exercise(port)
        _say("answered /ping, /invocations, a stream, a chat held to a schema, /metrics")
        started_s = time.monotonic()
        os.kill(_only_child(server.pid), signal.SIGTERM)
        status = server.wait(STOP_LIMIT_S)
        if status != 0:
            raise Failed(f"SIGTERM ended it with status {status}")
        _say(f"SIGTERM: exit status 0 after {time.monotonic() - started_s:.1f} s")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def _only_child(pid: int) -> int:
    """Process 1 of the namespace: what `unshare` waits for does not pass signals on."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def sizes(build: Build, *, top: int) -> str:
    """MiB of files: the base, what the image adds to it, and the largest packages."""
    base, root = size_bytes(build.base_of(build.dockerfile.final)), build.final_root
    total, environment = size_bytes(root), size_bytes(root / "opt/venv")
    lines = [
        f"{base / MIB:8.1f} MiB  base root file system ({build.dockerfile.final.base})",
        f"{(total - environment - base) / MIB:8.1f} MiB  Debian's packages on top, and the bill of materials",
        f"{environment / MIB:8.1f} MiB  run-time environment, of which",
    ]
    (site_packages,) = (root / "opt/venv/lib").glob("python3*/site-packages")
    packages = sorted(((size_bytes(path), path.name) for path in site_packages.iterdir()), reverse=True)
    lines += [f"{size / MIB:16.1f} MiB  {name}" for size, name in packages[:top]]
    return "\n".join([*lines, f"{total / MIB:8.1f} MiB  together"])


def _say(text: str) -> None:
    print(f"image: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "image", help="where the roots are made and kept"
    )
    parser.add_argument(
        "--size", action="store_true", help="only print the sizes of what an earlier call made"
    )
    options = parser.parse_args(arguments)
    dockerfile = parse(options.dockerfile.read_text())
    work = options.work.resolve() / (options.dockerfile.suffix.removeprefix(".") or "cuda")
    build_arguments = dict(argument.split("=", 1) for argument in options.build_arg)
    build = Build(dockerfile, work, options.work.resolve(), build_arguments)
    try:
        if not (options.size and build.final_root.is_dir()):
            work.mkdir(parents=True, exist_ok=True)
            environment = build.run()
            check(build.final_root, dockerfile.final, environment, device="cpu")
        print(sizes(build, top=12))
    except (StepFailed, Failed, OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
