"""onnxruntime-genai's model builder on a model without an end-of-sequence token, which it insists on.

It gets the last of the vocabulary, since it must be one; the runner asks for a least length, which masks it.

python -m benchmarks.peers.runners.convert_onnx MODEL TARGET_FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    model, target = (Path(argument).resolve() for argument in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for file in model.iterdir():
            if file.name not in {"config.json", "generation_config.json"}:
                (staged / file.name).symlink_to(file)
        config = json.loads((model / "config.json").read_text())
        ids = {"eos_token_id": config["vocab_size"] - 1, "bos_token_id": 0, "pad_token_id": 0}
        (staged / "config.json").write_text(json.dumps(config | ids))
        (staged / "generation_config.json").write_text(json.dumps(ids))
        builder = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-m",
            str(staged),
            "-i",
            str(staged),
        ]
        # Without a folder for downloads of its own it makes one in the working folder.
        builder += ["-o", str(target), "-p", "fp32", "-e", "cpu", "-c", str(staged / "cache")]
        return subprocess.run(builder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
