"""Damaged, foreign and malicious files: a named error or the right result, never a traceback or wrong numbers."""

import functools
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import zipfile

import counting
import numpy as np
import pooch
import pytest
import torch
import xarray as xr
from small_files import (
    BATCHES,
    adult_text,
    concrete_table,
    energy_table,
    fico_table,
    folktables_table,
    put,
    refusal,
    sentence,
)

from fimoda_lib.datasets import DATASETS, DataFileError, available, census, cifar10, fetch, load_task, tabular
from fimoda_lib.datasets.tables import LARGEST_SHEET, read_excel
from fimoda_lib.storage.store import StoreError, cached

REAL = os.environ.get("FIMODA_DATA") or None
SMALL = {
    "concrete": ("uci/Concrete_Data.xls", concrete_table),
    "energy": ("uci/ENB2012_data.xlsx", energy_table),
    "fico": ("heloc/heloc_dataset_v1.csv", fico_table),
    "folktables": ("folktables/2018/1-Year/psam_p25.csv", folktables_table),
    "adult": ("adult/adult.data", adult_text),
}
OF_REAL = [(name, file.path) for name in ("concrete", "energy", "fico", "adult") for file in DATASETS[name].files]


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.delenv("FIMODA_DATA", raising=False)
    monkeypatch.setenv("FIMODA_CACHE", str(tmp_path / "cache"))

    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(pooch, "retrieve", offline)


def mutations(content, chance, count):
    """Damaged versions of some bytes: cut off, bits flipped, pieces inserted, lost, repeated or blanked; and others."""
    found = [b"", content + b"\0", b"\xef\xbb\xbf" + content, content.decode("latin-1").encode("utf-16")]
    found += [pickle.dumps({"x": 1}), b"\x89HDF\r\n\x1a\n" + content, content[::-1]]
    for _ in range(count):
        place, length = chance.randrange(len(content)), chance.randrange(1, 200)
        before, after = content[:place], content[place:]
        found.append(before)
        found.append(before + bytes([after[0] ^ 1 << chance.randrange(8)]) + after[1:])
        found.append(before + chance.randbytes(length) + after)
        found.append(before + after[length:])
        found.append(before + after[:length] + after)
        found.append(before + bytes(length) + after[length:])
    return [damaged for damaged in found if damaged != content]


@functools.cache
def original(name):
    """The task of the real files."""
    return load_task(name, REAL)


def same(one, other):
    parts = zip((*one.train, *one.test), (*other.train, *other.test), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in parts)


@pytest.mark.parametrize(("name", "path"), OF_REAL, ids=[path for _, path in OF_REAL])
def test_damaged_copies_of_real_files_are_refused_or_say_the_same(name, path, tmp_path):
    if REAL is None or not available(name, REAL):
        pytest.skip(f"the files of {name!r} are not there: set FIMODA_DATA to a folder that holds them")
    good, folder = original(name), tmp_path / "data"
    for file in DATASETS[name].files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.join(REAL, file.path), folder / file.path)
    content = (folder / path).read_bytes()
    others = [(folder / other).read_bytes() for _, other in OF_REAL if (folder / other).exists() and other != path]
    bad = [*mutations(content, random.Random(path), 1 if name in ("energy", "fico") else 4), *others]
    if name == "fico":
        bad += [content.replace(b"\r\n", b"\n"), content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")]
    for damaged in bad:
        (folder / path).write_bytes(damaged)
        try:
            assert same(load_task(name, folder), good)  # the same content in other bytes
        except DataFileError as error:
            assert str(folder / path) in sentence(error)
        else:
            counting.bad_input()


@pytest.mark.filterwarnings("ignore")  # of readers, on what they make of damaged files
@pytest.mark.parametrize("name", SMALL)
def test_readers_of_unverified_files_end_in_a_sentence(name, tmp_path, monkeypatch):
    """The readers alone: verification, which would refuse nearly all of this, is switched off."""
    for module in (tabular, census):
        monkeypatch.setattr(module, "find", lambda file, data_dir: fetch.find_local(file, data_dir))
    path, make = SMALL[name]
    put(tmp_path / path, make())
    if name == "adult":
        put(tmp_path / "adult/adult.test", "|1x3 Cross validator\n" + adult_text(seed=5, dot="."))
    content = (tmp_path / path).read_bytes()
    accepted = 0
    for damaged in mutations(content, random.Random(name), 8):
        (tmp_path / path).write_bytes(damaged)
        try:
            task = load_task(name, tmp_path)
        except DataFileError as error:
            sentence(error)
        else:
            accepted += 1
            counting.bad_input()
            assert all(part.isfinite().all() for part in (*task.train, *task.test))
    assert accepted < 40  # of 55; the content of most is a table no longer


@pytest.mark.parametrize("name", SMALL)
def test_what_is_no_file_in_the_place_of_one(name, tmp_path):
    path = tmp_path / SMALL[name][0]
    path.mkdir(parents=True)
    for make in (
        None,
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("/no/such/file"),
        lambda: os.mkfifo(path),
    ):
        if make:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
            make()
        message = refusal(load_task, name, tmp_path, error=fetch.DataFileNotFound)
        assert str(path) in message and not available(name, tmp_path)
    path.unlink()


def test_a_file_far_too_large_is_refused_unread(tmp_path, monkeypatch):
    path = put(tmp_path / SMALL["fico"][0], "x")
    os.truncate(path, 2**40)  # sparse: takes no room
    monkeypatch.setattr(pooch, "file_hash", lambda *_, **__: pytest.fail("a terabyte was read"))
    assert "bytes, expected at most 100000000" in refusal(load_task, "fico", tmp_path)


def test_a_spreadsheet_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    path = put(tmp_path / "sheet.xlsx", energy_table())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/bomb.xml", "w") as member:
        for _ in range(LARGEST_SHEET // 2**20 + 1):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr("pandas.read_excel", lambda *_: pytest.fail("the spreadsheet was unpacked"))
    assert "more than 100000000" in refusal(read_excel, path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_archives_are_refused_or_unpack_to_the_same(method, tmp_path):
    good = bytes(range(256)) * 8
    with zipfile.ZipFile(tmp_path / "good.zip", "w", method) as archive:
        archive.writestr("member", good)
    arguments = (tmp_path / "a.zip", "member", tmp_path / "out")
    for damaged in mutations((tmp_path / "good.zip").read_bytes(), random.Random(method), 25):
        (tmp_path / "a.zip").write_bytes(damaged)
        try:
            fetch.unzip(*arguments, max_bytes=10_000)
        except DataFileError as error:
            assert "a.zip" in sentence(error)
        else:
            counting.bad_input()
            assert (tmp_path / "out").read_bytes() == good
    assert {p.name for p in tmp_path.iterdir()} <= {"good.zip", "a.zip", "out"}


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "a\\..\\..\\evil"])
def test_names_that_lead_outside_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("member", b"x")
        archive.writestr(name, b"x")
    message = refusal(fetch.unzip, tmp_path / "a.zip", "member", tmp_path / "out", max_bytes=100)
    assert "leading outside" in message and [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_pickle_of_images_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar10, "check_published", lambda *_: None)
    content = pickle.dumps({b"data": Trap(), b"labels": []})
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in BATCHES:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert "a.tar.gz" in refusal(cifar10.parse_cifar10, tmp_path / "a.tar.gz")
    assert not (tmp_path / "unpickled").exists()


# Results

SPEC = {"kind": "example"}


def result():
    return xr.Dataset({"x": ("k", np.arange(50.0))})


class Trap:
    """Unpickling it leaves a mark."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def never():
    pytest.fail("computed again, in the place of a file that is there")


@pytest.mark.parametrize("what", ["shard", "sidecar"])
def test_damaged_results_are_refused_and_kept(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached(tmp_path, "name", SPEC, result)
    (shard,) = tmp_path.glob("*.nc")
    path = shard if what == "shard" else shard.with_suffix(".json")
    content = path.read_bytes()
    deep = [b"[" * 200_000, b'{"specification": 5, "sha256": 5}'] if what == "sidecar" else []
    for damaged in [*mutations(content, random.Random(what), 25), pickle.dumps(Trap()), *deep]:
        path.write_bytes(damaged)
        try:
            found = cached(tmp_path, "name", SPEC, never)
        except StoreError as error:
            assert str(shard) in sentence(error, StoreError)
        else:  # a change in the sidecar that does not touch what is compared
            counting.bad_input()
            assert what == "sidecar"
            xr.testing.assert_identical(found, result())
        assert path.read_bytes() == damaged
    assert not (tmp_path / "unpickled").exists()


def test_a_foreign_file_with_a_fitting_sidecar_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached(tmp_path, "name", SPEC, result)
    (shard,) = tmp_path.glob("*.nc")
    sidecar = json.loads(shard.with_suffix(".json").read_text())
    for content in (pickle.dumps(Trap()), b"", b"CDF\1 of another kind", shard.read_bytes()[:500]):
        shard.write_bytes(content)
        sidecar["sha256"] = pooch.file_hash(str(shard))
        shard.with_suffix(".json").write_text(json.dumps(sidecar))
        assert "cannot be read" in refusal(cached, tmp_path, "name", SPEC, never, error=StoreError)
    assert not (tmp_path / "unpickled").exists()


def test_a_folder_in_the_place_of_a_result_or_its_sidecar_is_refused(tmp_path):
    cached(tmp_path, "name", SPEC, result)
    (shard,) = tmp_path.glob("*.nc")
    for path in (shard, shard.with_suffix(".json")):
        content = path.read_bytes()
        path.unlink()
        path.mkdir()
        assert "cannot be read" in refusal(cached, tmp_path, "name", SPEC, never, error=StoreError)
        path.rmdir()
        path.write_bytes(content)
    xr.testing.assert_identical(cached(tmp_path, "name", SPEC, never), result())
