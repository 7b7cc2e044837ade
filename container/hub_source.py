"""A Hugging Face Hub id -> a local snapshot of one commit. The only caller of huggingface_hub."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from container.model_source import IGNORED_FILE_PATTERNS, MODEL_FILE_PATTERNS, ModelFiles
from container.progress import Progress, Report, require_space
from serving.errors import ModelError

_PAUSES_S = (1.0, 2.0, 4.0)  # between attempts
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_THREADS = 4

_Result = TypeVar("_Result")
# The root of the errors of whatever HTTP client this version of huggingface_hub is built on.
_NETWORK_ERRORS: tuple[type[Exception], ...] = (OSError, HfHubHTTPError.__bases__[0])


def fetch_hub(
    repo_id: str, *, revision: str | None, token: str | None, cache: Path | None, report: Report
) -> ModelFiles:
    """Download one revision: the commit is looked up once and every file is taken from it.

    `cache` None means huggingface_hub's own place (HF_HOME). Raises `ModelError` with the fix.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            return _cached(repo_id, revision, cache)
        return _download(repo_id, revision=revision, token=token, cache=cache, report=report)
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repo_id} is not complete in the local cache and HF_HUB_OFFLINE is set; "
            "unset it, or put the model's files into the model folder"
        ) from error
    except _NETWORK_ERRORS as error:
        raise ModelError(f"{repo_id}: {_explain(error, revision, has_token=token is not None)}") from error


def _cached(repo_id: str, revision: str | None, cache: Path | None) -> ModelFiles:
    folder = snapshot_download(
        repo_id,
        revision=revision,
        cache_dir=cache,
        local_files_only=True,
        allow_patterns=MODEL_FILE_PATTERNS,
        ignore_patterns=IGNORED_FILE_PATTERNS,
    )
    return _files(Path(folder), repo_id)


def _download(
    repo_id: str, *, revision: str | None, token: str | None, cache: Path | None, report: Report
) -> ModelFiles:
    api = HfApi(token=token or False)
    info = _retry(lambda: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=30))
    wanted = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if _matches(file.rfilename, MODEL_FILE_PATTERNS)
        and not _matches(file.rfilename, IGNORED_FILE_PATTERNS)
    }
    if "config.json" not in wanted or not any(name.endswith(".safetensors") for name in wanted):
        raise ModelError(
            f"{repo_id} at {info.sha} lacks config.json or *.safetensors; other formats are not loaded"
        )
    root = Path(cache or constants.HF_HUB_CACHE)
    root.mkdir(parents=True, exist_ok=True)
    known = {path.name for path in root.glob(f"models--{repo_id.replace('/', '--')}/blobs/*")}
    progress = Progress(report, total_bytes=sum(wanted.values()))
    if not known:
        require_space(root, sum(wanted.values()), what=repo_id)
    folder = Path(
        _retry(
            lambda: snapshot_download(
                repo_id,
                revision=info.sha,
                cache_dir=cache,
                token=token or False,
                allow_patterns=MODEL_FILE_PATTERNS,
                ignore_patterns=IGNORED_FILE_PATTERNS,
                tqdm_class=_bar_class(progress),
            )
        )
    )
    for name, size_bytes in wanted.items():
        if (folder / name).stat().st_size != size_bytes:
            raise ModelError(
                f"{repo_id}: {name} arrived with the wrong size, not {size_bytes} bytes; start again"
            )
    _verify([folder / name for name in wanted], known, repo_id)
    return _files(folder, repo_id)


def _files(folder: Path, repo_id: str) -> ModelFiles:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{repo_id}: the cached copy in {folder} has no config.json; download it again")
    return ModelFiles(model_dir=str(folder), revision=folder.name)


def _verify(paths: list[Path], known: set[str], repo_id: str) -> None:
    """Large files are stored under their SHA-256: hash what was not there before this download."""
    blobs = {path.resolve() for path in paths}
    fresh = [blob for blob in blobs if _SHA256.fullmatch(blob.name) and blob.name not in known]
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        for blob, digest in zip(fresh, pool.map(_sha256, fresh), strict=True):
            if digest != blob.name:
                blob.unlink()
                raise ModelError(
                    f"{repo_id}: a file arrived with SHA-256 {digest} instead of {blob.name}; start again"
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _retry(call: Callable[[], _Result]) -> _Result:
    """Try again after network faults, 429 and 5xx; what a second try cannot change is raised at once."""
    for pause_s in _PAUSES_S:
        try:
            return call()
        except _NETWORK_ERRORS as error:
            if not _worth_another_try(error):
                raise
        time.sleep(pause_s)
    return call()


def _worth_another_try(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return False
    status = _status(error)
    return status is None or status == 429 or status >= 500


def _status(error: BaseException) -> int | None:
    """The HTTP status behind `error` or its cause, None for a network fault."""
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return int(error.response.status_code)
    return _status(error.__cause__) if error.__cause__ is not None else None


def _explain(error: Exception, revision: str | None, *, has_token: bool) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or constants.HF_HUB_CACHE}); set HF_HOME to a larger disk"
    if isinstance(error, RevisionNotFoundError):
        return f"revision {revision} does not exist; set HF_MODEL_REVISION to a branch, tag or commit"
    if isinstance(error, GatedRepoError):
        fix = "with the account of HF_TOKEN" if has_token else "and set HF_TOKEN"
        return f"the model is gated; accept its terms {fix}"
    status = _status(error)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        fix = "and that HF_TOKEN may read it" if has_token else "and set HF_TOKEN if it is private"
        return f"the Hub shows us no such model ({status}); check the name, {fix}"
    if status is not None:
        return f"the Hub answered {status} after {len(_PAUSES_S) + 1} attempts; try later or use S3"
    return f"the Hub cannot be reached ({type(error).__name__}); without internet use S3 or the model folder"


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _bar_class(progress: Progress) -> type[Any]:
    """huggingface_hub reports through progress bars; this one counts bytes and draws nothing."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # One bar counts bytes on disk; others count files, or the same bytes on the wire.
            self._counts = kwargs.get("unit") == "B" and "incomplete total" in str(kwargs.get("desc"))
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                progress.add(n)
            return None

    return Bar
