"""The client under gevent's monkey patch, as in gunicorn's worker: and nothing blocks the loop."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.ipc.fakes import FakeEngine

SCRIPT = """
from gevent import monkey
monkey.patch_all()
import sys, time
from pathlib import Path
import gevent
from serving.api.loop_reader import receive_in_loop
from serving.errors import GenerationFailed
from serving.ipc.arrivals import receive_in_thread
from serving.ipc.client import EngineClient
from serving.messages import AddRequest, RequestAccepted
from serving.sampling_params import SamplingParams

client = EngineClient(Path(sys.argv[1]), "front", receive=globals()[sys.argv[2]])
client.start()
client.wait_ready(10.0)
ticks = []

def tick():
    while True:
        gevent.sleep(0.01)
        ticks.append(time.monotonic())

ticker = gevent.spawn(tick)

def generate():
    params = SamplingParams(n=1)
    request = AddRequest(request_id=client.next_request_id(), prompt_token_ids=[1], params=params)
    with client.submit(request) as stream:
        assert isinstance(stream.get(10.0), RequestAccepted)
        try:
            stream.get(0.05)
        except TimeoutError:
            pass
        print("waiting", flush=True)
        try:
            stream.get(10.0)
        except GenerationFailed as error:
            return error.message

jobs = [gevent.spawn(generate) for _ in range(16)]
gevent.joinall(jobs, raise_error=True)
assert len(ticks) >= 4, ticks
assert client.healthy()[0] is False
client.close()
print("ended:", {job.value for job in jobs})
"""


@pytest.mark.parametrize("receive", ["receive_in_loop", "receive_in_thread"])
def test_greenlets(engine: FakeEngine, socket_path: Path, receive: str) -> None:
    root = Path(__file__).parents[3]
    front = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(socket_path), receive],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert front.stdout is not None
    for _ in range(16):
        assert front.stdout.readline() == "waiting\n"
    engine.stop()
    rest, _ = front.communicate(timeout=20.0)
    assert rest == "ended: {'the engine stopped unexpectedly'}\n"
    assert front.returncode == 0
