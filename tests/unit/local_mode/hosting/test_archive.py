"""Archives that are taken, and those that are refused with the member and the reason."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from local_mode.contracts import ContainerFailed
from local_mode.hosting import archive
from local_mode.hosting.archive import unpack

Fill = Callable[[tarfile.TarFile], None]


def member(name: str, content: bytes = b"x", **facts: object) -> Fill:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for fact, value in facts.items():
            setattr(info, fact, value)
        tar.addfile(info, io.BytesIO(content) if info.isreg() else None)

    return add


def packed(tmp_path: Path, *fills: Fill, form: int = tarfile.PAX_FORMAT) -> Path:
    path = tmp_path / "model.tar.gz"
    with tarfile.open(path, "w:gz", format=form) as tar:
        for fill in fills:
            fill(tar)
    return path


def taken(tmp_path: Path, path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    unpack(path, folder, uri="s3://b/model.tar.gz", step=lambda: None)
    return folder


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_plain_files_and_folders_are_unpacked(tmp_path: Path, form: int) -> None:
    folder = taken(
        tmp_path,
        packed(
            tmp_path,
            member(".", b"", type=tarfile.DIRTYPE),
            member("./code", b"", type=tarfile.DIRTYPE),
            member("./code", b"", type=tarfile.DIRTYPE),
            member("./code/inference.py", b"print()"),
            member("deep/er/" + "n" * 90, bytes(512)),
            member("empty", b""),
            form=form,
        ),
    )
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {"code/inference.py": b"print()", "deep/er/" + "n" * 90: bytes(512), "empty": b""}


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (member("../../etc/passwd"), "'../../etc/passwd' leaves its folder (path traversal)"),
        (member("a/../../b"), "leaves its folder"),
        (member("/etc/passwd"), "'/etc/passwd' has an absolute path"),
        (member("l", type=tarfile.SYMTYPE, linkname="/etc"), "'l' is a symbolic link to '/etc'"),
        (member("l", type=tarfile.LNKTYPE, linkname="ok"), "is a hard link to 'ok'"),
        (member("null", type=tarfile.CHRTYPE), "'null' is neither a plain file nor a folder"),
        (member("disk", type=tarfile.BLKTYPE), "is neither a plain file nor a folder"),
        (member("pipe", type=tarfile.FIFOTYPE), "is neither a plain file nor a folder"),
        (member("./ok"), "'./ok' is there twice"),
        (member("ok/below"), "lies below 'ok', which is a file"),
        (member("folder", b""), "'folder' is there twice"),
        (member("n" * 256), "has a name over 255 bytes"),
        (member("/".join(["n" * 200] * 6)), "path over 1024"),
    ],
)
def test_what_could_do_harm_is_refused_by_name(tmp_path: Path, fill: Fill, said: str) -> None:
    path = packed(tmp_path, member("ok"), member("folder/in"), fill)
    with pytest.raises(ContainerFailed) as refused:
        taken(tmp_path, path)
    assert said in str(refused.value)
    assert str(refused.value).startswith("s3://b/model.tar.gz: member ")


def test_bombs_are_refused_before_they_are_written(tmp_path: Path) -> None:
    bomb = member("bomb", bytes(archive.ALWAYS_ALLOWED_BYTES * 2))
    with pytest.raises(ContainerFailed, match="member 'bomb' makes it unpack to over"):
        taken(tmp_path, packed(tmp_path, bomb))
    assert list((tmp_path / "model").iterdir()) == []


def test_a_bomb_in_a_header_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED_BYTES", 1000)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    fill = member("small", b"x", pax_headers={"comment": "c" * 1_000_000})
    with pytest.raises(ContainerFailed, match="headers"):
        taken(tmp_path, packed(tmp_path, fill))


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(ContainerFailed, match="member 'f3' is one of more than 3 members"):
        taken(tmp_path, packed(tmp_path, *(member(f"f{number}") for number in range(9))))


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ContainerFailed, match="'f' does not fit"):
        taken(tmp_path, packed(tmp_path, member("f")))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_archives_are_refused(tmp_path: Path, part: float) -> None:
    whole = packed(tmp_path, *(member(f"f{number}", bytes(range(256)) * 40) for number in range(40)))
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ContainerFailed, match="truncated|no whole tar"):
        taken(tmp_path, whole)


def test_an_archive_cut_before_it_was_compressed_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, *(member(f"f{number}", bytes(range(256)) * 40) for number in range(4)))
    plain = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(plain[:15_000]))
    with pytest.raises(ContainerFailed, match="no whole tar|damaged"):
        taken(tmp_path, path)


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = packed(tmp_path, member("one", bytes(600)), member("two", bytes(600)), form=tarfile.USTAR_FORMAT)
    plain = bytearray(gzip.decompress(path.read_bytes()))
    plain[1536 + 10] ^= 0xFF  # the second header: 512 of header and 1024 of content before it
    path.write_bytes(gzip.compress(bytes(plain)))
    with pytest.raises(ContainerFailed, match="damaged after 1 members"):
        taken(tmp_path, path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ContainerFailed, match="truncated or damaged: Not a gzipped file"):
        taken(tmp_path, path)
