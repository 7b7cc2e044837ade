"""In processes of their own: what is left out of `import torch`, who brings it back, and an engine without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from serving.engine.torch_import import leave_out_meta_kernels

_WITHOUT = """
import json, sys
from serving.engine.torch_import import leave_out_meta_kernels, load_meta_kernels
left_out = leave_out_meta_kernels()
import torch

def loaded():
    return "torch._prims" in sys.modules

def shape_of_embedding():
    ids, table = torch.empty(3, dtype=torch.long, device="meta"), torch.empty(5, 7, device="meta")
    return list(torch.nn.functional.embedding(ids, table).shape)

def says(**facts):
    print(json.dumps({"left_out": left_out, "before": before, **facts}))

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


def test_import_passes_over_meta_kernels_until_somebody_asks() -> None:
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
    assert facts["left_out"] is True and facts["before"] is False and facts["looked_at"] is False
    assert facts["refused"] is True, "torch answers without it: there is nothing to leave out any more"
    assert facts["after"] is True and facts["shape"] == [3, 7] and facts["name"] == "module"
    assert str(facts["spec"]).endswith("_meta_registrations.py")


def test_a_compiler_finds_them() -> None:
    facts = _run(f"""{_WITHOUT}
import torch._dynamo
compiled = torch.compile(lambda x: torch.nn.functional.gelu(x @ x), backend="aot_eager", fullgraph=True)
x = torch.randn(4, 4)
same = torch.equal(compiled(x), torch.nn.functional.gelu(x @ x))
says(after=loaded(), same=same, shape=shape_of_embedding())
""")
    assert (
        facts["before"] is False
        and facts["after"] is True
        and facts["same"] is True
        and facts["shape"] == [3, 7]
    )


def test_loading_twice_changes_nothing() -> None:
    facts = _run(f"{_WITHOUT}\nload_meta_kernels(); load_meta_kernels()\nsays(shape=shape_of_embedding())")
    assert facts["shape"] == [3, 7]


def test_builds_for_accelerators_are_imported_whole(tmp_path: Path) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("")
    version = package / "version.py"
    script = (
        "import json; from serving.engine.torch_import import leave_out_meta_kernels\n"
        "print(json.dumps(leave_out_meta_kernels()))"
    )
    for text, expected in (
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", False),
        ('cuda = "12.8"\n', False),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", False),
    ):
        version.write_text(text)
        assert _run(script, path=tmp_path) is expected, text
    version.unlink()
    assert _run(script, path=tmp_path) is False


def test_too_late_is_said() -> None:
    import torch  # noqa: F401

    num_finders = len(sys.meta_path)
    assert leave_out_meta_kernels() is False
    assert len(sys.meta_path) == num_finders


def test_engine_answers_without_them(demo_model_dir: Path, tmp_path: Path) -> None:
    facts = _run(f"""
import json, sys
from pathlib import Path
from serving.config import ModelConfig, ServerConfig
from serving.engine.process import BootOptions, build_core
from serving.messages import AddRequest
from serving.sampling_params import SamplingParams

declared = ServerConfig(model=ModelConfig(model_id="demo"))
core, ready = build_core(BootOptions(
    declared=declared, model_dir={str(demo_model_dir)!r}, model_id="demo", revision=None,
    run_dir=Path({str(tmp_path)!r}), report=lambda stage: None, on_rank_death=lambda error: None,
))
params = SamplingParams(max_new_tokens=8, seed=1)
core.add_request(AddRequest(request_id="front-0", prompt_token_ids=[5, 6, 7], params=params))
num_tokens = 0
while core.has_work():
    num_tokens += sum(len(output.token_ids) for output in core.step())
core.close()
print(json.dumps({{"tokens": num_tokens, "loaded": "torch._prims" in sys.modules}}))
""")
    assert facts["loaded"] is False and facts["tokens"] in range(1, 9)
