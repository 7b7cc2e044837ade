"""One command that measures the engine on a GPU, next to its hardware floor and to transformers."""
