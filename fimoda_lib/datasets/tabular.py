"""The paper's tabular data sets other than the census data: Concrete, Energy and FICO HELOC.

For each: `parse_...` reads a file, whichever it is given, into a readable table and checks every cell; `load_...` finds
the file, which verifies it, parses it, and makes the task with the paper's split and preprocessing.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..tasks import Task
from .fetch import DataDir, DataFile, find
from .preprocessing import classification_task, regression_task
from .tables import bad_cell, digest, read_csv, read_excel, require_rows_and_columns, require_values, to_numbers

UCI = "https://archive.ics.uci.edu/static/public"

# --- Concrete: compressive strength of concrete from its mixture and age (Yeh 1998) ---------------------------------

CONCRETE_COLUMNS = {  # what a heading in the file starts with -> our name
    "Cement": "cement (kg/m3)",
    "Blast Furnace Slag": "blast furnace slag (kg/m3)",
    "Fly Ash": "fly ash (kg/m3)",
    "Water": "water (kg/m3)",
    "Superplasticizer": "superplasticizer (kg/m3)",
    "Coarse Aggregate": "coarse aggregate (kg/m3)",
    "Fine Aggregate": "fine aggregate (kg/m3)",
    "Age": "age (days)",
    "Concrete compressive strength": "strength (MPa)",
}
CONCRETE_FILE = DataFile(
    path="uci/Concrete_Data.xls",
    sha256=("1ecf19eb1c78cf20599f6ef90dd41af6ff99b496095bd9903483c1fec418f522",),
    url=f"{UCI}/165/concrete+compressive+strength.zip",
    member="Concrete_Data.xls",
)


def parse_concrete(path: Path) -> pd.DataFrame:
    """1030 mixtures: 8 features and "strength (MPa)"."""
    sheet = read_excel(path)
    # The headings in the file spell units and blanks in several ways; what stands before the bracket is regular.
    sheet.columns = [str(column).split("(")[0].strip() for column in sheet.columns]
    require_rows_and_columns(sheet, CONCRETE_COLUMNS, path)
    return to_numbers(sheet[list(CONCRETE_COLUMNS)], CONCRETE_COLUMNS, path).rename(columns=CONCRETE_COLUMNS)


def load_concrete(data_dir: DataDir = None) -> Task:
    """927 training and 103 test mixtures, 8 inputs."""
    return regression_task(parse_concrete(find(CONCRETE_FILE, data_dir)), "strength (MPa)", test_size=0.1)


# --- Energy: heating load of simulated buildings (Tsanas and Xifara 2012) -------------------------------------------

ENERGY_COLUMNS = {
    "X1": "relative compactness",
    "X2": "surface area (m2)",
    "X3": "wall area (m2)",
    "X4": "roof area (m2)",
    "X5": "overall height (m)",
    "X6": "orientation",
    "X7": "glazing area",
    "X8": "glazing area distribution",
    "Y1": "heating load (kWh/m2)",
    "Y2": "cooling load (kWh/m2)",
}


def read_energy(path: Path) -> pd.DataFrame:
    """All 10 columns of the file, 768 buildings; the empty rows and columns beside them are gone."""
    sheet = read_excel(path)
    require_rows_and_columns(sheet, ENERGY_COLUMNS, path)
    return to_numbers(sheet[list(ENERGY_COLUMNS)], ENERGY_COLUMNS, path)


# Mirrors hold this spreadsheet as saved again by another program: other bytes, the same 768 x 10 numbers. The hash is
# that of such a copy; any other copy passes if all its numbers agree, in order, because the split goes by row number.
ENERGY_FILE = DataFile(
    path="uci/ENB2012_data.xlsx",
    sha256=("ce80fba0fdf4be0e2f2e709fd01ff9c807246947fe666e18710d5105af7970b6",),
    url=f"{UCI}/242/energy+efficiency.zip",
    member="ENB2012_data.xlsx",
    fingerprint=lambda path: digest(read_energy(path)),
    content="768 rows and 10 columns with SHA-256 bff4ab11de21251633f2a0e624602b36ba867865947459679f193609ffac5fdc",
)


def parse_energy(path: Path) -> pd.DataFrame:
    """768 buildings: 8 features and "heating load (kWh/m2)"; the cooling load is dropped, as in the paper."""
    return read_energy(path).drop(columns="Y2").rename(columns=ENERGY_COLUMNS)


def load_energy(data_dir: DataDir = None) -> Task:
    """691 training and 77 test buildings, 8 inputs."""
    return regression_task(parse_energy(find(ENERGY_FILE, data_dir)), "heating load (kWh/m2)", test_size=0.1)


# --- FICO HELOC: did an applicant for a home equity line of credit repay? -------------------------------------------

# The codes: -9 no record, -8 no usable trade or inquiry, -7 the event has never happened.
FICO_DELINQUENCY, FICO_INQUIRY = "MSinceMostRecentDelq", "MSinceMostRecentInqexcl7days"
FICO_SCALE = "MaxDelq2PublicRecLast12M"
FICO_FEATURES = [
    "ExternalRiskEstimate", "MSinceOldestTradeOpen", "MSinceMostRecentTradeOpen", "AverageMInFile",
    "NumSatisfactoryTrades", "NumTrades60Ever2DerogPubRec", "NumTrades90Ever2DerogPubRec", "PercentTradesNeverDelq",
    "MSinceMostRecentDelq", "MaxDelq2PublicRecLast12M", "MaxDelqEver", "NumTotalTrades", "NumTradesOpeninLast12M",
    "PercentInstallTrades", "MSinceMostRecentInqexcl7days", "NumInqLast6M", "NumInqLast6Mexcl7days",
    "NetFractionRevolvingBurden", "NetFractionInstallBurden", "NumRevolvingTradesWBalance",
    "NumInstallTradesWBalance", "NumBank2NatlTradesWHighUtilization", "PercentTradesWBalance",
]  # fmt: skip


def read_fico(path: Path) -> pd.DataFrame:
    """All 10459 applicants: "RiskPerformance" (Good or Bad) and 23 whole numbers, the codes for missing among them."""
    table = read_csv(path)
    require_rows_and_columns(table, ["RiskPerformance", *FICO_FEATURES], path)
    require_values(table, "RiskPerformance", ["Good", "Bad"], path)
    table = to_numbers(table[["RiskPerformance", *FICO_FEATURES]], FICO_FEATURES, path)
    for column in FICO_FEATURES:
        codes = [-9, -8, -7] if column in (FICO_DELINQUENCY, FICO_INQUIRY) else [-9, -8]
        wrong = ((table[column] < 0) & ~table[column].isin(codes)).to_numpy()
        if wrong.any():
            raise bad_cell(table, column, wrong, path, f"a number from 0 on or a code in {codes}")
    return table


# People get this file by hand, from places that may have stored it with other line ends: the content decides.
FICO_FILE = DataFile(
    path="heloc/heloc_dataset_v1.csv",
    sha256=("f66d77f4e4e27c11205ba6258008f5e071f1f09724f4893e9ff2840a4e99f259",),
    source="https://community.fico.com/s/explainable-machine-learning-challenge or "
    "https://www.kaggle.com/datasets/averkiyoliabev/home-equity-line-of-creditheloc",
    fingerprint=lambda path: digest(read_fico(path)),
    content="10459 rows and 24 columns with SHA-256 93334d73341d42036c8551414ab701a2a89b4063778e6bd09e25cfc9009a8366",
)


def parse_fico(path: Path) -> pd.DataFrame:
    """The 9871 applicants of whom anything is known: those with every feature missing are dropped."""
    table = read_fico(path)
    return table[~table[FICO_FEATURES].le(-9).all(axis="columns")].reset_index(drop=True)


def impute_fico(train: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fills in the codes by the paper's rules, with means and maxima over the valid values of the *training* rows."""
    train, test = train.astype("float64"), test.astype("float64")
    for part in (train, test):
        part[FICO_SCALE] = part[FICO_SCALE].clip(upper=7)  # 8 and 9 mean "other" on a scale that ends at 7
    for column in train.columns:
        valid = train[column][train[column] >= 0]
        values = {-9: valid.mean(), -8: valid.mean()}
        if column == FICO_DELINQUENCY:
            values[-7] = valid.max() + 1  # never: longer ago than anyone's
        if column == FICO_INQUIRY:
            values |= {-8: valid.max() + 1, -7: 0}
        train[column], test[column] = train[column].replace(values), test[column].replace(values)
    return train, test


def load_fico(data_dir: DataDir = None) -> Task:
    """8883 training and 988 test applicants, 23 inputs; class 1 is Good."""
    table = parse_fico(find(FICO_FILE, data_dir))
    return classification_task(table, "RiskPerformance", ["Bad", "Good"], test_size=0.1, impute=impute_fico)
