"""Folders of images that are named after their classes."""

import pathlib

from train_loop.data.image_files import IMAGE_SUFFIXES, store_files
from train_loop.errors import UserError, first_few

# What folders of splits are called, whatever their capitals -> the split.
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "val": "val",
    "test": "test",
    "testing": "test",
}


def open_folder(root):
    """Returns the images below a folder.

    Args:
      root: folder in the layout of `tfds.ImageFolder`, SPLIT/CLASS/IMAGE,
        with splits by the names in `SPLITS`; or just CLASS/IMAGE. Images may
        lie in folders below that of their class, and any of these may be
        links.

    Returns:
      A `Stored`. What is left out, files of other kinds and folders that are
      no splits, is named in its warnings.

    Raises:
      UserError: there are no folders of classes, two for one split, or no
        images to train on.
    """
    root = pathlib.Path(root)
    folders = _split_folders(root)
    warnings = _left_out(root, folders.values()) if folders else []
    folders = folders or {"train": root}
    classes = {
        split: {folder.name: _files(folder) for folder in subfolders(path)}
        for split, path in folders.items()
    }
    class_names = sorted(set().union(*classes.values()))
    if not class_names:
        raise UserError(
            f"{root} is no folder of classes: it takes train/CLASS/IMAGE and "
            "test/CLASS/IMAGE, or CLASS/IMAGE; found no folder"
        )
    files, empty, others = {}, [], []
    for split, files_of in classes.items():
        files[split] = []
        for label, class_name in enumerate(class_names):
            images, of_other_kinds = files_of.get(class_name, ([], []))
            files[split] += [(path, label) for path in images]
            others += of_other_kinds
            if not images:
                empty.append(folders[split] / class_name)
    if empty:
        verb = "holds" if len(empty) == 1 else "hold"
        warnings.append(f"{first_few(empty)} {verb} no images")
    if others:
        names = [path.relative_to(root) for path in others]
        warnings.append(
            f"{len(others)} files in {root} are left out: they are none of "
            f"{', '.join(IMAGE_SUFFIXES)}: {first_few(names)}"
        )
    return store_files(root, class_names, files, warnings)


def subfolders(path):
    """Returns the folders in a folder, without runs that were put there."""
    if not path.is_dir():
        return []
    return sorted(
        folder
        for folder in path.iterdir()
        if folder.is_dir() and not _is_ignored(folder)
    )


def _is_ignored(folder):
    """Whether a folder is hidden, or that of a run."""
    return folder.name.startswith(".") or (folder / "flags.txt").is_file()


def _split_folders(root):
    """Returns {split: folder of its classes}, in the order of `SPLITS`."""
    found = {}
    for folder in subfolders(root):
        split = SPLITS.get(folder.name.lower())
        if split is None or not subfolders(folder):
            continue
        # A link from one to the other is no second folder; small letters
        # sort last, and stay.
        if split in found and not folder.samefile(found[split]):
            raise UserError(
                f"{found[split]} and {folder} are both the split {split}; put "
                "their images into one folder, or rename one of them"
            )
        found[split] = folder
    return {split: found[split] for split in SPLITS.values() if split in found}


def _left_out(root, used):
    """Returns a warning of what lies beside the folders of splits."""
    names = [
        folder.name
        for folder in subfolders(root)
        if not any(folder.samefile(other) for other in used)
    ]
    if not names:
        return []
    verb = "is" if len(names) == 1 else "are"
    return [
        f"{first_few(names)} in {root} {verb} used for nothing: what "
        f"holds folders of classes, and is called {', '.join(SPLITS)}, is read"
    ]


def _files(folder, above=()):
    """Returns (images, other files) in a folder and in those below it."""
    images, others, above = [], [], (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif not path.is_dir():
            others.append(path)
        # A link to where it lies would lead round and round.
        elif not _is_ignored(path) and path.resolve() not in above:
            more_images, more_others = _files(path, above)
            images += more_images
            others += more_others
    return images, others
