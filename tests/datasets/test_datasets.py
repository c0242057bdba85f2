"""Data sets: sizes, splits, statistics from the training rows alone, and refusals of files that do not fit."""

import dataclasses
import functools
import os
import random

import numpy as np
import pandas as pd
import pooch
import pytest
import torch
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split
from small_files import (
    adult_text,
    concrete_table,
    energy_table,
    fico_table,
    folktables_extract,
    folktables_table,
    put,
    refusal,
)

from fimoda_lib.datasets import DATASETS, available, census, fetch, load_task, tabular

REAL = os.environ.get("FIMODA_DATA") or None
ELSEWHERE = ("sentences", "digit_images")  # see test_text.py, test_images.py
EMBEDDED = [name for name, dataset in DATASETS.items() if dataset.embedded and name not in ELSEWHERE]
FROM_FILES = ["concrete", "energy", "fico", "folktables", "adult"]
SIZES = {  # n_train, n_test, inputs, outputs
    "concrete": (927, 103, 8, 1),
    "energy": (691, 77, 8, 1),
    "fico": (8883, 988, 23, 2),
    "folktables": (30085, 10029, 791, 2),
    "adult": (33916, 11306, 102, 2),
    "diabetes": (353, 89, 10, 1),
    "wine": (142, 36, 12, 1),
    "breast_cancer": (455, 114, 30, 2),
    "digits": (1437, 360, 64, 10),
}


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty cache, no FIMODA_DATA, and no network."""
    monkeypatch.delenv("FIMODA_DATA", raising=False)
    monkeypatch.setenv("FIMODA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: pytest.fail("a test reached for the network"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with a small file of each kind, which the loaders take unverified."""
    folder = tmp_path / "data"
    put(folder / "uci/Concrete_Data.xls", concrete_table())
    put(folder / "uci/ENB2012_data.xlsx", energy_table())
    put(folder / "heloc/heloc_dataset_v1.csv", fico_table())
    put(folder / "folktables/2018/1-Year/psam_p25.csv", folktables_table())
    put(folder / "adult/adult.data", adult_text())
    put(folder / "adult/adult.test", "|1x3 Cross validator\n" + adult_text(seed=5, dot="."))
    for module in (tabular, census):
        monkeypatch.setattr(module, "find", lambda file, data_dir: fetch.find_local(file, data_dir))
    return folder


# --- tasks --------------------------------------------------------------------------------------------------------


def check_task(name, task):
    """What holds for every data set; the tables of the task serve as the independent record of the original values."""
    dataset = DATASETS[name]
    assert (task.name, task.title, task.stand_in_for, task.kind) == (
        name, dataset.title, dataset.stand_in_for, dataset.kind,
    )  # fmt: skip
    n_outputs = 1 if task.kind == "regression" else len(set(task.train[1].tolist()))
    for (inputs, targets), table in ((task.train, task.train_table), (task.test, task.test_table)):
        assert inputs.dtype == torch.float32 and inputs.isfinite().all()
        assert list(table.index) == list(range(len(inputs))) and not table.isna().any().any()
        assert targets.dtype == (torch.float32 if task.kind == "regression" else torch.int64)
        assert targets.shape == ((len(inputs), 1) if task.kind == "regression" else (len(inputs),))
        assert task.model(inputs[:5]).shape == (min(5, len(inputs)), n_outputs)
        assert task.loss(task.model(inputs), targets).shape == (len(inputs),)
    columns = [c for c in task.train_table.select_dtypes("number").columns if c != "digit"]
    if task.kind == "regression":
        target = {"concrete": "strength", "energy": "heating", "diabetes": "disease", "wine": "alcohol"}[name]
        (target,) = [column for column in columns if column.startswith(target)]
        columns = [c for c in columns if c != target] + [target]
        train, test = (torch.cat(part, dim=1) for part in (task.train, task.test))
    else:
        columns = [c for c in columns if not (name == "folktables" and c in census.FOLKTABLES_CODES)]
        train, test = task.train[0][:, : len(columns)], task.test[0][:, : len(columns)]
        assert set(task.train[0][:, len(columns) :].unique().tolist()) <= {0.0, 1.0}
    np.testing.assert_allclose(train.double().mean(0), 0, atol=1e-6)
    varies = train.std(0) > 0
    np.testing.assert_allclose(train.double()[:, varies].std(0, correction=0), 1, atol=1e-5)
    if name != "fico":  # whose values are imputed first
        mean, std = task.train_table[columns].mean(), task.train_table[columns].std(ddof=0)
        expected = (task.test_table[columns] - mean) / std.where(std > 1e-9, 1)
        np.testing.assert_allclose(test, expected, rtol=1e-4, atol=1e-5)


def test_registry_says_what_stands_in_for_what():
    assert set(SIZES) <= set(DATASETS)
    titles = {dataset.title for dataset in DATASETS.values() if dataset.stand_in_for is None}
    assert {d.stand_in_for for d in DATASETS.values()} - {None} <= titles
    assert DATASETS["adult"].stand_in_for == DATASETS["digits"].stand_in_for == "Folktables (ACSIncome, MA, 2018)"
    assert (DATASETS["diabetes"].stand_in_for, DATASETS["wine"].stand_in_for) == ("Concrete", "Energy")
    assert DATASETS["breast_cancer"].stand_in_for == "FICO HELOC"
    with pytest.raises(dataclasses.FrozenInstanceError):
        DATASETS["wine"].title = "other"


def test_unknown_name_lists_the_known_ones():
    for call in (load_task, available):
        message = refusal(call, "mnist", error=ValueError)
        assert "'mnist'" in message and all(name in message for name in DATASETS)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded(name):
    assert available(name)
    task = load_task(name)
    assert (task.n_train, task.n_test, task.train[0].shape[1], task.model[-1].out_features) == SIZES[name]
    check_task(name, task)
    again = load_task(name)
    assert torch.equal(task.train[0], again.train[0]) and torch.equal(task.model[0].weight, again.model[0].weight)


def test_embedded_targets_and_split_are_scikit_learns():
    X, y = sklearn_datasets.load_breast_cancer(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
    task = load_task("breast_cancer")
    np.testing.assert_array_equal(task.train_table.drop(columns="diagnosis"), X_train)
    np.testing.assert_array_equal(task.test_table.drop(columns="diagnosis"), X_test)
    assert task.train[1].tolist() == y_train.tolist() and task.test[1].tolist() == y_test.tolist()
    assert set(task.test_table["diagnosis"][task.test[1].numpy() == 0]) == {"malignant"}
    wine = load_task("wine")
    assert "alcohol" in wine.train_table and wine.train[0].shape[1] == len(wine.train_table.columns) - 1 == 12


def test_constant_column_does_not_give_nan():
    task = load_task("digits")  # some pixels are never inked
    constant = task.train_table.drop(columns="digit").std().to_numpy() == 0
    assert constant.any() and (task.train[0][:, constant] == 0).all()


@functools.cache
def original(name):
    """The task of the real files."""
    return load_task(name, REAL)


@pytest.mark.parametrize("name", ["concrete", "energy", "fico", "adult", "folktables"])
def test_real_data(name):
    if REAL is None or not available(name, REAL):
        pytest.skip(f"the files of {name!r} are not there: set FIMODA_DATA to a folder that holds them")
    task = original(name)
    assert (task.n_train, task.n_test, task.train[0].shape[1], task.model[-1].out_features) == SIZES[name]
    check_task(name, task)
    if name == "fico":
        assert task.n_train + task.n_test == 9871
        assert task.train[1].double().mean().item() == pytest.approx(0.4796, abs=5e-5)


@pytest.mark.filterwarnings("ignore:Folktables has")
@pytest.mark.parametrize("name", FROM_FILES)
def test_small_files(name, folder):
    task = load_task(name, folder)
    total = {"concrete": 40, "energy": 40, "fico": 60, "folktables": 80, "adult": 80}[name]
    share = 0.25 if name in ("folktables", "adult") else 0.1
    assert (task.n_train, task.n_test) == (total - round(total * share), round(total * share))
    check_task(name, task)


@pytest.mark.filterwarnings("ignore:Folktables has")
@pytest.mark.parametrize("name", FROM_FILES)
def test_statistics_come_from_the_training_rows_alone(name, folder):
    """Test rows rewritten: the training tensors stay. A training row rewritten: they change."""
    before = load_task(name, folder)
    path, column, read = {
        "concrete": ("uci/Concrete_Data.xls", concrete_table().columns[0], concrete_table),
        "energy": ("uci/ENB2012_data.xlsx", "X1", energy_table),
        "fico": ("heloc/heloc_dataset_v1.csv", tabular.FICO_DELINQUENCY, fico_table),
        "folktables": ("folktables/2018/1-Year/psam_p25.csv", "WKHP", folktables_table),
        "adult": ("adult/adult.data", 12, lambda: pd.read_csv(folder / "adult/adult.data", header=None)),
    }[name]
    table, n = read().reset_index(drop=True), before.n_train + before.n_test
    train_rows, test_rows = train_test_split(np.arange(n), test_size=before.n_test, random_state=0)
    for rows, same in ((test_rows, True), (train_rows[train_rows < 40][:1], False)):
        changed = table.copy()
        changed.loc[[row for row in rows if row < 40 or name != "adult"], column] = 99
        content = changed.to_csv(index=False, header=False) if name == "adult" else changed
        put(folder / path, content)
        after = load_task(name, folder)
        assert all(torch.equal(a, b) for a, b in zip(before.train, after.train, strict=True)) == same
        assert not torch.equal(before.test[0], after.test[0])  # moved themselves, or by the training statistics


def test_fico_imputation_rules():
    train = pd.DataFrame(1, index=range(4), columns=tabular.FICO_FEATURES)
    train[tabular.FICO_DELINQUENCY] = [10, 20, -7, -8]
    train[tabular.FICO_INQUIRY] = [3, 5, -7, -8]
    train["MaxDelq2PublicRecLast12M"] = [9, 8, 1, 0]
    train["ExternalRiskEstimate"] = [60, 80, -9, -8]
    test = train.iloc[[0, 2, 3]].copy()
    test.iloc[0, :] = 1000
    filled_train, filled_test = tabular.impute_fico(train, test)
    assert filled_train[tabular.FICO_DELINQUENCY].tolist() == [10, 20, 21, 15]
    assert filled_train[tabular.FICO_INQUIRY].tolist() == [3, 5, 0, 6]
    assert filled_train["MaxDelq2PublicRecLast12M"].tolist() == [7, 7, 1, 0]
    assert filled_train["ExternalRiskEstimate"].tolist() == [60, 80, 70, 70]
    assert filled_test[tabular.FICO_DELINQUENCY].tolist() == [1000, 21, 15]
    assert filled_test["MaxDelq2PublicRecLast12M"].tolist() == [7, 1, 0]
    assert train["ExternalRiskEstimate"].tolist() == [60, 80, -9, -8]  # the caller's table is as it was


def test_fico_drops_applicants_of_whom_nothing_is_known(tmp_path):
    table = fico_table(5)
    table.loc[[1, 3], tabular.FICO_FEATURES] = -9
    table.loc[4, tabular.FICO_FEATURES[1:]] = -9
    kept = tabular.parse_fico(put(tmp_path / "heloc.csv", table))
    pd.testing.assert_frame_equal(kept, table.iloc[[0, 2, 4]].reset_index(drop=True), check_dtype=False)


def test_energy_predicts_the_first_of_the_two_loads(folder):
    table, original = tabular.parse_energy(folder / "uci/ENB2012_data.xlsx"), energy_table().iloc[:40]
    np.testing.assert_array_equal(table["heating load (kWh/m2)"], original["Y1"])
    np.testing.assert_array_equal(table.iloc[:, :8], original.iloc[:, :8])
    assert table.shape == (40, 9)


def test_class_1_is_the_good_and_the_high_income(folder):
    for name, high in (("fico", "Good"), ("adult", "> $50,000")):
        task = load_task(name, folder)
        column = {"fico": "RiskPerformance", "adult": "income"}[name]
        assert task.train[1].tolist() == (task.train_table[column] == high).astype(int).tolist()


def test_adult_drops_the_unknown_and_reads_both_spellings_of_the_label(folder):
    path = folder / "adult/adult.data"
    whole = len(census.parse_adult(path))
    path.write_text(path.read_text().replace("State-gov", "?", 1))
    table = census.parse_adult(path, folder / "adult/adult.test")
    assert len(table) == whole - 1 + 40 and not table.eq("?").any().any()
    assert set(table["income"]) == {"<= $50,000", "> $50,000"} and not {"fnlwgt", "education-num"} & set(table)


def test_folktables_selection_codes_and_random_state(folder):
    path, table = folder / "folktables/2018/1-Year/psam_p25.csv", folktables_table()
    table.loc[0, "AGEP"], table.loc[1, "PINCP"], table.loc[2, "WKHP"] = 16, 100, pd.NA  # none of them is selected
    table.loc[3, "COW"] = pd.NA
    rare = 3 + train_test_split(np.arange(77), test_size=0.25, random_state=0)[1][0]
    table.loc[rare, "OCCP"] = 777  # met among the test rows only
    table["PINCP"] = table["PINCP"].where(table["PINCP"] != 50001, 50000)
    put(path, table)
    random.seed(5)
    state = random.getstate()
    with pytest.warns(UserWarning, match="791 in the paper"):
        task = load_task("folktables", folder)
    assert random.getstate() == state
    kept = table.iloc[3:].reset_index(drop=True)
    codes = kept[census.FOLKTABLES_CODES].fillna(0)
    assert task.n_train + task.n_test == 77 and task.train[0].shape[1] == 2 + codes.nunique().sum()
    assert (task.test_table["OCCP"] == 777).sum() == 1 and not (task.train_table["OCCP"] == 777).any()
    assert (task.train[0][:, 2:].sum(1) == 8).all() and (task.test[0][:, 2:].sum(1) == 8).all()
    assert task.train[1].tolist() == [int(income.startswith(">")) for income in task.train_table["income"]]
    assert (task.train[1].sum() + task.test[1].sum()).item() == (kept["PINCP"] > 50000).sum()
    known = dataclasses.replace(census.FOLKTABLES_FILE, content="77 people whom ACSIncome selects")
    assert fetch.find(known, folder) == path
    message = refusal(fetch.find, census.FOLKTABLES_FILE, folder)
    assert str(path) in message and "got 77 people" in message and "expected 40114" in message


# --- refusals of what a file holds; those of the file as such are in test_fetch.py ---------------------------------

CONCRETE, ENERGY, FICO = "uci/Concrete_Data.xls", "uci/ENB2012_data.xlsx", "heloc/heloc_dataset_v1.csv"
ACS, ADULT = "folktables/2018/1-Year/psam_p25.csv", "adult/adult.data"


def with_cell(table, row, column, value):
    changed = table.astype({table.columns[column]: object})
    changed.iloc[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("name", "path", "content", "fragments"),
    [
        ("concrete", CONCRETE, concrete_table().iloc[:, [0, *range(2, 9)]], ["no column 'Blast Furnace"]),
        ("concrete", CONCRETE, with_cell(concrete_table(), 4, 7, "old"), ["row 5", "'Age'", "'old'", "finite number"]),
        ("concrete", CONCRETE, with_cell(concrete_table(), 4, 8, None), ["row 5", "an empty cell"]),
        ("concrete", CONCRETE, concrete_table(0), ["no rows"]),
        ("concrete", CONCRETE, b"not a spreadsheet", ["cannot be read as an Excel file"]),
        ("energy", ENERGY, energy_table().drop(columns="Y2"), ["no column 'Y2'"]),
        ("energy", ENERGY, with_cell(energy_table(), 2, 0, "inf"), ["row 3", "'X1'", "got inf"]),
        ("fico", FICO, fico_table().drop(columns="MaxDelqEver"), ["no column 'MaxDelqEver'"]),
        ("fico", FICO, with_cell(fico_table(), 0, 0, "good"), ["row 1", "'RiskPerformance'", "'good'", "'Good' or"]),
        ("fico", FICO, with_cell(fico_table(), 6, 1, "NaN"), ["row 7", "'ExternalRiskEstimate'", "'NaN'"]),
        ("fico", FICO, with_cell(fico_table(), 6, 1, -7), ["row 7", "got", "-7", "[-9, -8]"]),
        ("fico", FICO, "", ["cannot be read as a csv file"]),
        ("fico", FICO, fico_table().to_csv(index=False)[:-30], ["row 60", "an empty cell"]),
        ("folktables", ACS, folktables_table().drop(columns="OCCP"), ["no column 'OCCP'"]),
        ("folktables", ACS, with_cell(folktables_table(), 8, 2, "young"), ["row 9", "'AGEP'", "'young'"]),
        ("folktables", ACS, folktables_table().assign(PINCP=5), ["no rows"]),
        ("adult", ADULT, adult_text()[:-30], ["row 40", "an empty cell"]),
        ("adult", ADULT, adult_text().replace("50K", "60K", 1), ["row 1 ", "'income'", "60K"]),
        ("adult", ADULT, "old" + adult_text(), ["row 1 ", "'age'", "'old"]),
        ("adult", ADULT, "", ["no rows"]),
    ],
)
def test_contents_that_do_not_fit_are_refused(name, path, content, fragments, folder):
    message = refusal(load_task, name, put(folder / path, content) and folder)
    assert str(folder / path) in message and "replace" in message
    assert all(fragment in message for fragment in fragments), message


def test_folktables_file_out_of_its_place_is_refused(tmp_path):
    message = refusal(census.parse_folktables, put(tmp_path / "psam_p25.csv", folktables_table()))
    assert str(tmp_path / "psam_p25.csv") in message and "2018/1-Year/psam_p25.csv; move it" in message


def put_extract(folder, **changes):
    return put(folder / "folktables" / census.EXTRACT_NAME, folktables_extract(folktables_table()).assign(**changes))


@pytest.mark.filterwarnings("ignore:Folktables has")
def test_the_extract_of_folktables_gives_the_same_task(folder, tmp_path):
    table = folktables_table()
    table.loc[3, "COW"] = pd.NA  # a missing code, which the package makes 0
    put(folder / ACS, table)
    raw = load_task("folktables", folder)
    put(tmp_path / "other/folktables" / census.EXTRACT_NAME, folktables_extract(table))
    extract = load_task("folktables", tmp_path / "other")
    for one, other in zip((*raw.train, *raw.test), (*extract.train, *extract.test), strict=True):
        assert torch.equal(one, other)
    pd.testing.assert_frame_equal(raw.train_table, extract.train_table)
    pd.testing.assert_frame_equal(raw.test_table, extract.test_table)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"YEAR": 2017}, ["a column 'YEAR'", "expected AGEP, COW"]),
        ({"PINCP": 60000}, ["row 1 ", "'PINCP'", "'True' or 'False'", "'60000'"]),
        ({"AGEP": 16}, ["row 1 ", "'AGEP'", "at least 17"]),
        ({"WKHP": "some"}, ["row 1 ", "'WKHP'", "'some'", "finite number"]),
    ],
)
def test_extracts_that_do_not_fit_are_refused(changes, fragments, tmp_path):
    path = put_extract(tmp_path, **changes)
    message = refusal(census.parse_folktables, path)
    assert str(path) in message and all(fragment in message for fragment in fragments), message


def test_an_extract_of_another_state_cut_off_or_with_other_columns_is_refused(tmp_path):
    """Before the task is made: what is found is not the 40,114 people of the paper."""
    path = put_extract(tmp_path)
    message = refusal(load_task, "folktables", tmp_path)
    assert str(path) in message and "got 80 rows and 11 columns" in message and "expected 40114 rows" in message
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refusal(load_task, "folktables", tmp_path)
    put(path, folktables_extract(folktables_table()).drop(columns="SEX"))
    assert "no column 'SEX'" in refusal(load_task, "folktables", tmp_path)


def test_the_original_extract_is_known_by_its_content_and_has_the_papers_numbers(tmp_path):
    extract = REAL and fetch.find_local(census.FOLKTABLES_FILE.others[0], REAL)
    if not extract:
        pytest.skip("the extract of Folktables is not there: set FIMODA_DATA to a folder that holds it")
    text = extract.read_bytes().replace(b"\r\n", b"\n")
    copy = put(tmp_path / "folktables" / census.EXTRACT_NAME, text.replace(b"\n", b"\r\n"))
    assert fetch.find(census.FOLKTABLES_FILE, tmp_path) == copy
    put(copy, text.replace(b",False", b",True", 1))
    assert "expected 40114 rows" in refusal(fetch.find, census.FOLKTABLES_FILE, tmp_path)
    task = original("folktables")
    assert [part[1].double().mean().item() for part in (task.train, task.test)] == pytest.approx(
        [0.4654479, 0.4774155], abs=5e-8
    )
    people = pd.concat([task.train_table, task.test_table])
    assert people[["AGEP", "WKHP"]].mean().tolist() == pytest.approx([43.196914, 37.450865], abs=5e-7)
    assert people[["AGEP", "WKHP"]].std().tolist() == pytest.approx([15.833747, 13.509709], abs=5e-7)


def test_real_files_saved_again_are_recognised_and_changed_ones_are_not(tmp_path):
    if REAL is None or not (available("energy", REAL) and available("fico", REAL)):
        pytest.skip("the files of 'energy' and 'fico' are not there: set FIMODA_DATA to a folder that holds them")
    table = pd.read_excel(fetch.find(tabular.ENERGY_FILE, REAL))
    assert fetch.find(tabular.ENERGY_FILE, put(tmp_path / ENERGY, table).parents[1])  # other bytes, same numbers
    swapped = table.iloc[[1, 0, *range(2, len(table))]]  # another order is another split
    for wrong in (swapped, with_cell(table, 5, 8, table.iloc[5, 8] + 0.001), table.iloc[:-1]):
        put(tmp_path / ENERGY, wrong)
        assert "expected 768 rows and 10 columns" in refusal(fetch.find, tabular.ENERGY_FILE, tmp_path)
    text = fetch.find(tabular.FICO_FILE, REAL).read_bytes().replace(b"\r\n", b"\n")
    for line_end in (b"\n", b"\r\n"):
        put(tmp_path / FICO, text.replace(b"\n", line_end))
        assert fetch.find(tabular.FICO_FILE, tmp_path)
    put(tmp_path / FICO, text.replace(b"Good", b"Bad", 1))
    assert "expected 10459 rows and 24 columns" in refusal(fetch.find, tabular.FICO_FILE, tmp_path)
