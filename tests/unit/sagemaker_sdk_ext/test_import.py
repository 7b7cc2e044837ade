"""Importing the package costs nobody an SDK."""

from __future__ import annotations

import subprocess
import sys

_HEAVY = ("boto3", "botocore", "sagemaker", "openai", "torch", "huggingface_hub", "serving", "container")


def test_no_sdk_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, sagemaker_sdk_ext as ext; from sagemaker_sdk_ext import backends, plan_text;"
        "ext.plan; ext.TextGenModel(role='r', env={'HF_MODEL_ID': 'demo'}, max_total_tokens=10);"
        f"print([name for name in {_HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
