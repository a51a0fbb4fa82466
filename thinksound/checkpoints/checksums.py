"""SHA-256 of weight files: recorded at download or first strict load, checked at every later load.

``checksums.json`` in the weights folder holds the hash, size and times of each file. A file whose size and
times match its record counts as unchanged; otherwise it is hashed again. A different hash is an error until
the user accepts it with ``thinksound weights verify --accept``. The bundled ``tiny/`` has its own committed
``checksums.json``, which is checked on every load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_type_hints

from ..errors import WeightsError
from ..json_files import read_object
from ..progress import Progress
from .locate import present_files
from .registry import bundled_dir, restore_advice

logger = logging.getLogger(__name__)

TABLE = "checksums.json"
BUNDLED = "tiny"


@dataclass(frozen=True)
class Record:
    """What is known of one file."""

    sha256: str
    size: int
    mtime_ns: int
    ctime_ns: int
    finite: bool = False  # every tensor was checked for NaN and infinity


@dataclass(frozen=True)
class Verified:
    """One row of `verify`."""

    path: Path
    size: int
    sha256: str
    status: Literal["ok", "recorded", "changed", "accepted"]


def file_sha256(path: Path, report: Callable[[int, int], None] | None = None) -> str:
    """Returns the hash of a file; calls ``report(bytes done, bytes in all)`` after each 4 MiB."""
    digest, done = hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
                done += len(piece)
                if report is not None:
                    report(done, total)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def check(weights_dir: Path, path: Path) -> None:
    """Raises `WeightsError` if ``path`` differs from its record; a file without a record passes."""
    root = _bundled_root(weights_dir, path)
    if root is not None:
        if file_sha256(path) != _bundled_table(root).get(path.relative_to(root).as_posix()):
            raise WeightsError(f"{path}: not the file that comes with this project; {restore_advice(path)}")
        return
    table = _read_table(weights_dir)
    record = table.get(_name(weights_dir, path))
    if record is None or _unchanged(record, path):
        return
    sha256 = file_sha256(path)
    if sha256 != record.sha256:
        raise WeightsError(
            f"{path}: changed since first use (was sha256 {record.sha256[:16]}…, is {sha256[:16]}…); if you "
            "replaced it on purpose run `thinksound weights verify --accept`, else delete it and download "
            "it again"
        )
    record_sha256(weights_dir, path, sha256, record.finite)  # the same bytes under new times


def are_finite(weights_dir: Path, paths: Iterable[Path]) -> bool:
    """Whether `record` noted that all values are finite in ``paths``, which `check` has just passed."""
    known = _read_table(weights_dir)
    return all(
        _bundled_root(weights_dir, path) is None
        and (record := known.get(_name(weights_dir, path))) is not None
        and record.finite
        for path in paths
    )


def record(weights_dir: Path, paths: Iterable[Path]) -> None:
    """Record the hashes of files that have just loaded, and that all their values are finite."""
    known = _read_table(weights_dir)
    for path in paths:
        if _bundled_root(weights_dir, path) is not None:
            continue
        before = known.get(_name(weights_dir, path))
        if before is not None and not before.finite and _unchanged(before, path):
            record_sha256(weights_dir, path, before.sha256, finite=True)
        elif before is None:
            if not os.access(weights_dir, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                # A hash that cannot be recorded would cost a minute at every start.
                logger.info("%s is read-only: checksums are not recorded", weights_dir)
                return
            logger.info("%s: hashed once, so that a change is noticed", path)
            record_sha256(weights_dir, path, file_sha256(path), finite=True)


def record_sha256(weights_dir: Path, path: Path, sha256: str, finite: bool = False) -> None:
    """Record a hash that was just computed from ``path``, replacing any record; ``finite`` as in `Record`."""
    stat = path.stat()
    table = _read_table(weights_dir)
    table[_name(weights_dir, path)] = Record(sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, finite)
    try:
        _write_json(weights_dir / TABLE, {name: asdict(table[name]) for name in sorted(table)})
    except OSError as error:
        logger.info("%s: checksum not recorded (%s)", path, error.strerror)


def recorded_sha256(weights_dir: Path, path: Path) -> str | None:
    """Returns the recorded hash of ``path``, or None; raises like `check` if the file has changed."""
    check(weights_dir, path)
    known = _read_table(weights_dir).get(_name(weights_dir, path))
    return known.sha256 if known is not None else None


def verify(weights_dir: Path, accept: bool = False, progress: Progress | None = None) -> list[Verified]:
    """Hash every weight file in the folder and compare; with ``accept``, record the hashes of changed files.

    Only weights that are complete are hashed. A file without a record gets one. A changed bundled file cannot
    be accepted: its record is committed.
    """
    rows = []
    for path in present_files(weights_dir):
        sha256 = file_sha256(path, partial(progress, _label(weights_dir, path)) if progress else None)
        root = _bundled_root(weights_dir, path)
        if root is not None:
            expected = _bundled_table(root).get(path.relative_to(root).as_posix())
        else:
            known = _read_table(weights_dir).get(_name(weights_dir, path))
            expected = known.sha256 if known is not None else None
            finite = known is not None and known.finite and known.sha256 == sha256
        status: Literal["ok", "recorded", "changed", "accepted"]
        if sha256 == expected:
            status = "ok"
        elif root is not None or (expected is not None and not accept):
            status = "changed"
        else:
            status = "recorded" if expected is None else "accepted"
        if root is None and status != "changed":
            record_sha256(weights_dir, path, sha256, finite)
        rows.append(Verified(path, path.stat().st_size, sha256, status))
    return rows


def seal(folder: Path) -> None:
    """Write the ``checksums.json`` of bundled files; called by the script that makes them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != TABLE)
    _write_json(folder / TABLE, {path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def _name(weights_dir: Path, path: Path) -> str:
    return path.relative_to(weights_dir).as_posix()


def _label(weights_dir: Path, path: Path) -> str:
    return _name(weights_dir, path) if path.is_relative_to(weights_dir) else path.as_posix()


def _unchanged(record: Record, path: Path) -> bool:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) == (
        record.size,
        record.mtime_ns,
        record.ctime_ns,
    )


def _bundled_root(weights_dir: Path, path: Path) -> Path | None:
    for root in (weights_dir / BUNDLED, bundled_dir() / BUNDLED):
        if path.is_relative_to(root):
            return root
    return None


def _bundled_table(root: Path) -> dict[str, str]:
    try:
        table: dict[str, str] = read_object(root / TABLE)
        if not all(isinstance(sha256, str) for sha256 in table.values()):
            raise ValueError("holds something else than hashes")
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{root / TABLE}: cannot be read ({_reason(error)}); {restore_advice(root)}"
        ) from error
    return table


def _read_table(weights_dir: Path) -> dict[str, Record]:
    path = weights_dir / TABLE
    try:
        return {name: _record_of(fields) for name, fields in read_object(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({_reason(error)}); delete it, and the files are recorded anew at their "
            "next use"
        ) from error


def _record_of(fields: object) -> Record:
    types = get_type_hints(Record)
    if not isinstance(fields, dict) or not {"sha256", "size", "mtime_ns", "ctime_ns"} <= set(fields) <= set(
        types
    ):
        raise ValueError("holds something else than records of files")
    if any(type(value) is not types[name] for name, value in fields.items()):
        raise ValueError("holds a record of another shape")
    return Record(**fields)


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def _write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically, because another process may be reading it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
