"""Data files: searched for in order, verified, downloaded and unpacked safely, and refused by name if wrong."""

import dataclasses
import functools
import hashlib
import http.server
import threading
import zipfile

import pooch
import pytest
import requests
from small_files import put, refusal

from fimoda_lib.datasets import DATASETS, DataFileNotFound, available, fetch, load_task, tabular
from fimoda_lib.datasets.fetch import DataFile

GOOD = b"the original"
PATH = "folder/file.txt"
FILE = DataFile(PATH, sha256=(hashlib.sha256(GOOD).hexdigest(),), url="http://127.0.0.1:9/file.zip", member="file.txt")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """data_dir, FIMODA_DATA and the cache as three empty folders; nothing beyond this machine can be reached."""
    real_retrieve = pooch.retrieve

    def local_only(url, **options):
        if not url.startswith("http://127.0.0.1:"):
            raise requests.ConnectionError("Name or service not known")
        return real_retrieve(url, **options)

    folders = [tmp_path / name for name in ("given", "env", "cache")]
    for folder in folders[:2]:
        folder.mkdir()
    monkeypatch.setenv("FIMODA_DATA", str(folders[1]))
    monkeypatch.setenv("FIMODA_CACHE", str(folders[2]))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "retrieve", local_only)
    return folders


@pytest.fixture
def site(tmp_path):
    """A folder and the address under which it is served on this machine."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- where a file is looked for -----------------------------------------------------------------------------------


def test_data_dir_beats_environment_beats_cache(places):
    given, env, cache = places
    for folder in (cache, env, given):
        put(folder / PATH, GOOD)
        assert fetch.find(FILE, given) == folder / PATH
    assert fetch.find(FILE) == env / PATH  # no data_dir
    assert list(fetch.places(given).values()) == [given, env, cache]


def test_a_wrong_file_is_refused_even_where_a_good_one_comes_later(places):
    given, env, _ = places
    put(env / PATH, GOOD)
    put(given / PATH, b"changed")
    assert str(given / PATH) in refusal(fetch.find, FILE, given)


def test_available_says_whether_files_are_there_and_needs_no_network(places):
    given, env, cache = places
    assert not available("adult", given)
    put(given / "adult/adult.data", "x")
    assert not available("adult", given)  # one of two
    put(cache / "adult/adult.test", "x")
    assert available("adult", given) and not available("adult")
    assert available("digits")
    assert str(given / "adult/adult.data") in refusal(load_task, "adult", given)  # there, but not the original


@pytest.mark.parametrize("name", ["concrete", "digits"])
def test_missing_data_dir_is_refused_for_every_data_set(name, tmp_path):
    message = refusal(load_task, name, tmp_path / "typo", error=DataFileNotFound)
    assert str(tmp_path / "typo") in message and "data_dir" in message
    put(tmp_path / "file", "x")
    assert "got a file" in refusal(load_task, name, tmp_path / "file", error=DataFileNotFound)
    assert issubclass(DataFileNotFound, FileNotFoundError) and issubclass(DataFileNotFound, ValueError)


def test_missing_environment_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FIMODA_DATA", str(tmp_path / "typo"))
    for call in (load_task, available):
        message = refusal(call, "concrete", error=DataFileNotFound)
        assert "FIMODA_DATA" in message and str(tmp_path / "typo") in message
    monkeypatch.setenv("FIMODA_DATA", "")  # as good as unset
    assert not available("concrete")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fragments"),
    [(b"", ["is empty (0 bytes)"]), (GOOD[:-1], ["cut off, changed", "11 bytes", "got SHA-256", "expected"])],
)
def test_empty_and_cut_off_files_are_refused(content, fragments, places):
    put(places[0] / PATH, content)
    message = refusal(fetch.find, FILE, places[0])
    assert all(part in message for part in [str(places[0] / PATH), "file.txt inside", *fragments]), message


def test_concrete_with_other_bytes_is_refused_by_load_task(places):
    put(places[0] / "uci/Concrete_Data.xls", b"something else")
    message = refusal(load_task, "concrete", places[0])
    assert all(part in message for part in (tabular.CONCRETE_FILE.sha256[0], "Concrete_Data.xls", "archive.ics.uci"))


def test_fingerprint_decides_when_no_hash_agrees(places):
    file = dataclasses.replace(FILE, fingerprint=lambda path: path.read_text().strip(), content="the original")
    put(places[0] / PATH, b"  the original \n")
    assert fetch.find(file, places[0])
    put(places[0] / PATH, b"changed")
    message = refusal(fetch.find, file, places[0])
    assert "got changed, expected the original" in message


@pytest.mark.parametrize("with_folder", [True, False])
def test_heloc_says_where_to_get_it_and_where_to_put_it(with_folder, places):
    message = refusal(load_task, "fico", places[0] if with_folder else None, error=DataFileNotFound)
    place = places[0 if with_folder else 1] / "heloc/heloc_dataset_v1.csv"
    assert f"put it at {place}" in message and "login" in message and "community.fico.com" in message
    assert str(places[1]) in message and str(places[2]) in message  # everywhere it was looked for


@pytest.mark.parametrize("name", ["concrete", "energy", "adult", "folktables"])
def test_offline_error_says_which_file_from_where_to_put_where(name, places):
    file = DATASETS[name].files[0]
    message = refusal(load_task, name, places[0], error=DataFileNotFound)
    for part in (file.url, file.member, f"put it at {places[0] / file.path}", "ConnectionError: Name or service"):
        assert part in message
    assert files_in(places[2]) == []


# --- downloads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_zip", [True, False])
def test_download_reaches_the_cache_verified_and_once(is_zip, places, site, monkeypatch):
    folder, address = site
    zipped(folder / "a.zip", **{"other.txt": "x", "file.txt": GOOD})
    put(folder / "file.txt", GOOD)
    file = dataclasses.replace(FILE, url=f"{address}/a.zip" if is_zip else f"{address}/file.txt")
    file = file if is_zip else dataclasses.replace(file, member=None)
    assert fetch.find(file, places[0]) == places[2] / PATH
    assert (places[2] / PATH).read_bytes() == GOOD and files_in(places[2]) == [PATH]
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: pytest.fail("downloaded a second time"))
    assert fetch.find(file, places[0]) == places[2] / PATH


@pytest.mark.parametrize(
    ("members", "fragments"),
    [
        ({"file.txt": b"changed"}, ["got SHA-256", FILE.sha256[0]]),
        ({"file.txt": b""}, ["empty (0 bytes)"]),
        ({"x/file.txt": GOOD}, ["holds no 'file.txt'", "x/file.txt"]),
        ({"file.txt": GOOD, "../evil.txt": b"x"}, ["'../evil.txt'", "outside"]),
        ({"file.txt": GOOD, "/evil.txt": b"x"}, ["'/evil.txt'", "outside"]),
        ({"file.txt": GOOD, "a\\..\\..\\evil.txt": b"x"}, ["evil.txt'", "outside"]),
        ({"file.txt": b"0" * 3_000_000}, ["more than the 2000000 bytes"]),  # a few kB when packed
        (None, ["not a complete zip archive"]),
    ],
)
def test_bad_archives_are_refused_and_leave_nothing(members, fragments, places, site, tmp_path):
    folder, address = site
    zipped(folder / "a.zip", **members) if members else put(folder / "a.zip", b"<html>a login page</html>")
    file = dataclasses.replace(FILE, url=f"{address}/a.zip", max_bytes=2_000_000)
    message = refusal(fetch.find, file, places[0])
    assert all(part in message for part in [PATH, file.url, "refused", *fragments]), message
    assert files_in(places[2]) == []
    assert not list(tmp_path.rglob("evil*"))


def test_archive_cut_off_and_size_stated_too_small(tmp_path):
    archive = zipped(tmp_path / "a.zip", **{"file.txt": bytes(range(256)) * 4000})
    content = bytearray(archive.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    refusal(fetch.unzip, tmp_path / "cut.zip", "file.txt", tmp_path / "out", max_bytes=10**9)
    content[100:110] = bytes(10)  # inside the packed data
    (tmp_path / "damaged.zip").write_bytes(content)
    message = refusal(fetch.unzip, tmp_path / "damaged.zip", "file.txt", tmp_path / "out", max_bytes=10**9)
    assert "damaged.zip is not a complete zip archive" in message


def test_wrong_direct_download_is_refused(places, site):
    folder, address = site
    put(folder / "file.txt", b"changed")
    file = dataclasses.replace(FILE, url=f"{address}/file.txt", member=None)
    assert "got SHA-256" in refusal(fetch.find, file, places[0])
    assert files_in(places[2]) == []


def test_server_that_is_down_or_lacks_the_file(places, site):
    for url, why in ((f"{site[1]}/none.zip", "404"), ("http://127.0.0.1:9/a.zip", "ConnectionError")):
        file = dataclasses.replace(FILE, url=url)
        message = refusal(fetch.find, file, error=DataFileNotFound)
        assert why in message and url in message and f"put it at {places[1] / PATH}" in message
        assert files_in(places[2]) == []
