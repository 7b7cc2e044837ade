"""The embedded demo model: a small Llama folder in Hugging Face layout, and the scripts that made it."""

from importlib.resources import files
from pathlib import Path


def demo_model_path() -> Path:
    """The folder that holds config.json, tokenizer.json and model.safetensors; serve it like any model folder."""
    return Path(str(files(__name__)))
