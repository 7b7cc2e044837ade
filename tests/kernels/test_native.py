"""The compiled CPU kernels against their twins in plain torch, and what happens where they cannot be compiled."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from serving.attention.native import NativeCachePath
from serving.attention.registry import create_attention
from serving.attention.sdpa import SdpaAttention, decode_with_torch
from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache
from serving.kernels import reference
from serving.kernels.cpu.native import library, prebuilt
from serving.kernels.cpu.native.operations import NativeKernels
from serving.kernels.dispatch import select_kernels


@pytest.fixture(scope="module")
def native() -> NativeKernels:
    loaded = library.load()
    assert loaded is not None, "the suite needs a C compiler: the kernels would go untested"
    return NativeKernels(loaded)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 64, 127, 128, 200, 600])
@pytest.mark.parametrize(("size", "outputs"), [(8, 4), (24, 6), (33, 13), (512, 96), (130, 1)])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear(native: NativeKernels, rows: int, size: int, outputs: int, threads: int) -> None:
    x, weight, bias = torch.randn(rows, size), torch.randn(outputs, size), torch.randn(outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for given in (None, bias):
            expected = reference.linear(
                x.double(), weight.double(), None if given is None else given.double()
            )
            torch.testing.assert_close(
                native.linear(x, weight, given).double(), expected, atol=2e-4, rtol=1e-5
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [*range(1, 14), 16, 18, 24, 25, 97, 200])
@pytest.mark.parametrize(("size", "outputs"), [(8, 16), (33, 48), (512, 96), (130, 224)])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_with_a_packed_weight(
    native: NativeKernels, rows: int, size: int, outputs: int, threads: int
) -> None:
    x, weight, bias = torch.randn(rows, size), torch.randn(outputs, size), torch.randn(outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory = weight.clone()
        packed = native.pack(memory)
        assert packed.data_ptr() == memory.data_ptr()
        for given in (None, bias):
            expected = reference.linear(
                x.double(), weight.double(), None if given is None else given.double()
            )
            whole = native.linear(x, packed, given)
            torch.testing.assert_close(whole.double(), expected, atol=2e-4, rtol=1e-5)
            for start, stop in ((0, 1), (rows // 3, rows // 3 + 2), (rows // 2, rows)):
                part = native.linear(x[start:stop], packed, given)
                assert torch.equal(part, whole[start:stop]), "a row's bits depend on the other rows"
    finally:
        torch.set_num_threads(before)


def test_rows_of_a_packed_embedding(native: NativeKernels) -> None:
    weight, token_ids = torch.randn(48, 20), torch.tensor([47, 0, 16, 15, 15])
    assert torch.equal(native.embed(token_ids, native.pack(weight.clone())), weight[token_ids])


def test_what_makes_no_panels_stays_as_it_is(native: NativeKernels) -> None:
    for weight in (torch.randn(17, 8), torch.randn(16, 8).bfloat16(), torch.randn(8, 16).t()):
        before = weight.clone()
        assert native.pack(weight) is weight and torch.equal(weight, before)


def test_linear_takes_views_and_leaves_other_types_to_torch(native: NativeKernels) -> None:
    x, weight = torch.randn(24, 5).t(), torch.randn(6, 24)
    torch.testing.assert_close(native.linear(x, weight, None), reference.linear(x, weight, None))
    x, weight = x.bfloat16(), weight.bfloat16()
    torch.testing.assert_close(native.linear(x, weight, None), reference.linear(x, weight, None))


@pytest.mark.parametrize("shape", [(1, 8), (3, 13), (16, 512), (200, 512)])
def test_norms(native: NativeKernels, shape: tuple[int, int]) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    torch.testing.assert_close(native.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    sums = residual.clone(), residual.clone()
    results = native.add_rms_norm(x, sums[0], weight, 1e-5), reference.add_rms_norm(x, sums[1], weight, 1e-5)
    torch.testing.assert_close(*results)
    assert torch.equal(*sums)
    heads, weights = torch.randn(shape[0], 6, 16)[:, :4], torch.randn(4, 16)
    torch.testing.assert_close(
        native.rms_norm(heads, weights, 1e-6), reference.rms_norm(heads, weights, 1e-6)
    )


@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(1, 3, 8), (16, 12, 64), (300, 12, 32)])
def test_rotary(native: NativeKernels, tokens: int, heads: int, head_dim: int) -> None:
    x = torch.randn(tokens, heads + 2, head_dim)[:, :heads]
    table, positions = torch.randn(40, head_dim), torch.randint(40, (tokens,))
    torch.testing.assert_close(native.rotary(x, table, positions), reference.rotary(x, table, positions))


@pytest.mark.parametrize(("tokens", "inner"), [(1, 8), (5, 13), (16, 1408), (100, 512)])
def test_silu_mul(native: NativeKernels, tokens: int, inner: int) -> None:
    x = torch.randn(tokens, 2 * inner) * 20
    x[0, 0], x[0, 1 % inner] = 300.0, -300.0
    torch.testing.assert_close(native.silu_mul(x.clone()), reference.silu_mul(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("vocab", "words"), [(10, 1), (64, 2), (100, 4), (70, 2), (64, 4)])
def test_mask_tokens(native: NativeKernels, vocab: int, words: int) -> None:
    bits = torch.randint(-(2**31), 2**31, (3, words), dtype=torch.int32)
    bits[0] = -1
    bits[1, -1] = 0
    for rows in ([0, 1, 2], [1, 3, 4]):
        logits = torch.randn(5, vocab + 6)[:, :vocab]
        expected = logits.clone()
        reference.mask_tokens(expected, bits, rows)
        native.mask_tokens(logits, bits, rows)
        assert torch.equal(logits, expected)


def _metadata(seq_lens: list[int], query_lens: list[int], block_size: int) -> AttentionMetadata:
    """Rows on shuffled blocks; block 0 pads the tables."""
    counts = [-(-length // block_size) for length in seq_lens]
    order = (torch.randperm(sum(counts)) + 1).split(counts)
    tables = torch.zeros(len(seq_lens), max(counts), dtype=torch.int32)
    for row, blocks in enumerate(order):
        tables[row, : len(blocks)] = blocks.int()
    slots = [
        int(tables[row, position // block_size]) * block_size + position % block_size
        for row, (length, queries) in enumerate(zip(seq_lens, query_lens, strict=True))
        for position in range(length - queries, length)
    ]
    return AttentionMetadata(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.tensor(slots),
        query_lens_list=query_lens,
        seq_lens_list=seq_lens,
        block_size=block_size,
    )


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 8), (8, 2, 64), (16, 1, 32), (6, 3, 128)])
@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(
    ("seq_lens", "query_lens"),
    [([1], [1]), ([33], [1]), ([5, 70, 1, 32], [1, 1, 1, 1]), ([9, 40, 1, 64, 3], [1, 6, 1, 1, 3])],
)
def test_attention(
    native: NativeKernels, heads: int, kv_heads: int, head_dim: int, window: int | None, block_size: int,
    seq_lens: list[int], query_lens: list[int],
) -> None:  # fmt: skip
    """Whole forward passes: written cache and output equal those of the torch backend."""
    tokens = sum(query_lens)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim)
    query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
    metadata = _metadata(seq_lens, query_lens, block_size)
    num_blocks = int(metadata.block_tables.max()) + 1
    caches = []
    for _ in range(2):
        torch.manual_seed(1)
        shape = (num_blocks, block_size, kv_heads, head_dim)
        caches.append(KVLayerCache(key=torch.randn(shape), value=torch.randn(shape)))
    path = NativeCachePath(native)
    outputs = []
    for backend, cache in zip((SdpaAttention(path.write, path.decode), SdpaAttention()), caches, strict=True):
        metadata.scratch.clear()
        outputs.append(
            backend.forward(
                query, key, value, cache=cache, metadata=metadata, scale=head_dim**-0.5, window=window
            )
        )
    assert torch.equal(caches[0].key, caches[1].key) and torch.equal(caches[0].value, caches[1].value)
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-5)


def test_a_cache_it_does_not_cover_goes_to_torch(native: NativeKernels) -> None:
    path = NativeCachePath(native)
    metadata = _metadata([9], [1], 4)
    for dtype, head_dim in ((torch.bfloat16, 16), (torch.float32, 12)):
        query, key = torch.randn(1, 4, head_dim, dtype=dtype), torch.randn(1, 2, head_dim, dtype=dtype)
        caches = [
            KVLayerCache(*(torch.ones(8, 4, 2, head_dim, dtype=dtype) for _ in range(2))) for _ in range(2)
        ]
        path.write(key, key, caches[0], metadata.slot_mapping)
        write_kv(key, key, caches[1], metadata.slot_mapping)
        assert torch.equal(caches[0].key, caches[1].key)
        metadata.scratch.clear()
        ours = path.decode(query, caches[0], metadata, 0.25, None)
        metadata.scratch.clear()
        torch.testing.assert_close(ours, decode_with_torch(query, caches[1], metadata, 0.25, None))


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`library.load` as a new process sees it, with an empty folder for builds."""
    monkeypatch.setattr(library, "_PACKAGE", tmp_path / "package")
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    return tmp_path


def test_without_a_compiler_torch_takes_over_and_the_log_says_why(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prebuilt.shutil, "which", lambda name: None)
    with caplog.at_level("INFO"):
        assert library.load() is None
    assert "no C compiler" in caplog.records[-1].reason
    kernels = select_kernels(torch.device("cpu"), deterministic=False)
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    torch.testing.assert_close(kernels.linear(x, weight, None), reference.linear(x, weight, None))
    assert isinstance(create_attention("native", deterministic=False), SdpaAttention)


def test_a_compiler_that_fails_is_no_disaster(fresh_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt.shutil, "which", lambda name: "/bin/false")
    assert library.load() is None
    assert list((fresh_library / f"textgen-endpoint-{os.getuid()}").iterdir()) == []


def test_an_old_compiler_does_without_what_it_does_not_know(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, compiler = fresh_library / "cc", prebuilt.find_compiler()
    complaint = "cc1: error: invalid --param name ‘avoid-fma-max-bits’"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *avoid-fma*) echo \'{complaint}\' >&2; exit 1;; esac\nexec {compiler} "$@"\n'
    )
    old.chmod(0o700)
    monkeypatch.setattr(prebuilt.shutil, "which", lambda name: str(old))
    assert library.load() is not None


def test_builds_once_in_a_private_folder(fresh_library: Path) -> None:
    assert library.load() is not None
    folder = fresh_library / f"textgen-endpoint-{os.getuid()}"
    (build,) = folder.iterdir()
    made = build.stat().st_mtime_ns
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert library.load() is not None
    assert build.stat().st_mtime_ns == made


@pytest.mark.parametrize("shared", [None, "package", "package/__pycache__"])
def test_builds_lie_with_compiled_modules_unless_others_can_write_there(
    fresh_library: Path, shared: str | None
) -> None:
    (fresh_library / "package" / "__pycache__").mkdir(parents=True)
    if shared is not None:
        (fresh_library / shared).chmod(0o775)
    assert library.load() is not None
    beside = list((fresh_library / "package" / "__pycache__").glob("kernels-*.so"))
    elsewhere = list(fresh_library.glob(f"textgen-endpoint-{os.getuid()}/kernels-*.so"))
    assert (len(beside), len(elsewhere)) == ((1, 0) if shared is None else (0, 1))


def test_a_folder_that_others_can_write_is_not_trusted(fresh_library: Path) -> None:
    (fresh_library / f"textgen-endpoint-{os.getuid()}").mkdir(mode=0o777)
    (fresh_library / f"textgen-endpoint-{os.getuid()}").chmod(0o777)
    assert library.load() is None


def test_without_a_compiler_the_build_of_the_installation_is_loaded(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fresh_library / "prebuilt"
    folder.mkdir()
    for family in prebuilt.FAMILIES:
        if family.machine == os.uname().machine:
            prebuilt.compile_into(
                folder / family.file_name, compiler=prebuilt.find_compiler(), march=family.option
            )
    found = prebuilt.find(folder)
    monkeypatch.setattr(prebuilt, "find", lambda: found)
    monkeypatch.setattr(prebuilt.shutil, "which", lambda name: None)
    with caplog.at_level("INFO"):
        loaded = library.load()
    assert loaded is not None
    assert found.name in caplog.records[-1].reason and "no C compiler" in caplog.records[-1].reason
    x, weight = torch.randn(3, 64), torch.randn(5, 64)
    torch.testing.assert_close(
        NativeKernels(loaded).linear(x, weight, None), reference.linear(x, weight, None)
    )


def test_builds_for_old_and_new_processors_give_the_same_bits(native: NativeKernels, tmp_path: Path) -> None:
    """Their vectors and tiles differ in size; the sum of an output does not. A build that this processor cannot run is left
    to machines that can."""
    flags = prebuilt._flags(Path("/proc/cpuinfo").read_text())
    families = [f for f in prebuilt.FAMILIES if f.machine == os.uname().machine and f.needs <= flags]
    assert families
    weights = {shape: torch.randn(shape) for shape in ((48, 33), (112, 130), (512, 64))}
    inputs = {(rows, size): torch.randn(rows, size) for rows in (*range(1, 30), 97) for _, size in weights}
    bias = torch.randn(512)
    packed = {shape: native.pack(weight.clone()) for shape, weight in weights.items()}
    for family in families:
        built = tmp_path / family.file_name
        prebuilt.compile_into(built, compiler=prebuilt.find_compiler(), march=family.option)
        other = NativeKernels(library.open_library(built))
        for (outputs, size), weight in packed.items():
            for (rows, width), x in inputs.items():
                if width == size:
                    expected = native.linear(x, weight, bias[:outputs])
                    assert torch.equal(other.linear(x, weight, bias[:outputs]), expected), (
                        family,
                        outputs,
                        rows,
                    )


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "name"),
    [
        ("x86_64", "flags\t\t: fpu avx2 bmi1 bmi2 f16c fma movbe", "kernels-x86-64-v3.so"),
        (
            "x86_64",
            "flags\t\t: avx2 bmi1 bmi2 f16c fma movbe avx512f avx512bw avx512cd avx512dq avx512vl",
            "kernels-x86-64-v4.so",
        ),
        ("aarch64", "Features\t: fp asimd evtstrm", "kernels-armv8-a.so"),
        ("x86_64", "flags\t\t: fpu sse2 avx", None),
        ("riscv64", "isa\t: rv64imafdc", None),
    ],
)
def test_the_best_build_for_a_processor(tmp_path: Path, machine: str, cpuinfo: str, name: str | None) -> None:
    for family in prebuilt.FAMILIES:
        (tmp_path / family.file_name).touch()
    if name is None:
        with pytest.raises(prebuilt.Unavailable, match="no build for this processor"):
            prebuilt.find(tmp_path, cpuinfo=cpuinfo, machine=machine)
    else:
        assert prebuilt.find(tmp_path, cpuinfo=cpuinfo, machine=machine).name == name
