from __future__ import annotations

import subprocess
import sys
import time

import pytest

from serving.engine.start_clock import StartClock, seconds_since_exec


def test_phases_add_up_to_the_total() -> None:
    clock = StartClock()
    clock.mark("import")
    clock.mark("weights")
    fields = clock.fields()
    assert list(fields) == ["import_s", "weights_s", "total_s"]
    assert fields["total_s"] == pytest.approx(
        float(str(fields["import_s"])) + float(str(fields["weights_s"]))
    )


def test_a_clock_may_begin_with_the_process() -> None:
    code = (
        "import sys; from serving.engine.start_clock import StartClock\n"
        "clock = StartClock(since_exec=True); clock.mark('first'); print(clock.fields()['total_s'])"
    )
    began_s = time.monotonic()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.0 < float(printed) < time.monotonic() - began_s + 0.02, "the kernel counts hundredths"


def test_this_process_is_older_than_this_test() -> None:
    began_s = time.monotonic()
    assert seconds_since_exec() > time.monotonic() - began_s
