"""As many output tokens per second as the engine gives: `python -m benchmarks.gpu.saturated SHAPE FOLDER RECORD`.

A thousand requests of some 128 prompt and 128 output tokens each, all at once, in process, for several limits of how many
run at the same time. Each repeat has prompts of its own.
"""

from __future__ import annotations

from benchmarks.gpu.engine import load, run_jobs
from benchmarks.gpu.measures import Record, timed
from benchmarks.gpu.models import SHAPES, write_random_model
from benchmarks.gpu.options import parse
from benchmarks.gpu.workloads import saturated


def main() -> None:
    options = parse(__doc__)
    record, workload = Record(options.record), options.workload
    timed(record, "write_model_s", lambda: write_random_model(SHAPES[options.shape], options.folder))
    for rows in workload.saturated_rows:
        name = f"saturated.{rows}"
        with timed(record, f"{name}.load_s", lambda: load(options, max_num_seqs=rows)) as llm:  # noqa: B023
            prompts, lengths = saturated(workload, seed=1)
            run_jobs(llm, (prompts[:rows], lengths[:rows]), record, name, keep=False)  # captures and compiles
            rates = [
                run_jobs(llm, saturated(workload, seed=2 + repeat), record, name)
                for repeat in range(workload.repeats)
            ]
        record.add_samples(f"{name}.tokens_per_s", rates)


if __name__ == "__main__":
    main()
