"""Fetch a file: whole, verified and resumable, or an error that says what to fetch and where to put it."""

import contextlib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import BinaryIO

from data_selection.common.errors import UserError
from data_selection.common.files import file_digest
from data_selection.common.system import lock

BLOCK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Where weights are kept: torch.hub's folder (TORCH_HOME moves it), so that its downloads are found too."""
    import torch  # slow, and commands that only show their help need none of it

    return Path(torch.hub.get_dir()) / "checkpoints"


def check_address(source: str, flag: str, allow_http: bool) -> None:
    """Raise UserError for an address without https, whose file anybody on the way can change, unless allowed."""
    if source.startswith("http://") and not allow_http:
        raise UserError(f"{flag} {source} is not safe on the way: use https://, or say --allow-http")


def fetch_file(url: str, folder: Path | str | None = None, *, digest: str | None = None, progress: bool = True) -> Path:
    """The local copy of `url`, downloaded on the first call. Returns its path.

    folder: default cache_folder(). digest: the start of the file's SHA-256, or of another digest (`md5:...`), where
    known; a name like model-cd65a155.pth carries its own, as in torch.hub. An interrupted download goes on where it
    stopped; the file gets its name only when its size (and digest) are right. A file that is there is checked against
    the given digest too. Files of one name and no known digest from several addresses are kept apart. Concurrent calls
    wait for each other.
    Raises UserError where the file cannot be fetched or is not what it should be.
    """
    name = Path(urllib.parse.urlparse(url).path).name
    if not name:
        raise UserError(f"{url} names no file: give the address of a .pth or .safetensors file")
    in_name = re.search(r"-([0-9a-f]{8,})\.", name)
    target = Path(folder or cache_folder()) / name
    if not digest and not in_name:
        target = _own_place(url, target)
    if target.is_file():
        if digest and not _matches(target, digest):
            raise UserError(f"{target} has another digest than {digest}: remove it to fetch {url} again")
        return target
    digest = digest or (in_name and in_name[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{name}.partial")
    with partial.open("ab") as handle:
        lock(handle, wait=True)
        if target.is_file():  # another process fetched it while this one waited
            partial.unlink(missing_ok=True)
            return target
        try:
            _receive(url, handle, target, progress)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"{_cannot(url, target)} ({reason})") from None
        handle.flush()
        os.fsync(handle.fileno())
        if digest and not _matches(partial, digest):
            handle.truncate(0)  # the next call starts again
            raise UserError(f"{_cannot(url, target)} (the file that came has another digest than {digest})")
        partial.replace(target)
    return target


def _own_place(url: str, target: Path) -> Path:
    """The target, or, where that is of another address, the same name in a folder of this one.

    X.address beside the target says whose it is, as a digest: an address may hold a password. A file that lay there
    before counts as that of the first who asks.
    """
    address, claim = hashlib.sha256(url.encode()).hexdigest(), target.with_name(f"{target.name}.address")
    with contextlib.suppress(OSError):  # the folder is only to be read
        target.parent.mkdir(parents=True, exist_ok=True)
        with claim.open("a+") as handle:
            lock(handle, wait=True)  # or who comes meanwhile would read half of it
            handle.seek(0)
            if not handle.read():
                handle.write(address)
    taken = claim.is_file() and claim.read_text() != address
    return target.parent / address[:12] / target.name if taken else target


def _matches(path: Path, expected: str) -> bool:
    """Whether a file's digest starts as expected: hexadecimal digits of its SHA-256, or `algorithm:digits`."""
    algorithm, _, digits = expected.rpartition(":")
    return file_digest(path, algorithm or "sha256").startswith(digits)


def _cannot(url: str, target: Path) -> str:
    return f"cannot fetch {url}: start again, or fetch it on another machine and put it at {target}"


def _receive(url: str, handle: BinaryIO, target: Path, progress: bool) -> None:
    """Append what is missing to handle, and check the size."""
    have = handle.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "active-finetuning"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: the partial file is not a beginning of this one
            raise
        handle.truncate(0)
        return _receive(url, handle, target, progress)
    if url.startswith("https://") and response.geturl().startswith("http://"):
        raise UserError(f"{url} leads to {response.geturl()}, which is not safe on the way: use another address")
    with response:
        if have and response.status != 206:  # the server knows no ranges: from the start
            handle.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        from tqdm import tqdm

        with tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=target.name, disable=None if progress else True
        ) as bar:
            while block := response.read(BLOCK):
                handle.write(block)
                bar.update(len(block))
        got = handle.seek(0, os.SEEK_END)
    if total is not None and got != total:
        raise UserError(f"{_cannot(url, target)} (the connection ended after {got} of {total} bytes)")
