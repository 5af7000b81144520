"""The rehearsal of the hand-in: --make_test_set, --predict, --score."""

import re

from submission_serialization import deserialize, load_test_set


def test_rehearsal_of_the_hand_in(run, photos, tmp_path, monkeypatch, capsys):
    """From photos to a test pickle, a challenge file and its score, which is the one that --evaluate gives."""
    folder = tmp_path / "rehearsal"
    options = ["--images", str(photos), "--network", "IdentityModel", "--network_options", "{}"]
    assert run("--make_test_set", str(folder), *options) == 0
    commands = [line.split()[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("python main.py")]
    assert [command[0] for command in commands] == ["--predict", "--score"]
    images, known = load_test_set(folder / "test_set.pkl")
    targets = deserialize(folder / "targets.bin")
    assert len(images) == len(known) == len(targets) == 60 and [k.size - k.sum() for k in known] == list(
        map(len, targets)
    )
    monkeypatch.chdir(tmp_path)  # what the program prints is relative to the working directory
    assert (
        run(
            *commands[0],
            "--submission",
            str(folder / "submission.bin"),
            "--test_set",
            str(folder / "test_set.pkl"),
            *options[2:],
        )
        == 0
    )
    capsys.readouterr()
    assert run("--score", str(folder / "submission.bin"), str(folder / "targets.bin")) == 0
    score = float(re.search(r"score ([\d.]+) on 60 images", capsys.readouterr().out)[1])
    assert run("--evaluate", *options) == 0
    table = capsys.readouterr().out
    assert f"{score:.3f}" in re.search(r"^IdentityModel +([\d.]+)", table, re.M)[1] and "all 60 images" in table
