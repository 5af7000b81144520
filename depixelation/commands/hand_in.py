"""--zip: the archive to hand in."""

import glob
import os
import posixpath
import re
import zipfile

from depixelation.commands import Command
from depixelation.engine.models import chosen_model
from depixelation.engine.options import ModelOptions
from depixelation.engine.outputs import check_outputs, sign
from utils import ROOT, atomic_write, display_path, load_checkpoint

HAND_IN = (
    "*.py",
    "depixelation/*.py",
    "depixelation/*/*.py",
    "tests/*.py",
    "tests/*/*.py",
    "tests/*/example/*.py",
    "*.md",
    "models/*.md",
    "losses/*.md",
    "tests/*.md",
    "LICENSE",
    "requirements.txt",
    "config.json",
    ".gitignore",
    ".ruff.toml",
)
HAND_IN += (".ci/run", "losses/scaling.csv")
LARGE_HAND_IN = 20e6  # bytes; course platforms refuse files not much larger


def zip_project(task, options, paths):
    """Write the archive to hand in: source, configuration, documentation, the chosen model and its log, nothing else.

    Equal files give equal bytes.
    """
    path = paths[0] if paths else "depixelation.zip"
    model = chosen_model(task, options)
    load_checkpoint(model, "train one first with python main.py, or name one with --model FILE")
    folder, name = os.path.split(os.path.splitext(os.path.abspath(model))[0])
    files = {}
    for pattern in HAND_IN:
        for file in glob.glob(pattern, root_dir=ROOT, include_hidden=True):
            files[file.replace(os.sep, "/")] = os.path.join(ROOT, file)
    for document in [entry for entry in files if entry.endswith(".md")]:
        with open(files[document], encoding="utf-8") as opened:
            pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", opened.read())
        for picture in (posixpath.normpath(posixpath.join(posixpath.dirname(document), name)) for name in pictures):
            if os.path.isfile(os.path.join(ROOT, picture)):  # not an address on the web
                files[picture] = os.path.join(ROOT, picture)
    losses = os.path.join(os.path.dirname(folder), "losses")
    for kind, start, suffixes in (("models", folder, (".pt", ".json")), ("losses", losses, (".csv", ".png"))):
        for suffix in suffixes:
            if os.path.exists(os.path.join(start, name + suffix)):
                files[f"{kind}/{name}{suffix}"] = os.path.join(start, name + suffix)
    check_outputs([(path, "archive")], files.values())
    with atomic_write(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        zipped.comment = sign("archive").encode()
        for entry, file in sorted(files.items()):
            info = zipfile.ZipInfo(entry)  # always dated 1980-01-01
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            with open(file, "rb") as opened:
                zipped.writestr(info, opened.read())
            print(f"{os.path.getsize(file):>12,} bytes  {entry}")
    size = os.path.getsize(path)
    print(f"Wrote {display_path(path)}: {len(files)} files, {size:,} bytes.")
    if size > LARGE_HAND_IN:
        limit = f"{LARGE_HAND_IN / 1e6:.0f} MB"
        print(f"warning: {display_path(path)} is larger than {limit}; ask whether that can be handed in")
    return 0


COMMAND = Command(
    "zip",
    zip_project,
    "write the archive to hand in (default: depixelation.zip)",
    "?",
    "FILE",
    ModelOptions,
    example="python main.py --zip --name mine",
)
