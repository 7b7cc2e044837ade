"""Trains the demo model from nothing but a seed: corpus, tokenizer, weights. `--help` tells the options.

Needs torch and transformers; serving the model needs neither this file nor the corpus.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from local_mode.demo_model.chat_format import BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN, PAD
from local_mode.demo_model.corpus import documents
from local_mode.demo_model.muon import Muon
from local_mode.demo_model.tokenizer import VOCAB_SIZE, save_tokenizer, train_tokenizer

MAX_POSITIONS = 2048
TOKENS_PER_STEP = 4096
# One step in ten sees long packed windows, so that far positions mean something too.
WINDOW_LENGTHS = (256, 512, 256, 512, 256, 1024, 256, 512, 256, 2048)
TOKENIZER_DOCUMENTS = 20_000
VALIDATION_SEED_OFFSET = 1_000_003
PEAK_LR = 4e-3
DEFAULT_STEPS = 700


def llama_config(tokenizer: Tokenizer) -> LlamaConfig:
    """The architecture: 4.1 M parameters, six layers, eight query heads that share four key-value heads."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def windows(tokenizer: Tokenizer, seed: int) -> Iterator[torch.Tensor]:
    """Batches of token ids [rows, length + 1], one per step; every row starts at the start of a document."""
    stream = documents(seed)
    step = 0
    while True:
        length = WINDOW_LENGTHS[step % len(WINDOW_LENGTHS)]
        rows = []
        for _ in range(TOKENS_PER_STEP // length):
            row: list[int] = []
            while len(row) <= length:
                row += tokenizer.encode(next(stream), add_special_tokens=False).ids
            rows.append(row[: length + 1])
        yield torch.tensor(rows)
        step += 1


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token of a batch [rows, length + 1]."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], *, steps: int) -> float:
    """Train in place for `steps`; returns the last smoothed training loss."""
    body = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    # Orthogonalised updates learn this corpus in far fewer tokens than AdamW alone.
    muon = Muon(body, weight_decay=0.02)
    adamw = torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.95))
    smoothed = math.log(VOCAB_SIZE)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    model.train()
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, loss=smoothed)
        for step in range(steps):
            adamw.param_groups[0]["lr"] = lr = PEAK_LR * learning_rate_factor(step, steps)
            loss = loss_of(model, next(batches))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rest, 1.0)
            muon.step(lr)
            adamw.step()
            model.zero_grad(set_to_none=True)
            smoothed += 0.05 * (loss.item() - smoothed)
            progress.update(task, advance=1, loss=smoothed)
            if not progress.console.is_terminal and (step + 1) % 50 == 0:
                progress.console.print(f"step={step + 1} of={steps} loss={smoothed:.3f}")
    return smoothed


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over 4 % of the steps, flat, then linear to zero over the last half."""
    warm_up = max(1, steps // 25)
    return min((step + 1) / warm_up, 1.0, (steps - step) / (steps - steps // 2))


@torch.no_grad()
def validation(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int) -> dict[str, float]:
    """Loss in nats per token and mean top-1 probability on documents that training has not seen."""
    model.train(False)
    batches = windows(tokenizer, seed + VALIDATION_SEED_OFFSET)
    losses, peaks = [], []
    for _ in range(len(WINDOW_LENGTHS)):
        batch = next(batches)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        losses.append(cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item())
        peaks.append(logits.softmax(-1).amax(-1).mean().item())
    return {"loss": sum(losses) / len(losses), "mean_top1_probability": sum(peaks) / len(peaks)}


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder: bfloat16 weights, both configs, the tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    # The tied head is stored once, as the embedding.
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors writes for its owner alone; an image may serve as another user.
    (folder / "model.safetensors").chmod(0o644)
    config = model.config
    stops = [tokenizer.token_to_id(END_OF_TURN), config.eos_token_id]
    _write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim, "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS, "rms_norm_eps": config.rms_norm_eps, "rope_theta": 10000.0,
        "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": config.bos_token_id, "eos_token_id": stops, "pad_token_id": config.pad_token_id,
        "torch_dtype": "bfloat16", "use_cache": True,
    })  # fmt: skip
    _write_json(folder / "generation_config.json", {
        "bos_token_id": config.bos_token_id, "eos_token_id": stops, "pad_token_id": config.pad_token_id,
        "do_sample": False,
    })  # fmt: skip
    save_tokenizer(tokenizer, folder, max_length=MAX_POSITIONS)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the demo model and write it as a Hugging Face model folder.",
        epilog="The same seed on the same machine with the same thread count gives the same weights. "
        "Try --steps 100 first: about three minutes, and it already writes words.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made when it is missing")
    parser.add_argument(
        "--seed", type=int, default=0, help="chooses the text and the first weights (default 0)"
    )
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS,
                        help=f"steps of {TOKENS_PER_STEP} tokens (default {DEFAULT_STEPS})")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started_s = time.monotonic()
    stream = documents(options.seed)
    tokenizer = train_tokenizer(next(stream) for _ in range(TOKENIZER_DOCUMENTS))
    model = LlamaForCausalLM(llama_config(tokenizer))
    train_loss = train(model, windows(tokenizer, options.seed + 1), steps=options.steps)
    save_model(model, tokenizer, options.out)
    # What is judged is what is served: the rounded weights, computed in float32.
    served = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    scores = validation(served, tokenizer, options.seed)
    print(f"train_loss={train_loss:.4f} validation_loss={scores['loss']:.4f} "
          f"mean_top1_probability={scores['mean_top1_probability']:.4f} "
          f"parameters={sum(p.numel() for p in model.parameters())} "
          f"time_s={time.monotonic() - started_s:.0f} folder={options.out}")  # fmt: skip


if __name__ == "__main__":
    main()
