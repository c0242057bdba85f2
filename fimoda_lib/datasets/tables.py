"""Reads a data file into a table and checks it: the columns are there, and what should be a number is one."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ..checks import reason
from .fetch import DataFileError

LARGEST_SHEET = 100_000_000  # bytes of an Excel file when unpacked; those of the paper take two million at most


def read_csv(path: Path, **options) -> pd.DataFrame:
    """A csv file with every cell as text, just as written; `options` for pandas."""
    try:
        return pd.read_csv(path, **{"dtype": str, "keep_default_na": False, **options})
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise unreadable(path, "a csv file", error) from error


def read_excel(path: Path) -> pd.DataFrame:
    """The first sheet of an Excel file, without the rows in which every cell is empty."""
    try:
        if zipfile.is_zipfile(path):  # .xlsx: what a few kilobytes unpack to is known before they are
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST_SHEET:
                raise ValueError(f"it unpacks to {size} bytes, more than {LARGEST_SHEET}")
        with warnings.catch_warnings():
            # pandas means to replace the reader of .xls files some day; the one tested here is pinned.
            warnings.filterwarnings("ignore", message=".*xlrd engine is deprecated.*")
            sheet = pd.read_excel(path)
    except Exception as error:  # the two readers answer a damaged file with errors of a dozen types
        raise unreadable(path, "an Excel file", error) from error
    return sheet.dropna(how="all").reset_index(drop=True)


def unreadable(path: Path, kind: str, error: Exception) -> DataFileError:
    """The error that says why a reader gave up on a file."""
    return DataFileError(f"{path} cannot be read as {kind} ({reason(error)}); replace it by the original.")


def require_rows_and_columns(table: pd.DataFrame, columns: Iterable[str], path: Path) -> None:
    """Raises DataFileError if a column is missing, or there is no row at all."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataFileError(
            f"{path} has no column {missing[0]!r}, got the columns {list(table.columns)[:30]}; "
            "replace it by the original."
        )
    if table.empty:
        raise DataFileError(f"{path} has a header but no rows of data; replace it by the original.")


def to_numbers(table: pd.DataFrame, columns: Iterable[str], path: Path, *, empty_allowed: bool = False) -> pd.DataFrame:
    """The table with the given columns as numbers: int64 where all are whole, else float64.

    Raises:
        DataFileError: a cell is text, infinite or (unless allowed) empty.
    """
    numbers = table.copy()
    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce").astype("float64")
        wrong = ~np.isfinite(values.to_numpy())
        if empty_allowed:
            wrong &= table[column].notna().to_numpy()
        if wrong.any():
            raise bad_cell(table, column, wrong, path, "a finite number")
        whole = (values % 1 == 0) & (values.abs() < 2**53)  # beyond it float64 skips whole numbers
        numbers[column] = values.astype("int64") if whole.all() else values
    return numbers


def require_filled(table: pd.DataFrame, path: Path) -> None:
    """Raises DataFileError if any cell is empty; a row that is cut off has empty cells at its end."""
    for column in table:
        empty = (table[column].isna() | table[column].eq("")).to_numpy()
        if empty.any():
            raise bad_cell(table, column, empty, path, "a value")


def require_values(table: pd.DataFrame, column: str, allowed: Iterable[str], path: Path) -> None:
    """Raises DataFileError if a cell of the column is none of the allowed values."""
    allowed = list(allowed)
    wrong = ~table[column].isin(allowed).to_numpy()
    if wrong.any():
        raise bad_cell(table, column, wrong, path, " or ".join(map(repr, allowed)))


def bad_cell(table: pd.DataFrame, column: str, wrong: np.ndarray, path: Path, expected: str) -> DataFileError:
    """The error that names the first wrong cell; wrong [rows] marks them in `column`."""
    row = int(wrong.argmax())
    value = table[column].iloc[row]
    got = "an empty cell" if pd.isna(value) or value == "" else repr(value) if isinstance(value, str) else str(value)
    return DataFileError(
        f"{path}: row {row + 1} of the data, column {column!r}, expected {expected}, got {got} "
        f"({int(wrong.sum())} such cells in the column); replace the file by the original."
    )


def digest(table: pd.DataFrame) -> str:
    """SHA-256 of what a table says, row by row: the same for every way of storing the same numbers and words."""
    numeric = table.select_dtypes("number").columns
    # Four decimals: finer than any of these data are given in, coarser than a last bit lost in saving again.
    text = table.astype(dict.fromkeys(numeric, "float64")).to_csv(index=False, header=False, float_format="%.4f")
    rows, columns = table.shape
    return f"{rows} rows and {columns} columns with SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"
