"""Downloads from servers that begin anew or send elsewhere, and beside another process."""

import io
import urllib.request

import pytest
import tqdm

from data_selection.common.errors import UserError
from data_selection.images import downloads
from data_selection.images.downloads import fetch_file


class Answer(io.BytesIO):
    """A server's answer: bytes, and the address that they come from in the end."""

    def __init__(self, data, address):
        super().__init__(data)
        self.address, self.status, self.headers = address, 200, {"Content-Length": str(len(data))}

    def geturl(self):
        return self.address


def test_a_server_that_knows_no_ranges_is_read_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: Answer(b"abcd", request.full_url))
    (tmp_path / "w.pth.partial").write_bytes(b"ab")
    assert fetch_file("https://host/w.pth", tmp_path, progress=False).read_bytes() == b"abcd"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.pth.address"]


def test_the_bar_comes_to_its_end(tmp_path, monkeypatch):
    bars = []

    class Kept(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Kept)
    monkeypatch.setattr(downloads, "BLOCK", 3)
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: Answer(b"abcd", request.full_url))
    fetch_file("https://host/w.pth", tmp_path)
    assert [(bar.n, bar.desc) for bar in bars] == [(4, "w.pth")]


def test_an_address_that_leads_to_an_unsafe_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: Answer(b"abcd", "http://other/w.pth"))
    with pytest.raises(UserError, match=r"https://host/w\.pth leads to http://other/w\.pth, which is not safe"):
        fetch_file("https://host/w.pth", tmp_path, progress=False)
    assert not (tmp_path / "w.pth").exists()
    assert fetch_file("http://host/w.pth", tmp_path, progress=False).read_bytes() == b"abcd"  # which was allowed


def test_what_another_process_has_fetched_meanwhile_is_taken(tmp_path, monkeypatch):
    def lock(handle, wait):
        if handle.name.endswith(".partial"):
            (tmp_path / "w.pth").write_bytes(b"whole")

    monkeypatch.setattr(downloads, "lock", lock)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("it is there"))
    assert fetch_file("https://host/w.pth", tmp_path).read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.pth.address"]


def test_files_of_one_name_from_two_addresses_are_kept_apart(tmp_path, monkeypatch):
    """Also where the first one was interrupted: what follows would be the rest of another file."""
    files = {"https://a/w.pth": b"abcd", "https://b/w.pth": b"ABCD"}
    cut = Answer(b"ab", "https://a/w.pth")
    cut.headers["Content-Length"] = "4"
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: cut)
    with pytest.raises(UserError, match="the connection ended after 2 of 4 bytes"):
        fetch_file("https://a/w.pth", tmp_path, progress=False)

    def send(request, timeout):
        start = int((request.get_header("Range") or "bytes=0-")[len("bytes=") : -1])
        answer = Answer(files[request.full_url][start:], request.full_url)
        answer.status = 206 if start else 200
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", send)
    for _ in range(2):  # the second time all are there
        for url in ("https://b/w.pth", "https://a/w.pth"):
            assert fetch_file(url, tmp_path, progress=False).read_bytes() == files[url]
        monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("it is there"))
    (tmp_path / "w-0badc0de.pth").write_bytes(b"no")  # whose name says what it holds, wherever it comes from
    assert fetch_file("https://c/w-0badc0de.pth", tmp_path) == tmp_path / "w-0badc0de.pth"


def test_a_place_whose_note_was_never_written_is_free(tmp_path, monkeypatch):
    """A kill between making w.pth.address and writing it; later addresses find it taken."""
    (tmp_path / "w.pth.address").touch()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(b"abcd", "https://a/w.pth"))
    assert fetch_file("https://a/w.pth", tmp_path, progress=False) == tmp_path / "w.pth"
    assert fetch_file("https://b/w.pth", tmp_path, progress=False) != tmp_path / "w.pth"
