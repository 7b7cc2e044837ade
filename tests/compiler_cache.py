"""A `cc` that remembers: what it has compiled before, from the same text with the same options, is copied.

Containers, wheels and images each build the C kernels in a temporary folder of their own; without this every one of them
costs the suite seconds. Knows the compiler's command line, nothing of the kernels.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

KEPT_S = 14 * 24 * 3600.0

# The key is all that the object depends on, but for where the source lies. Whatever is no plain compilation of one
# file goes to the compiler as it is.
_SCRIPT = """#!/bin/sh
compiler={compiler}
store={store}
source= target= options= compile= before=
for word in "$@"; do
  if [ "$before" = -o ]; then target=$word; before=; continue; fi
  case $word in
    -o) before=-o ;;
    -c) compile=yes ;;
    *.c) source=$source$word ;;
    *) options="$options $word" ;;
  esac
done
if [ -z "$compile" ] || [ -z "$target" ] || [ ! -f "$source" ]; then exec "$compiler" "$@"; fi
key=$({{
  "$compiler" --version; uname -m; grep -m 1 -E '^(flags|Features)' /proc/cpuinfo; echo "$options"
  cat "$source" "$(dirname "$source")"/*.h
}} 2>/dev/null | sha256sum | cut -c 1-40)
if [ ! -f "$store/$key.o" ]; then
  "$compiler" "$@" || exit
  cp "$target" "$store/$key.$$" && mv "$store/$key.$$" "$store/$key.o"
  exit
fi
exec cp "$store/$key.o" "$target"
"""


def install() -> None:
    """Puts the remembering `cc` first in this process's PATH, which those it starts inherit. Harmless when repeated,
    and where there is no compiler."""
    folder = Path(tempfile.gettempdir()) / f"textgen-endpoint-tests-{os.getuid()}"
    found = os.environ.get("PATH", os.defpath).split(os.pathsep)
    search = os.pathsep.join(part for part in found if part != str(folder))
    compiler = shutil.which("cc", path=search)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    trusted = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    if compiler is None or not trusted:
        return
    for old in folder.glob("*.o"):
        if old.stat().st_mtime < time.time() - KEPT_S:
            old.unlink(missing_ok=True)
    _write_once(folder / "cc", _SCRIPT.format(compiler=compiler, store=folder))
    os.environ["PATH"] = f"{folder}{os.pathsep}{search}"


def _write_once(path: Path, content: str) -> None:
    """Builds are named after their compiler's time of change, so a right script stays untouched."""
    if path.is_file() and path.read_text() == content:
        return
    new = path.with_name(f"cc.{os.getpid()}")
    new.write_text(content)
    new.chmod(0o700)
    new.replace(path)
