"""In processes of their own: what `import torch` puts off, who brings it back, and an engine that starts without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving import torch_import
from serving.torch_import import TRIED_WITH, put_off_meta_kernels

with_this_torch = pytest.mark.skipif(
    not torch_import._is_tried(),
    reason="this torch is imported whole: another version, or a build for an accelerator",
)

_WITHOUT = """
import json, sys
from serving.torch_import import put_off_meta_kernels, load_meta_kernels
put_off = put_off_meta_kernels()
import torch

def loaded():
    return "torch._prims" in sys.modules

def shape_of_embedding():
    ids, table = torch.empty(3, dtype=torch.long, device="meta"), torch.empty(5, 7, device="meta")
    return list(torch.nn.functional.embedding(ids, table).shape)

def says(**facts):
    print(json.dumps({"put_off": put_off, "before": before, **facts}))

before = loaded()
"""


def _run(script: str, *, path: Path | None = None) -> dict[str, object]:
    environment = {"PATH": "/usr/bin:/bin", **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return facts


def test_the_torch_that_is_installed_by_default_is_one_that_was_tried() -> None:
    """Who raises the version runs the suite with it, and adds it to TRIED_WITH."""
    lines = (Path(__file__).parents[2] / "constraints-cpu.txt").read_text().splitlines()
    (pinned,) = (line.removeprefix("torch==") for line in lines if line.startswith("torch=="))
    assert pinned.startswith(TRIED_WITH)


@with_this_torch
def test_import_puts_meta_kernels_off_until_somebody_asks() -> None:
    facts = _run(f"""{_WITHOUT}
import inspect
inspect.getmodule(torch.nn.Linear.forward)
torch._meta_registrations.__file__
looked_at = loaded()
try:
    shape_of_embedding()
    refused = False
except NotImplementedError:
    refused = True
torch._meta_registrations.register_meta
says(looked_at=looked_at, refused=refused, after=loaded(), shape=shape_of_embedding(),
     name=type(torch._meta_registrations).__name__, spec=torch._meta_registrations.__spec__.origin)
""")
    assert facts["put_off"] is True and facts["before"] is False and facts["looked_at"] is False
    assert facts["refused"] is True, "torch answers without them: there is nothing to put off any more"
    assert facts["after"] is True and facts["shape"] == [3, 7] and facts["name"] == "module"
    assert str(facts["spec"]).endswith("_meta_registrations.py")


@with_this_torch
def test_a_compiler_finds_them() -> None:
    facts = _run(f"""{_WITHOUT}
import torch._dynamo
compiled = torch.compile(lambda x: torch.nn.functional.gelu(x @ x), backend="aot_eager", fullgraph=True)
x = torch.randn(4, 4)
same = torch.equal(compiled(x), torch.nn.functional.gelu(x @ x))
says(after=loaded(), same=same, shape=shape_of_embedding())
""")
    assert (facts["before"], facts["after"], facts["same"], facts["shape"]) == (False, True, True, [3, 7])


@with_this_torch
def test_loading_twice_changes_nothing() -> None:
    facts = _run(f"{_WITHOUT}\nload_meta_kernels(); load_meta_kernels()\nsays(shape=shape_of_embedding())")
    assert facts["shape"] == [3, 7]


@with_this_torch
def test_who_comes_while_they_load_waits_for_them() -> None:
    facts = _run(f"""{_WITHOUT}
import threading
thread = threading.Thread(target=load_meta_kernels)
thread.start()
load_meta_kernels()
shape = shape_of_embedding()
thread.join()
says(after=loaded(), shape=shape)
""")
    assert facts["after"] is True and facts["shape"] == [3, 7]


def test_only_builds_for_the_host_of_versions_that_were_tried(tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("")
    version = package / "version.py"
    script = "import json; from serving.torch_import import put_off_meta_kernels\nprint(json.dumps(put_off_meta_kernels()))"
    host = "cuda: Optional[str] = None\nhip: Optional[str] = None\n"
    for text, expected in (
        ("__version__ = '2.13.0+cpu'\n" + host, True),
        ("__version__ = '2.13.1'\n" + host, True),
        ("__version__ = '2.14.0+cpu'\n" + host, False),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda = \"12.8\"\n", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", False),
        (host, False),
    ):
        version.write_text(text)
        assert _run(script, path=tmp_path) is expected, text
    version.unlink()
    assert _run(script, path=tmp_path) is False


def test_too_late_is_said() -> None:
    import torch  # noqa: F401

    num_finders = len(sys.meta_path)
    assert put_off_meta_kernels() is False
    assert len(sys.meta_path) == num_finders


_ENGINE = """
import json, sys
from pathlib import Path
from serving.config import ModelConfig, ServerConfig
from serving.engine.process import BootOptions, build_core
from serving.messages import AddRequest
from serving.sampling_params import SamplingParams, Watermark

core, ready = build_core(BootOptions(
    declared=ServerConfig(model=ModelConfig(model_id="demo")), model_dir={model!r}, model_id="demo", revision=None,
    run_dir=Path({run!r}), report=lambda stage: None, on_rank_death=lambda error: None,
))

def num_tokens(**params):
    core.add_request(AddRequest(
        request_id="front-0", prompt_token_ids=[5, 6, 7], params=SamplingParams(max_new_tokens=8, seed=1, **params)
    ))
    count = 0
    while core.has_work():
        count += sum(len(output.token_ids) for output in core.step())
    return count

plain = num_tokens()
between = "torch._prims" in sys.modules
marked = num_tokens(temperature=1.0, watermark=Watermark())
core.close()
print(json.dumps({{"plain": plain, "between": between, "marked": marked, "after": "torch._prims" in sys.modules}}))
"""


@with_this_torch
def test_engine_answers_before_and_after_they_come(demo_model_dir: Path, tmp_path: Path) -> None:
    """The first that needs them is a watermark, which has them loaded."""
    facts = _run(_ENGINE.format(model=str(demo_model_dir), run=str(tmp_path)))
    assert facts["between"] is False and facts["after"] is True
    assert facts["plain"] in range(1, 9) and facts["marked"] in range(1, 9)
