"""Hosting with the real container and the demo model: how soon it is in service, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import tarfile
import time
from pathlib import Path

import httpx
import psutil

from local_mode.hosting import Built, build
from tests.unit.local_mode.hosting.world import MemoryResources, until

IN_SERVICE_LIMIT_S = 15.0


async def served(built: Built, resources: MemoryResources, name: str) -> float:
    """Create, invoke and delete an endpoint; how long it took to be in service."""
    record = {"EndpointName": name, "EndpointConfigName": name, "EndpointStatus": "Creating"}
    resources.add("endpoint", name, record)
    began_s = time.monotonic()
    built.hosting.endpoint_created(name)
    await until(lambda: resources.get("endpoint", name)["EndpointStatus"] != "Creating", 120.0)
    took_s = time.monotonic() - began_s
    record = resources.get("endpoint", name)
    assert record["EndpointStatus"] == "InService", record["FailureReason"]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        body = {"inputs": "Once", "parameters": {"max_new_tokens": 4}}
        answer = await client.post(f"{built.routing.target(name).base_url}/invocations", json=body)
    assert answer.status_code == 200, answer.text
    assert "generated_text" in answer.text
    built.hosting.endpoint_deleted(name)
    await until(lambda: not resources.all("endpoint"), 60.0)
    return took_s


def test_the_demo_model_is_in_service_soon_and_serves_from_model_data(
    tmp_path: Path, demo_model_dir: Path
) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for path in demo_model_dir.iterdir():
            if path.suffix in (".json", ".safetensors"):
                tar.add(path, path.name)
    state = tmp_path / "state"
    resources = MemoryResources()
    environment = {"NUM_THREADS": "1", "SM_NUM_GPUS": "1"}
    for name, container in {
        "demo": {"Environment": environment | {"HF_MODEL_ID": "demo"}},
        "archive": {"Environment": environment, "ModelDataUrl": f"file://{archive}"},
    }.items():
        resources.add("model", name, {"PrimaryContainer": {"Image": "any/image:1"} | container})
        variants = [{"VariantName": "AllTraffic", "ModelName": name, "InitialInstanceCount": 1}]
        resources.add("endpoint-config", name, {"EndpointConfigName": name, "ProductionVariants": variants})

    async def story() -> float:
        built = build(
            resources,
            state_dir=state,
            region="us-east-1",
            account="123456789012",
            environment={"PATH": os.environ["PATH"]},
            backend="process",
        )
        await built.hosting.start()
        try:
            took_s = await served(built, resources, "demo")
            await served(built, resources, "archive")
        finally:
            await built.hosting.stop()
        return took_s

    took_s = asyncio.run(story())
    print(f"CreateEndpoint to InService: {took_s:.1f} s")
    assert took_s < IN_SERVICE_LIMIT_S
    assert [
        process for process in psutil.Process().children(recursive=True) if _runs_in(state, process)
    ] == []
    assert [path for path in state.rglob("*") if path.is_file() and path.suffix != ".log"] == []


def _runs_in(state: Path, process: psutil.Process) -> bool:
    """Other tests of this process may have an emulator of their own running."""
    try:
        return any(str(state) in value for value in (*process.environ().values(), *process.cmdline()))
    except psutil.NoSuchProcess:
        return False
