"""Where the data are: a folder, the Kaggle zip, data/ in the current folder, or the demo."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from cxr_mlflow.data.layout import class_folders, find_root
from cxr_mlflow.data.storage import build_folder, with_bar
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import DEMO_MARKER

DATA_DIR_VARIABLE = "CXR_DATA_DIR"


def resolve_data_dir(value: str, cache_dir: Path, *, progress: bool = False) -> tuple[Path, bool]:
    """Find the data set that `--data-dir` names.

    Parameters
    ----------
    value : str
        A folder, a zip file, "demo", or "auto": $CXR_DATA_DIR if it is set, else the one data set
        in data/ of the current folder, else the demo.
    cache_dir : Path
        Where zips are unpacked, once, and the demo is drawn, once.
    progress : bool
        Show a bar while a zip is unpacked.

    Returns
    -------
    root : Path
        Folder that holds the class folders.
    is_demo : bool
        Whether these are the synthetic demo data.

    Raises
    ------
    InputError
        If nothing is there, or several data sets are and none was named.
    """
    said_by = "--data-dir"
    if value == "auto":
        if told := os.environ.get(DATA_DIR_VARIABLE, "").strip():
            value, said_by = told, f"${DATA_DIR_VARIABLE}"
        elif found := _data_here():
            return found, is_demo(found)
        else:
            value = "demo"
    if value == "demo":
        return _demo(cache_dir), True
    path = Path(value).expanduser()
    if path.is_file():
        path = _unpacked(path, cache_dir, progress)
    elif not path.is_dir():
        raise InputError(
            f"{said_by}={value}: no such folder or zip file (`cxr data download` fetches the data, "
            f"--data-dir demo needs none)"
        )
    root = find_root(path)
    try:
        str(root.absolute()).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(root.absolute())
        raise InputError(
            f"{said_by}: the folder's own path is not UTF-8 text ({shown!r}), and tables and "
            "MLflow hold text only; rename the folder, or link to it by another name"
        ) from error
    return root, is_demo(root)


def is_demo(root: Path) -> bool:
    """Whether a data set root was written by `demo.write_demo`."""
    return (root / DEMO_MARKER).is_file()


def _data_here() -> Path | None:
    """Return the one data set in data/, data/*/ or data/*/*/ of the current folder."""
    data = Path("data").absolute()
    candidates = [data, *data.glob("*/"), *data.glob("*/*/")]
    roots = sorted(p for p in candidates if p.is_dir() and len(class_folders(p)) > 1)
    if len(roots) > 1:
        names = ", ".join(str(root.relative_to(data.parent)) for root in roots)
        raise InputError(f"several data sets lie here ({names}); say which with --data-dir")
    return roots[0] if roots else None


def _demo(cache_dir: Path) -> Path:
    from cxr_mlflow.data.demo import DEMO_VERSION, write_demo

    return build_folder(cache_dir / f"demo-{DEMO_VERSION}", write_demo)


def _unpacked(path: Path, cache_dir: Path, progress: bool) -> Path:
    """Unpack a zip once; the folder's name says which file it came from."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: neither a folder nor a zip file; name the data with --data-dir")
    told = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {told.st_size} {told.st_mtime_ns}".encode())
    folder = cache_dir / "unpacked" / f"{path.stem}-{key.hexdigest()[:16]}"
    return build_folder(folder, lambda target: _unpack(path, target, progress))


def _unpack(path: Path, target: Path, progress: bool) -> None:
    target.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _check_member(path, member)
            needed, free = sum(m.file_size for m in members), shutil.disk_usage(target).free
            if needed > free:
                raise InputError(
                    f"{path}: needs {needed / 1e9:.1f} GB unpacked and {target.parent} has "
                    f"{free / 1e9:.1f}; free some space, or name another disk with --cache-dir"
                )
            for member in with_bar(members, f"Unpacking {path.name}", len(members), show=progress):
                archive.extract(member, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{path}: the zip is damaged ({error}); download it again") from error
    if hasattr(os, "sync"):
        os.sync()  # once for all, before the folder gets its name


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse names that point out of the folder, links, and encrypted files."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0] or is_link:
        raise InputError(f"{path}: refused, its member {member.filename!r} points elsewhere")
    if member.flag_bits & 1:
        raise InputError(f"{path}: the zip is encrypted; unpack it and name the folder instead")
