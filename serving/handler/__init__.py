"""The process that runs a deployer's `code/inference.py`, and how the front talks to it. Knows no engine and no HTTP."""
