"""`transformers` generate() as a peer: a process that reads one JSON job per line and answers with its seconds.

Job: {"prompts": [[ids]], "max_new_tokens": n}; all prompts have the same length and run as one batch.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    model_dir, num_threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(num_threads)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        inputs = torch.tensor(job["prompts"])
        started_s = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=job["max_new_tokens"],
                min_new_tokens=job["max_new_tokens"],
                do_sample=False,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - started_s
        tokens = output[:, inputs.shape[1] :].tolist()
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
