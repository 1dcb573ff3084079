"""Weight files as ``weights/``, unchanged: reading them safely is the business of those who load them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from anomdino.acquisition.archives import is_zip, list_members, unpack
from anomdino.acquisition.staging import place, scratch_folder
from anomdino.acquisition.tree import Tree
from anomdino.errors import DataError

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".safetensors")


def files(tree: Tree, out: Path) -> dict[str, int]:
    """Put every file of the item into ``weights/`` under its registered name."""
    found = _files_of(tree)
    for path in found:
        place(path, out / "weights" / path.name, tree.owned)
    return {"weights": len(found)}


def bert(tree: Tree, out: Path) -> dict[str, int]:
    """Put tokenizer, configuration and weights into ``weights/bert-base-uncased/`` as loaders name them."""
    found = _files_of(tree)
    target = out / "weights" / "bert-base-uncased"
    for path in found:
        place(path, target / path.name.removeprefix("bert-base-uncased."), tree.owned)
    return {"weights/bert-base-uncased": len(found)}


def seed(tree: Tree, out: Path) -> dict[str, int]:
    """Put the checkpoint that the project's own Drive link holds into ``weights/rpl_seed.pth``.

    The link names no file type: it may be a checkpoint itself or an archive with one inside.

    Raises:
        DataError: It is neither, or the archive has no checkpoint or several.
    """
    path = next(iter(tree.files.values()), None) or next(tree.need("*.pth").glob("*.pth"))
    target = out / "weights" / "rpl_seed.pth"
    if _is_checkpoint(path):
        place(path, target, tree.owned)
        return {"weights": 1}
    inside = [member.name for member in list_members(path) if member.name.lower().endswith(CHECKPOINTS)]
    if len(inside) != 1:
        raise DataError(
            path, f"holds {len(inside)} checkpoints: {', '.join(inside[:5])}", "choose one by hand"
        )
    with scratch_folder(out / ".seed") as work:
        (checkpoint,) = unpack(path, work, chosen=lambda name: name == inside[0])
        place(checkpoint, target.with_suffix(checkpoint.suffix), link=True)
    return {"weights": 1}


def _is_checkpoint(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(2)
    if not is_zip(path):
        return head[:1] == b"\x80"
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def _files_of(tree: Tree) -> list[Path]:
    """Give the downloaded files, or those of the folder that a person unpacked."""
    return list(tree.files.values()) or [
        path for root in tree.roots for path in root.iterdir() if path.is_file()
    ]
