"""The locks pin everything an image installs, with hashes, within what pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.image_lock import LOCKS, PYTHON_VERSION, entries, split_torch
from tests.house_rules import ROOT

MARKERS = {
    "python_version": PYTHON_VERSION, "python_full_version": f"{PYTHON_VERSION}.2", "sys_platform": "linux",
    "platform_machine": "x86_64", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}  # fmt: skip
IMAGES = {"cpu": ("cpu.txt", "torch-cpu.txt"), "cuda": ("cuda.txt",)}


def _pins(*names: str) -> dict[str, Version]:
    pins = {}
    for name in names:
        for entry in entries((LOCKS / name).read_text(encoding="utf-8")):
            found = re.match(r"([\w.-]+)==([\w.+!]+)", entry)
            assert found is not None, entry
            pins[canonicalize_name(found[1])] = Version(found[2])
    return pins


def _unsatisfied(requirements: list[str], pins: dict[str, Version], extras: set[str]) -> list[str]:
    """Requirements that hold on the images' platform, and that no pin satisfies."""
    missing = []
    for text in requirements:
        requirement = Requirement(text)
        environments = [{**MARKERS, "extra": extra} for extra in extras | {""}]
        if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(pin, prereleases=True):
            missing.append(f"{text}: {pin}")
    return missing


@pytest.mark.parametrize("name", ["build.txt", "cpu.txt", "cuda.txt", "torch-cpu.txt"])
def test_every_entry_has_hashes_and_no_place_of_a_machine(name: str) -> None:
    text = (LOCKS / name).read_text(encoding="utf-8")
    found = entries(text)
    assert found
    for entry in found:
        assert re.fullmatch(
            r"[\w.-]+==[\w.+!]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n(    #.*\n)*", entry
        ), entry
    assert "://" not in text and "--" not in re.sub(r"--hash=", "", text)


@pytest.mark.parametrize("image", IMAGES)
def test_satisfies_what_the_project_asks_for(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(project["optional-dependencies"]["cuda"] if image == "cuda" else [])]
    assert _unsatisfied(asked, _pins(*IMAGES[image]), set()) == []


@pytest.mark.parametrize("image", IMAGES)
def test_is_complete(image: str) -> None:
    """Whatever the pinned packages of this environment ask for is pinned as well: images install without resolving."""
    pins = _pins(*IMAGES[image])
    compared = 0
    for name, pin in pins.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        # CUDA builds ask for more than the CPU build installed here says.
        if Version(installed.version) == pin:
            compared += 1
            extras = {"gevent"} if name == "gunicorn" else set()
            assert _unsatisfied(installed.requires or [], pins, extras) == [], name
    assert compared > len(pins) / 4


def test_images_agree_and_keep_the_constraints() -> None:
    cpu, cuda = _pins(*IMAGES["cpu"]), _pins(*IMAGES["cuda"])
    assert {
        name: (cpu[name], cuda[name]) for name in cpu if name != "torch" and cpu[name] != cuda[name]
    } == {}
    constraints = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8")
    assert f"\ntorch=={cuda['torch']}\n" in constraints and f"\ntriton=={cuda['triton']}\n" in constraints
    assert str(cpu["torch"]) == f"{cuda['torch']}+cpu"


def test_splits_torch_off() -> None:
    one = "a==1 \\\n    --hash=sha256:aa\n    # via torch\n"
    torch = "torch==2+cpu \\\n    --hash=sha256:bb\n"
    assert split_torch(one + torch + "    # via x\n" + one) == (one + one, torch)
    with pytest.raises(ValueError, match="0 times"):
        split_torch(one)
