"""llama.cpp's converter on a model whose tokenizer it does not know by its hash.

Its list of known tokenizers tells it how text is split before byte-pair merging. Ours is byte-level BPE split by GPT-2's
expression, which it calls `gpt-2`; nothing else of the converter is touched.

python -m benchmarks.peers.runners.convert_gguf LLAMA_CPP_SOURCE MODEL TARGET.gguf
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    source, model, target = (Path(argument).resolve() for argument in sys.argv[1:4])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", str(model), "--outtype", "f32", "--outfile", str(target)]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
