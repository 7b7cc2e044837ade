"""`python -m tests.fuzz.run --cases 24000`: a real server under schemathesis, valid and invalid data, every operation.

Exit code 0 when no answer was an undocumented status, content type or shape, nothing was a 5xx, and the server still gives
the answer it gave before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from local_mode.server_process import ServerProcess

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
GOLDEN = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8, "details": True}}
_GENERATED = re.compile(r"([\d,]+) generated")

# Long answers would make the run a test of patience.
_SETTINGS = {
    "DEVICE": "cpu",
    "HOSTNAME": "127.0.0.1",
    "PORT": "0",
    "NUM_THREADS": "1",
    "MODEL_ID": "demo",
    "MAX_INPUT_TOKENS": "40",
    "MAX_TOTAL_TOKENS": "48",
    "MAX_N": "2",
    "PAYLOAD_LIMIT": "1048576",
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=24_000, help="requests to make, over all seeds")
    parser.add_argument("--seeds", type=int, default=3, help="independent runs that share the cases")
    options = parser.parse_args(arguments)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAX_", "SM_"))}
    with ServerProcess({**environment, **_SETTINGS}) as server:
        server.wait_ready()
        golden = _golden(server.port)
        failed, made = False, 0
        for seed in range(1, options.seeds + 1):
            wanted = (options.cases - made) // (options.seeds - seed + 1)
            code, cases = _run(server.port, seed=seed, cases=wanted)
            made, failed = made + cases, failed or code != 0
        same = _golden(server.port) == golden
    print(f"cases: {made}, failures: {'yes' if failed else 'none'}, same answer as before: {same}")
    return 0 if same and not failed and made >= options.cases else 1


def _run(port: int, *, seed: int, cases: int) -> tuple[int, int]:
    """Exit code and number of requests: all edges that the document has, then random data up to `cases`."""
    code, made = _schemathesis(port, seed=seed, phases="examples,coverage", examples=1)
    while made < cases and code == 0:
        examples = max(1, (cases - made) // _num_operations(port))
        code, generated = _schemathesis(port, seed=seed + made, phases="fuzzing", examples=examples)
        if generated == 0:
            return 1, made
        made += generated
    return code, made


def _schemathesis(port: int, *, seed: int, phases: str, examples: int) -> tuple[int, int]:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"http://127.0.0.1:{port}/api-doc/openapi.json",
        f"--checks={','.join(CHECKS)}",
        f"--phases={phases}",
        "--mode=all",
        f"--max-examples={examples}",
        f"--seed={seed}",
        "--continue-on-failure",
        "--generation-database=none",
        "--generation-codec=utf-8",
        "--suppress-health-check=all",
        "--request-timeout=30",
        "--no-color",
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.fuzz.line_bodies",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with tempfile.TemporaryDirectory() as folder:  # it would leave a cache where it runs
        finished = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    print(finished.stdout[-6000:], flush=True)
    found = _GENERATED.search(finished.stdout)
    return finished.returncode, int(found[1].replace(",", "")) if found else 0


def _num_operations(port: int) -> int:
    document = json.loads(_get(port, "/api-doc/openapi.json"))
    return sum(len(methods) for methods in document["paths"].values())


def _golden(port: int) -> object:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps(GOLDEN)
        connection.request("POST", "/generate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
