"""The census data sets: does a person earn more than $50,000 a year? Folktables (ACSIncome), and Adult before it."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pandas as pd

from ..tasks import Task
from .fetch import DataDir, DataFile, DataFileError, find
from .preprocessing import classification_task
from .tables import (
    bad_cell,
    digest,
    read_csv,
    require_filled,
    require_rows_and_columns,
    require_values,
    to_numbers,
    unreadable,
)

TARGET, CLASSES = "income", ["<= $50,000", "> $50,000"]

# --- Folktables: ACSIncome, Massachusetts, 2018 (Ding et al. 2021) --------------------------------------------------

FOLKTABLES_CODES = ["COW", "SCHL", "MAR", "OCCP", "POBP", "RELP", "SEX", "RAC1P"]  # all but age and hours of work
FOLKTABLES_SELECTION = ["AGEP", "WKHP", "PINCP", "PWGTP"]  # what ACSIncome selects people by
FOLKTABLES_LAYOUT = ("2018", "1-Year", "psam_p25.csv")  # how the package arranges files in its folder
EXTRACT_NAME = "acs_income_ma_2018.csv"
FOLKTABLES_INPUTS = 791  # in the paper
# The package's features in its order, and the income in dollars or, in an extract, whether it is above $50,000.
FOLKTABLES_EXTRACT = ["AGEP", "COW", "SCHL", "MAR", "OCCP", "POBP", "RELP", "WKHP", "SEX", "RAC1P", "PINCP"]


def parse_folktables(path: Path) -> pd.DataFrame:
    """The people whom ACSIncome selects: its 10 features, as numbers and codes, and "income".

    The folktables package reads the file and selects; as in its own tables, a code that is missing becomes 0. An
    extract, which holds what the package has selected, is taken as it is.
    """
    if path.name == EXTRACT_NAME:
        return parse_extract(path)
    from folktables import ACSDataSource, ACSIncome

    if path.parts[-3:] != FOLKTABLES_LAYOUT:  # the package would look for it there, and read another file or none
        raise DataFileError(f"{path}: the folktables package expects a file at {'/'.join(FOLKTABLES_LAYOUT)}; move it.")
    columns = [*FOLKTABLES_CODES, *FOLKTABLES_SELECTION]
    require_rows_and_columns(read_csv(path, nrows=1), columns, path)  # the package's own errors would not name the file
    source = ACSDataSource(survey_year="2018", horizon="1-Year", survey="person", root_dir=str(path.parents[2]))
    state = random.getstate()  # the package seeds Python's global generator
    try:
        people = source.get_data(states=["MA"])
    except (OSError, ValueError) as error:
        raise unreadable(path, "a csv file", error) from error
    finally:
        random.setstate(state)
    people = to_numbers(people[columns], columns, path, empty_allowed=True)
    features, earns_more, _ = ACSIncome.df_to_pandas(people)
    require_rows_and_columns(features, [], path)
    return features.astype("int64").assign(**{TARGET: [CLASSES[int(more)] for more in earns_more["PINCP"]]})


def parse_extract(path: Path) -> pd.DataFrame:
    """An extract: the selected people in the package's order, its 10 features, and PINCP as True or False."""
    people = read_csv(path)
    require_rows_and_columns(people, FOLKTABLES_EXTRACT, path)
    if len(people.columns) > len(FOLKTABLES_EXTRACT):
        extra = next(column for column in people if column not in FOLKTABLES_EXTRACT)
        raise DataFileError(
            f"{path} has a column {extra!r}, expected {', '.join(FOLKTABLES_EXTRACT)} and no others; replace it by "
            "the original."
        )
    require_values(people, "PINCP", ["True", "False"], path)
    features = to_numbers(people[FOLKTABLES_EXTRACT[:-1]], FOLKTABLES_EXTRACT[:-1], path)
    for column, least in (("AGEP", 17), ("WKHP", 1)):
        if (features[column] < least).any():
            wrong = (features[column] < least).to_numpy()
            raise bad_cell(people, column, wrong, path, f"at least {least}, as ACSIncome selects")
    return features.astype("int64").assign(**{TARGET: people["PINCP"].map({"False": CLASSES[0], "True": CLASSES[1]})})


def count_folktables(path: Path) -> str:
    """How many people ACSIncome selects from a file: what identifies it, as no hash of it has been published."""
    people = read_csv(path, usecols=lambda column: column in FOLKTABLES_SELECTION, keep_default_na=True)
    require_rows_and_columns(people, FOLKTABLES_SELECTION, path)
    people = to_numbers(people, FOLKTABLES_SELECTION, path, empty_allowed=True)
    selected = (people["AGEP"] > 16) & (people["PINCP"] > 100) & (people["WKHP"] > 0) & (people["PWGTP"] >= 1)
    return f"{selected.sum()} people whom ACSIncome selects"


# Downloaded from where the package downloads, but not by the package: it passes over errors and has no time limit.
FOLKTABLES_FILE = DataFile(
    path="/".join(("folktables", *FOLKTABLES_LAYOUT)),
    url="https://www2.census.gov/programs-surveys/acs/data/pums/2018/1-Year/csv_pma.zip",
    member="psam_p25.csv",
    fingerprint=count_folktables,
    content="40114 people whom ACSIncome selects",  # 30085 + 10029 in the paper
    max_bytes=500_000_000,
    others=(
        DataFile(
            path=f"folktables/{EXTRACT_NAME}",
            sha256=("fc9dd43d29b5b84b066616cd8fc78d404b6de5ebccdb822da213bd382b96c243",),
            source="the folktables package (ACSIncome, MA, 2018, 1-Year), its 10 features and PINCP > 50000 as csv",
            fingerprint=lambda path: digest(parse_extract(path)),
            content="40114 rows and 11 columns with SHA-256 "
            "abb93b383827b9513a5b10e705a2293f1e291b007e1bcfd30dab8c6c5ada90ed",
        ),
    ),
)


def load_folktables(data_dir: DataDir = None) -> Task:
    """30085 training and 10029 test people; AGEP and WKHP standardised, the other features dummy coded."""
    table = parse_folktables(find(FOLKTABLES_FILE, data_dir))
    task = classification_task(table, TARGET, CLASSES, test_size=0.25, categorical=FOLKTABLES_CODES)
    n_inputs = task.train[0].shape[1]
    if n_inputs != FOLKTABLES_INPUTS:
        message = f"Folktables has {n_inputs} inputs after dummy coding, {FOLKTABLES_INPUTS} in the paper."
        warnings.warn(message, stacklevel=2)
    return task


# --- Adult: the 1994 census, ACSIncome's predecessor (Becker and Kohavi 1996) ---------------------------------------

ADULT_NUMERIC = ["age", "capital-gain", "capital-loss", "hours-per-week"]
ADULT_CODES = [
    "workclass", "education", "marital-status", "occupation", "relationship", "race", "sex", "native-country",
]  # fmt: skip
ADULT_COLUMNS = [
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
    "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", TARGET,
]  # fmt: skip
ADULT_ZIP = "https://archive.ics.uci.edu/static/public/2/adult.zip"
ADULT_FILES = tuple(
    DataFile(path=f"adult/{name}", sha256=(sha256,), url=ADULT_ZIP, member=name)
    for name, sha256 in {
        "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    }.items()
)


def parse_adult(*paths: Path) -> pd.DataFrame:
    """The people in the files, one file after the other: 4 numbers, 8 words and "income".

    People with an unknown value ("?") are dropped, as ACSIncome keeps complete records only; so are two columns:
    fnlwgt, a sampling weight and no property of the person, and education-num, which repeats education.
    """
    return pd.concat([_parse_adult(path) for path in paths], ignore_index=True)


def _parse_adult(path: Path) -> pd.DataFrame:
    table = read_csv(path, names=ADULT_COLUMNS, skipinitialspace=True, comment="|")  # adult.test starts with a remark
    require_rows_and_columns(table, ADULT_COLUMNS, path)
    require_filled(table, path)
    table[TARGET] = table[TARGET].str.rstrip(".")  # adult.test writes "<=50K."
    require_values(table, TARGET, ["<=50K", ">50K"], path)
    table = to_numbers(table, ADULT_NUMERIC, path)
    table[TARGET] = table[TARGET].map({"<=50K": CLASSES[0], ">50K": CLASSES[1]})
    known = ~table[ADULT_CODES].eq("?").any(axis="columns")
    return table.loc[known, [*ADULT_NUMERIC, *ADULT_CODES, TARGET]]


def load_adult(data_dir: DataDir = None) -> Task:
    """33916 training and 11306 test people, both files together and split anew, as the paper splits Folktables."""
    table = parse_adult(*(find(file, data_dir) for file in ADULT_FILES))
    return classification_task(table, TARGET, CLASSES, test_size=0.25, categorical=ADULT_CODES)
