"""Finds data files: looks in the user's folders and the cache, downloads what is missing, and verifies all of it.

A file is only ever used if its content is that of the original. Where copies of one original go round in different
bytes (a spreadsheet saved again, other line ends), its *content* is compared instead of the bytes.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch

from ..checks import reason, shown

DataDir = str | Path | None  # a folder named by the caller, or none


class DataFileError(ValueError):
    """A data file cannot be used; the message says, in one sentence, which file, why, and what to do."""


class DataFileNotFound(DataFileError, FileNotFoundError):
    """A data file or folder is in none of the places searched, nor can it be downloaded."""


@dataclass(frozen=True)
class DataFile:
    """One file of a data set: where it belongs, how it is recognised, and where it comes from.

    Args:
        path: place inside a data folder, e.g. "uci/Concrete_Data.xls".
        sha256: accepted hashes of the bytes; may be empty if `fingerprint` is given.
        source: for a person, where to get the file; may be left out if `url` is given.
        url: where to download it from; None if that needs a login.
        member: name of the file inside the zip archive at `url`; None if `url` is the file itself.
        fingerprint: `fingerprint(path) -> str`, identifies the content whatever the bytes; asked if no hash agrees.
        content: the fingerprint of the original.
        max_bytes: a larger file is not read, a larger member not unpacked.
        others: files that hold the same data in another form, each taken where those before it are not found.
    """

    path: str
    sha256: tuple[str, ...] = ()
    source: str = ""
    url: str | None = None
    member: str | None = None
    fingerprint: Callable[[Path], str] | None = None
    content: str | None = None
    max_bytes: int = 100_000_000
    others: tuple[DataFile, ...] = ()

    @property
    def origin(self) -> str:
        """Where a person gets the file."""
        return self.source or (f"{self.member} inside {self.url}" if self.member else str(self.url))


def find(file: DataFile, data_dir: DataDir = None) -> Path:
    """Path of a verified file: from `data_dir`, $FIMODA_DATA or the cache, else downloaded into the cache.

    Raises:
        DataFileError: the file found, or downloaded, is not the original.
        DataFileNotFound: it is nowhere and cannot be downloaded, or a folder named by the user does not exist.
    """
    form, path = _locate(file, data_dir)
    if path is None:
        return download(file, data_dir)
    verify(form, path)
    return path


def find_local(file: DataFile, data_dir: DataDir = None) -> Path | None:
    """Path of the first copy found without a network, not verified; None if there is none."""
    return _locate(file, data_dir)[1]


def _locate(file: DataFile, data_dir: DataDir) -> tuple[DataFile, Path | None]:
    """The first form of a file that is found without a network, and where."""
    for form in (file, *file.others):
        for place in places(data_dir).values():
            if (place / form.path).is_file():
                return form, place / form.path
    return file, None


def places(data_dir: DataDir = None) -> dict[str, Path]:
    """The folders searched, in order, by the name a user knows them by."""
    named = {"data_dir": data_dir, "FIMODA_DATA": os.environ.get("FIMODA_DATA") or None}
    found = {name: check_folder(name, folder) for name, folder in named.items() if folder is not None}
    cache = os.environ.get("FIMODA_CACHE") or pooch.os_cache("fimoda")
    return found | {"the cache": Path(cache).expanduser()}


def check_folder(name: str, folder: str | Path) -> Path:
    """The folder as a path; refused if it does not exist, because it then is most likely misspelt."""
    try:
        path = Path(folder).expanduser()
    except (TypeError, RuntimeError) as error:  # no path at all, or the home of a user who does not exist
        raise DataFileNotFound(
            f"{name}: got {shown(folder)}, expected the path of a folder ({reason(error)})."
        ) from None
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing"
        raise DataFileNotFound(
            f"{name}: expected a folder with data files at {str(folder)!r}, got {got}; correct the name or create it."
        )
    return path


def verify(file: DataFile, path: Path) -> None:
    """Raises DataFileError unless the file at `path` has the original's bytes or, failing that, its content."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataFileError(f"{path} is empty (0 bytes); replace it by the original, from {file.origin}.")
        if size > file.max_bytes:
            raise DataFileError(
                f"{path} has {size} bytes, expected at most {file.max_bytes}; replace it by the original, from "
                f"{file.origin}."
            )
        sha256 = pooch.file_hash(str(path), alg="sha256")
    except OSError as error:
        raise DataFileError(f"{path} cannot be read ({reason(error)}); make it readable or replace it.") from error
    if sha256 in file.sha256:
        return
    got, expected = f"SHA-256 {sha256}", " or ".join(file.sha256)
    if file.fingerprint is not None:
        content = file.fingerprint(path)
        if content == file.content:
            return
        got, expected = content, file.content
    raise DataFileError(
        f"{path} ({size} bytes) is cut off, changed or another file: got {got}, expected {expected}; "
        f"replace it by the original, from {file.origin}."
    )


def download(file: DataFile, data_dir: DataDir = None) -> Path:
    """Downloads a file into the cache, which it reaches only complete and verified; returns its path there."""
    searched = places(data_dir)
    place = next(iter(searched.values())) / file.path  # where the user may put it: the folder asked for first
    names = " or ".join(form.path for form in (file, *file.others))
    nowhere = f"{names} is not in " + " or ".join(f"{name} ({folder})" for name, folder in searched.items())
    if file.url is None:
        raise DataFileNotFound(
            f"{nowhere}, and downloading it needs a login; get it from {file.source} and put it at {place}."
        )
    target = searched["the cache"] / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own beside the target: the final move is atomic, and parallel downloads do not meet.
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            print(f"Downloading {file.path} from {file.url}", file=sys.stderr)
            pooch.get_logger().setLevel(logging.WARNING)  # its advice on hashes is meant for developers
            # No hash for pooch: that of a zip archive says nothing about its member, which `verify` checks below.
            got = Path(pooch.retrieve(file.url, known_hash=None, fname="download", path=scratch, progressbar=True))
            if file.member is not None:
                got = unzip(got, file.member, Path(scratch) / "member", max_bytes=file.max_bytes)
            verify(file, got)
            os.replace(got, target)
    except DataFileError as error:
        message = str(error).replace(scratch, "…")  # a folder that is gone by now
        raise DataFileError(f"The download of {file.path} from {file.url} was refused: {message}") from error
    except (OSError, ValueError) as error:  # every error of `requests` is an OSError
        raise DataFileNotFound(
            f"{nowhere}, and its download failed ({reason(error)}); get {file.origin} and put it at {place}."
        ) from error
    return target


def unzip(archive: Path, member: str, target: Path, *, max_bytes: int) -> Path:
    """Unpacks one member of a zip archive to `target`; nothing is ever written under a name taken from the archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
            unsafe = [name for name in names if _leads_outside(name)]
            if unsafe:
                raise DataFileError(f"{archive} holds {unsafe[0]!r}, a path leading outside; do not use this archive.")
            if member not in names:
                raise DataFileError(f"{archive} holds no {member!r}, only {names[:5]}; get the archive again.")
            with opened.open(member) as source, target.open("wb") as sink:
                while chunk := source.read(1 << 20):
                    # Counted while unpacking, because the size that an archive states need not be true.
                    if sink.tell() + len(chunk) > max_bytes:
                        raise DataFileError(
                            f"{archive}: {member!r} unpacks to more than the {max_bytes} bytes expected at most; "
                            "do not use this archive."
                        )
                    sink.write(chunk)
    except DataFileError:
        raise
    except Exception as error:  # a damaged archive is answered with errors of a dozen types
        raise DataFileError(f"{archive} is not a complete zip archive ({reason(error)}); get it again.") from error
    return target


def _leads_outside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts
