"""Where models are: the embedded one, folders, and repositories of the hub, of which what is needed is downloaded."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from fairjax import kinds

PORTRAITS = "portraits"
"""The name of the embedded pipeline, which ships with the package."""


class HubFiles(NamedTuple):
    """What is read of a repository of the hub, as patterns of paths; what else lies there is not downloaded."""

    wanted: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()  # a complete copy has a file for each of these

    def without_weights(self) -> HubFiles:
        """What describes the networks: a few megabytes at most."""
        return HubFiles(tuple(pattern for pattern in self.wanted if "safetensors" not in pattern), self.ignored)


KIND = HubFiles(kinds.FILES)
PIPELINE = HubFiles(
    ("*.json", "tokenizer/*.txt", "*/*.safetensors"),
    ("safety_checker/*", "*/*.*.safetensors"),  # variants of weights: .fp16, .non_ema
    ("text_encoder/*.safetensors", "unet/*.safetensors", "vae/*.safetensors"),
)
NETWORK = HubFiles(
    (
        "config.json", "preprocessor_config.json", "tokenizer*.json", "vocab.json", "merges.txt",
        "special_tokens_map.json", "model.safetensors*", "model-*.safetensors",
    ),
    weights=("model*.safetensors",),
)  # fmt: skip
"""A single network, as transformers publishes it, with its tokenizer where it has one."""


def find(name: str | Path, field: str = "model", files: HubFiles = PIPELINE, weights: bool = True) -> Path:
    """The folder of a pipeline: the embedded one by name, a local folder, or a hub id, which is downloaded.

    Args:
        name: a hub id may name a revision, a branch, tag or commit: "org/name@revision".
        field: what the configuration calls it, for errors.
        files: what is read of a hub id.
        weights: whether they are, too.

    Raises:
        FileNotFoundError, ValueError: one line, where it is none of these.
    """
    if str(name) == PORTRAITS:
        return Path(__file__).parent / "portraits" / "weights"
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        convert = "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        raise ValueError(f"{field} = {str(name)!r} is a single file; convert it to a diffusers folder: {convert}")
    repository, revision = hub_id(name)
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{field} = {str(name)!r}: no such folder, nor {PORTRAITS!r} or a hub id such as 'org/name'"
        )
    from huggingface_hub import snapshot_download

    asked = files if weights else files.without_weights()
    try:
        download = functools.partial(snapshot_download, repository, revision=revision)
        folder = Path(download(allow_patterns=asked.wanted, ignore_patterns=asked.ignored))
        if asked is PIPELINE and (half := _without_weights(folder)):
            download(allow_patterns=[f"{component}/*.fp16*.safetensors" for component in half])
        return folder
    except Exception as error:  # the hub's client raises its own kinds, and requests', and the system's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{field} = {str(name)!r}: no such folder, and the hub says: {reason}") from None


def hub_id(name: str | Path) -> tuple[str, str | None]:
    """Repository and revision of "org/name@revision"; None is the newest. A path that exists is returned as it is."""
    if Path(name).exists():
        return str(name), None
    repository, _, revision = str(name).partition("@")
    return repository, revision or None


def on_hub(name: str | Path, files: HubFiles = PIPELINE) -> bool:
    """Whether `find` would have to download it: a hub id of which there is no whole copy on this machine."""
    repository, _ = hub_id(name)
    if str(name) == PORTRAITS or Path(name).exists() or repository.count("/") != 1:
        return False
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _downloaded(name, files)
    except HFValidationError:  # no id at all: `find` says so
        return False
    return folder is None or not all(any(folder.glob(pattern)) for pattern in files.weights)


def _downloaded(name: str | Path, files: HubFiles) -> Path | None:
    """Where the hub's client keeps what it has of a hub id, None for nothing; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = hub_id(name)
    patterns = {"allow_patterns": files.wanted, "ignore_patterns": files.ignored}
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, **patterns))
    except LocalEntryNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The hub's commit whose copy a folder is, as the hub's client keeps them; None for another folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def commit_of(name: str, files: HubFiles) -> str | None:
    """The same of a hub id that `find` has downloaded."""
    folder = _downloaded(name, files)
    return folder and commit(folder)


def download_size(name: str | Path, files: HubFiles = PIPELINE) -> int | None:
    """How many bytes `find` would download of a hub id; None where the hub does not say."""
    from huggingface_hub import snapshot_download

    repository, revision = hub_id(name)
    listed = functools.partial(snapshot_download, repository, revision=revision, dry_run=True)
    try:
        found = listed(allow_patterns=files.wanted, ignore_patterns=files.ignored)
        if files is PIPELINE:
            components = {Path(file.filename).parent for file in found if file.filename.endswith("/config.json")}
            whole = {Path(file.filename).parent for file in found if file.filename.endswith(".safetensors")}
            if half := components - whole:
                found += listed(allow_patterns=[f"{component}/*.fp16*.safetensors" for component in half])
    except Exception:  # the hub's client raises its own kinds, and requests', and the system's; `find` tells them
        return None
    return sum(file.file_size for file in found if file.will_download)


def _without_weights(folder: Path) -> list[str]:
    """The components of a download whose weights the hub holds in half precision only, if at all."""
    return [
        config.parent.name for config in folder.glob("*/config.json") if not any(config.parent.glob("*.safetensors"))
    ]
