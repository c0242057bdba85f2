"""Small data files in the formats of the originals, and how tests ask for a refusal."""

import io
import pickle
import re
import tarfile

import counting
import numpy as np
import pandas as pd
import pytest

from fimoda_lib.datasets import DataFileError, census, cifar10, tabular


def refusal(call, *arguments, error=DataFileError, **options):
    """The message that a call is refused with; it has to be one sentence."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return sentence(caught.value, error)


def sentence(caught, error=DataFileError):
    """The message of what a call was refused with."""
    counting.bad_input()
    assert type(caught) is error
    message = str(caught)
    assert message.endswith(".") and "\n" not in message and not re.search(r"[.!?]\s+[A-Z]", message), message
    return message


def put(path, content):
    """Writes text, bytes or a table (as an Excel file for any name but *.csv)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".csv":
        content.to_csv(path, index=False)
    else:
        content.to_excel(path.with_suffix(".xlsx"), index=False)
        path.with_suffix(".xlsx").replace(path)
    return path


def concrete_table(rows=40):
    """Concrete with its odd headings."""
    values = np.random.default_rng(0).uniform(1, 500, (rows, 9)).round(2)
    return pd.DataFrame(values, columns=[f"{name}  (component)(kg in a m^3)" for name in tabular.CONCRETE_COLUMNS])


def energy_table(rows=40):
    """Energy, with the empty rows and the empty column that surround the original."""
    table = pd.DataFrame(
        np.random.default_rng(1).uniform(1, 9, (rows, 10)).round(2), columns=list(tabular.ENERGY_COLUMNS)
    )
    table["empty"] = np.nan
    return pd.concat([table, pd.DataFrame(np.nan, index=range(3), columns=table.columns)])


def fico_table(rows=60):
    """HELOC with codes for missing values."""
    generator = np.random.default_rng(2)
    table = pd.DataFrame(generator.integers(0, 10, (rows, 23)), columns=tabular.FICO_FEATURES)
    for column in tabular.FICO_FEATURES:
        table.loc[generator.random(rows) < 0.1, column] = -8
    for column in (tabular.FICO_DELINQUENCY, tabular.FICO_INQUIRY):
        table.loc[generator.random(rows) < 0.2, column] = -7
    table.insert(0, "RiskPerformance", generator.choice(["Good", "Bad"], rows))
    return table


def folktables_table(rows=80):
    """A census file in which everyone is selected by ACSIncome."""
    generator = np.random.default_rng(3)
    table = pd.DataFrame({"SERIALNO": [f"2018GQ{k:07d}" for k in range(rows)], "PWGTP": 1})
    for column, (low, high) in {"AGEP": (17, 90), "WKHP": (1, 60), "PINCP": (101, 99999)}.items():
        table[column] = generator.integers(low, high, rows)
    for column in census.FOLKTABLES_CODES:
        table[column] = generator.integers(1, 5, rows)
    return table.astype({column: "Int64" for column in table.columns if column != "SERIALNO"})


def folktables_extract(table):
    """What the folktables package makes of a census file (all of whose people it selects), as an extract holds it."""
    extract = table[[*census.FOLKTABLES_EXTRACT]].fillna(0).astype("float64")
    return extract.assign(PINCP=table["PINCP"] > 50000)


def adult_text(rows=40, seed=4, dot=""):
    """Adult; `dot` as adult.test has it behind the label."""
    generator = np.random.default_rng(seed)
    jobs, incomes = generator.choice(["Private", "State-gov"], rows), generator.choice(["<=50K", ">50K"], rows)
    ages, hours = generator.integers(17, 90, rows), generator.integers(1, 60, rows)
    middle = "77516, Bachelors, 13, Divorced, Sales, Husband, White, Male, 0, 0"
    return "".join(
        f"{ages[k]}, {jobs[k]}, {middle}, {hours[k]}, United-States, {incomes[k]}{dot}\n" for k in range(rows)
    )


BATCHES = [f"cifar-10-batches-py/{name}" for name in cifar10.VERSIONS["cifar-10-batches-py"]]


def batch(n, seed, **changes):
    random = np.random.default_rng(seed)
    content = {b"data": random.integers(0, 256, (n, 3072), dtype=np.uint8), b"labels": [k % 10 for k in range(n)]}
    return content | changes


def records(content):
    """The same images as the binary version holds them."""
    labels = np.array(content[b"labels"], dtype=np.uint8)
    return np.concatenate([labels[:, None], content[b"data"]], axis=1).tobytes()


def members(version="py", n=20):
    """Name and content of the batches of a small CIFAR-10 in its python or binary ("bin") version."""
    batches = {name: batch(n, k) for k, name in enumerate(cifar10.VERSIONS["cifar-10-batches-py"])}
    if version == "bin":
        return {f"cifar-10-batches-bin/{name}.bin": records(content) for name, content in batches.items()}
    return {f"cifar-10-batches-py/{name}": pickle.dumps(content, protocol=2) for name, content in batches.items()}


def archive(path, batches=None, *, extra=(), version="py"):
    """An archive as CIFAR-10 comes in, with small batches."""
    batches = members(version) | (batches or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as opened:
        for name, content in [*extra, *batches.items()]:
            data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return path
