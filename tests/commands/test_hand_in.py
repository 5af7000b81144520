"""--zip: the archive to hand in."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import main as entry
from depixelation.commands import hand_in
from utils import ROOT


def test_archive_to_hand_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hand_in, "LARGE_HAND_IN", 1e6)
    files = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for file in files:
        assert entry.main(["--zip", str(file), "--output_dir", str(tmp_path)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    output = capsys.readouterr().out
    assert output.count("warning: ") == 2 and "larger than 1 MB" in output
    with zipfile.ZipFile(files[0]) as file:
        names = file.namelist()
        assert all(output.count(f"  {name}\n") == 2 for name in names)
        file.extractall(tmp_path / "unpacked")
    assert {"main.py", "README.md", "config.json", "requirements.txt", "tests/test_main.py", "models/photos.pt"} <= set(
        names
    )
    assert {
        "depixelation/__init__.py",
        "depixelation/tasks/depixelation.py",
        "models/README.md",
        "tests/README.md",
    } <= set(names)
    assert {"models/photos.json", "losses/photos.csv", ".ci/run"} <= set(names)
    for folder in ("", "losses/"):
        with open(tmp_path / "unpacked" / folder / "README.md", encoding="utf-8") as file:
            assert {folder + name for name in re.findall(r"!\[.*\]\((.*)\)", file.read())} <= set(names)
    with open(tmp_path / "unpacked" / "README.md", encoding="utf-8") as file:
        assert set(re.findall(r"\]\((?!http)([^)#]+)", file.read())) <= set(names)
    assert not [
        name
        for name in names
        if re.search(r"\.cache|__pycache__|venv|\.git/|\.last\.|pkl|(?<!drawn_evaluation)_samples", name)
    ]
    done = subprocess.run([sys.executable, "main.py", "--summary"], cwd=tmp_path / "unpacked", capture_output=True)
    assert done.returncode == 0 and b"DeePixV1: 2,413,506 parameters, 19.745 GFLOP" in done.stdout


def test_archive_of_a_project_in_a_folder_with_brackets(run, model, tmp_path, monkeypatch):
    (tmp_path / "project[1]" / "depixelation" / "images").mkdir(parents=True)
    for name in ("main.py", "depixelation/images/photos.py"):
        shutil.copy(os.path.join(ROOT, name), tmp_path / "project[1]" / name)
    monkeypatch.setattr(hand_in, "ROOT", str(tmp_path / "project[1]"))
    assert run("--zip", "z.zip", "--model", "model.pt") == 0
    with zipfile.ZipFile("z.zip") as file:
        assert {"main.py", "depixelation/images/photos.py"} <= set(file.namelist())
