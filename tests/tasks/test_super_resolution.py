"""Super-resolution: data, networks, figures of merit, tiles, photos of one's own, and a training from end to end."""

import csv
import os

import numpy as np
import pytest
import torch
from conftest import CPU, interrupt_at, load_weights, log, save_photo
from PIL import Image, ImageCms
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import functional as tf

from architectures import BasicSRModel, EquivariantSubPixelResNet, Interpolation, ResidualSRModel, SubPixelResNet
from datasets import DOWNSCALING, CachedCrops, CachedPhotos, SRDataset, halve
from depixelation.engine import enlarging
from depixelation.engine.enlarging import enlarge_photo, figures_of, fill_transparent, luminance
from depixelation.engine.measuring import psnr_per_image, ssim_per_image
from depixelation.engine.predictor import Predictor
from depixelation.images.cache import open_cache
from depixelation.symmetry import turn, turn_back
from depixelation.tasks.super_resolution import SuperResolution

TINY = ["--task", "super_resolution", "--network_options", '{"channels": 16, "blocks": 1}', "--synthetic_images", "24"]
TINY += [*CPU, "--batch_size", "8", "--crops", "40", "--crop_size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of four photos in colour, and a grey one."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        save_photo(folder / f"{i}.png", i, (101, 90))
    Image.open(folder / "0.png").convert("L").save(folder / "grey.png")
    return folder


def loose(network, seed=0):
    """Weights at which the network does something: it starts as bicubic interpolation."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


class PhotoList(list):
    """Photos as a cache has them."""

    def __init__(self, *photos):
        super().__init__(photos)
        self.names = [str(i) for i in range(len(photos))]


def photo(seed, height, width, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------ networks


def test_networks():
    images = torch.rand(2, 3, 10, 14)
    for network in (BasicSRModel(), ResidualSRModel()):
        assert sum(p.numel() for p in network.parameters()) == 372_803 and network(images).shape == (2, 3, 20, 28)
    basic, residual = loose(BasicSRModel()), loose(ResidualSRModel())
    upsampled = F.interpolate(images, scale_factor=2, mode="bilinear")
    assert torch.allclose(residual(images), upsampled + basic(images), atol=1e-5)
    for ours in (SubPixelResNet(), EquivariantSubPixelResNet()):
        assert torch.equal(ours(images), Interpolation()(images))
        assert 2 * sum(p.numel() for p in ours.parameters()) < 5e6  # stored in half precision


def test_interpolation_is_that_of_pillow():
    image = torch.rand(1, 1, 12, 17)
    for kind, filter in (("nearest", 0), ("bilinear", 2), ("bicubic", 3)):
        wanted = np.asarray(Image.fromarray(image[0, 0].numpy()).resize((34, 24), filter))
        assert np.allclose(Interpolation(kind)(image)[0, 0], wanted, atol=1e-5)


def test_views_and_consistency():
    network, images = loose(SubPixelResNet(8, 2)), torch.rand(1, 3, 9, 12)
    output = network(images, range(8))
    assert torch.allclose(network(images.flip(3), range(8)), output.flip(3), atol=1e-5)
    assert torch.allclose(network(images.mT, range(8)), output.mT, atol=1e-5)
    assert not torch.allclose(network(images.flip(3)), network(images).flip(3), atol=1e-3)
    network.consistent = True
    assert torch.allclose(F.avg_pool2d(network(images), 2), images, atol=1e-6)


def test_one_view_of_tied_filters_is_worth_eight():
    """A turned photo is enlarged as a turned one; swapped colours are another photo."""
    network, images = loose(EquivariantSubPixelResNet(16, 2)), torch.rand(2, 3, 9, 12)
    enlarge = torch.no_grad()(network)
    output = enlarge(images)
    assert output.shape == (2, 3, 18, 24) and (output - Interpolation()(images)).std() > 0.02
    for symmetry in range(8):
        assert (turn_back(enlarge(turn(images, symmetry)), symmetry) - output).abs().max() < 1e-5
    assert (enlarge(images.flip(1)).flip(1) - output).abs().max() > 0.02
    kinds = EquivariantSubPixelResNet, SubPixelResNet
    tied, free = (sum(p.numel() for p in kind(16, 2).parameters()) for kind in kinds)
    assert tied < 0.15 * free


def test_what_a_pixel_depends_on():
    for network in (
        loose(SubPixelResNet(4, 2)),
        loose(EquivariantSubPixelResNet(16, 2)),
        loose(BasicSRModel(4, 3)),
        Interpolation("bicubic"),
    ):
        images = torch.rand(1, 3, 61, 61, requires_grad=True)
        network(images)[0, :, 60:62, 60:62].sum().backward()
        reached = images.grad[0].abs().sum(0).nonzero() - 30
        assert reached.abs().max() <= network.reach


# ------------------------------------------------------------------------------------------------ data


def test_halving():
    images = torch.rand(2, 3, 16, 22)
    assert torch.allclose(halve(images, "bilinear", False), F.avg_pool2d(images, 2), atol=1e-6)
    assert torch.equal(halve(images, "nearest"), images[:, :, ::2, ::2])
    for kind in ("bilinear", "bicubic"):
        for antialias in (True, False):
            wanted = tf.resize(images, [8, 11], tf.InterpolationMode(kind), antialias=antialias)
            assert torch.allclose(halve(images, kind, antialias), wanted.clamp(0, 1), atol=1e-6)
        pillow = np.asarray(Image.fromarray(images[0, 0].numpy()).resize((11, 8), Image.Resampling[kind.upper()]))
        assert np.allclose(halve(images, kind)[0, 0], pillow.clip(0, 1), atol=1e-5)


def test_the_sheets_dataset(folder):
    dataset = SRDataset(folder)
    assert len(dataset) == 5 and [os.path.basename(file) for file in dataset.image_files][0] == "0.png"
    torch.manual_seed(0)
    low, high = dataset[1]
    assert (low.shape, high.shape) == ((3, 32, 32), (3, 64, 64)) and low.dtype == high.dtype == torch.float32
    assert 0 <= high.min() and high.max() <= 1
    assert torch.allclose(low, tf.resize(high[None], [32, 32], antialias=True)[0], atol=1e-6)
    assert not torch.equal(dataset[1][1], high)
    torch.manual_seed(0)
    assert torch.equal(dataset[1][1], high)
    batch = next(iter(DataLoader(dataset, 5, shuffle=True)))
    assert [tensor.shape for tensor in batch] == [(5, 3, 32, 32), (5, 3, 64, 64)]
    plain = SRDataset(folder, 90, 0, "bilinear", False)  # the height of the photos
    low, high = plain[2]
    columns = torch.tensor(np.asarray(Image.open(folder / "2.png"))).permute(2, 0, 1) / 255
    assert any(torch.equal(high, columns[:, :, left : left + 90]) for left in range(12))
    assert torch.allclose(low, F.avg_pool2d(high[None], 2)[0], atol=1e-6)


def test_mistakes_with_the_sheets_dataset(folder, tmp_path):
    for options in ({"size": 63}, {"downscaling": "cubic"}, {"jitter": -1}):
        with pytest.raises(ValueError, match="must be"):
            SRDataset(folder, **options)
    with pytest.raises(ValueError, match="no photos in"):
        SRDataset(tmp_path)
    with pytest.raises(ValueError, match="smaller than 92 pixels"):
        SRDataset(folder, 92)[0]


@pytest.mark.parametrize("downscaling", DOWNSCALING)
def test_crops_are_cut_from_the_small_photo(downscaling):
    """Also at their edges they are what the whole photo, made half as large, has there."""
    original = photo(0, 40, 60)
    options = {"size": 16, "jitter": 0.0, "downscaling": downscaling, "antialias": True}
    crops = CachedCrops(PhotoList(original, photo(1, 40, 40, 1)), [0, 1], 3, 10, **options)
    assert len(crops) == 10 and crops.names == ["0", "1"]
    low, high = crops[0, 4]
    assert (low.shape, high.shape, low.dtype, high.dtype) == ((3, 8, 8), (3, 16, 16), torch.uint8, torch.uint8)
    assert torch.equal(crops[0, 4][1], high) and not torch.equal(crops[1, 4][1], high)
    assert all((image == image[:1]).all() for image in crops[0, 1])  # the grey one
    found = 0
    for turned in (original, original.transpose(1, 0, 2)):
        for y, x in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            whole = torch.tensor(np.ascontiguousarray(turned[::y, ::x])).permute(2, 0, 1)
            for top in range(whole.shape[1] - 15):
                for left in range(whole.shape[2] - 15):
                    if torch.equal(whole[:, top : top + 16, left : left + 16], high):
                        start = whole[None, :, top % 2 :, left % 2 :]
                        even = start[:, :, : start.shape[2] // 2 * 2, : start.shape[3] // 2 * 2]
                        small = (halve(even.float() / 255, downscaling) * 255).round()[0]
                        small = small[:, top // 2 : top // 2 + 8, left // 2 : left // 2 + 8]
                        assert (small - low).abs().max() <= 1
                        found += 1
    assert found == 1


def test_colours_change_with_jitter_only():
    options = {"size": 16, "downscaling": "bicubic", "antialias": True}
    plain, changed = (
        CachedCrops(PhotoList(photo(0, 24, 24)), [0], 0, 4, jitter=j, **options)[0, 0] for j in (0.0, 0.2)
    )
    assert (plain[1].int() - changed[1].int()).abs().float().mean() > 3
    few = CachedCrops(PhotoList(photo(0, 60, 60)), [0], 0, 4, 2, jitter=0.2, **options)
    assert torch.equal(few[0, 1][1], few[5, 3][1]) and not torch.equal(few[0, 0][1], few[0, 1][1])


def test_whole_photos():
    odd, grey = photo(0, 13, 20), photo(1, 12, 20, 1)
    whole = CachedPhotos(PhotoList(odd, grey), [0, 1], "nearest", True)
    for (low, high), wanted in zip((whole[0], whole[1]), (odd[:12], grey)):
        assert np.array_equal(high.permute(1, 2, 0), wanted) and np.array_equal(low.permute(1, 2, 0), wanted[::2, ::2])


def test_caches_in_colour_and_in_grey_live_side_by_side(folder, tmp_path):
    for colour, shapes in ((False, [(90, 101)] * 5), (True, [(90, 101, 3)] * 4 + [(90, 101, 1)])):
        for _ in range(2):
            assert [image.shape for image in open_cache(str(folder), str(tmp_path), 0, 2, colour)] == shapes
    assert len(list(tmp_path.iterdir())) == 2


# ------------------------------------------------------------------------------------------------ figures of merit


def test_psnr_and_ssim_are_those_of_papers():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    planes = torch.stack([0.5 + 0.4 * torch.sin(x / (3 + i) + y / (5 + 2 * i)) for i in range(3)])
    images = torch.stack([planes, planes**2]).double()
    changed = images + 0.1 * torch.cos(x * y / 7).double()
    # pytorch-msssim 1.0.0: ssim(images, changed, data_range=1.0, size_average=False)
    assert ssim_per_image(changed, images).tolist() == pytest.approx([0.7912819940, 0.7500530304], abs=1e-6)
    grey = ssim_per_image(changed[:, :1], images[:, :1])
    assert grey.tolist() == pytest.approx([0.8730062295, 0.8461486720], abs=1e-6)
    assert ssim_per_image(images, images).tolist() == pytest.approx([1, 1])
    wanted = -10 * ((changed - images) ** 2).mean((1, 2, 3)).log10()
    assert torch.allclose(psnr_per_image(changed, images), wanted)


def test_luminance_is_matlabs():
    colours = torch.tensor([[255, 0, 0], [255, 255, 255], [0, 0, 0]], dtype=torch.uint8).T[:, :, None]
    assert (luminance(colours) * 255).flatten().tolist() == pytest.approx([81.481, 235, 16])
    assert luminance(torch.tensor([[[255, 51]]], dtype=torch.uint8)).flatten().tolist() == [1.0, 0.2]


def test_figures_leave_the_border_out():
    truth = torch.from_numpy(photo(0, 30, 34)).permute(2, 0, 1)
    spoilt = truth.clone()
    spoilt[:, :2], spoilt[:, :, -2:] = 0, 0
    figures = figures_of(spoilt, truth)
    assert figures["psnr_y"] == figures["psnr_rgb"] == 100 and figures["ssim_y"] == pytest.approx(1)
    assert figures["l1"] == pytest.approx(((spoilt.float() - truth.float()).abs().mean() / 255).item())
    spoilt[:, 2] = 0
    assert figures_of(spoilt, truth)["psnr_y"] < 30


# ------------------------------------------------------------------------------------------------ whole photos


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_agree_with_the_whole(monkeypatch, channels):
    """Up to a level where a value lies between two."""
    pixels = torch.from_numpy(photo(0, 75, 100, channels)).permute(2, 0, 1)
    networks = loose(SubPixelResNet(6, 2)), loose(EquivariantSubPixelResNet(16, 2)), loose(BasicSRModel(6, 4))
    for network in (*networks, Interpolation("bilinear")):
        views = getattr(network, "VIEWS", ())
        predictor = Predictor(network, torch.device("cpu"), views=views)
        whole = enlarge_photo(predictor, pixels)
        assert whole.shape == (channels, 150, 200)
        with monkeypatch.context() as patch:
            patch.setattr(enlarging, "TILE", 24)
            tiled = enlarge_photo(predictor, pixels)
        differences = (whole.int() - tiled.int()).abs()
        assert differences.max() <= 1 and (differences > 0).float().mean() < 1e-3
    assert len(whole.unique()) > 50


def test_own_photos(run, tmp_path, capsys):
    """Odd sizes, grey and transparent photos, a colour profile, a single pixel."""
    assert run("--epochs", "1", "--name", "mine", "--network", "SubPixelResNet") == 0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo(0, 33, 47)).save(tmp_path / "colour.png", icc_profile=profile)
    Image.fromarray(photo(1, 20, 21, 1)[:, :, 0]).save(tmp_path / "grey.jpg")
    Image.fromarray(photo(2, 15, 16, 4)).save(tmp_path / "alpha.png")
    Image.fromarray(photo(3, 1, 1)).save(tmp_path / "pixel.png")
    paths = [tmp_path / name for name in ("colour.png", "grey.jpg", "alpha.png", "pixel.png")]
    results = []
    for views in (1, 8):
        assert run("--predict", *paths, "--name", "mine", "--views", views, "--overwrite") == 0
        results.append(np.asarray(Image.open(tmp_path / "colour_x2.png")))
    assert "94 x 66 pixels" in capsys.readouterr().out and not np.array_equal(*results)
    colour, grey, alpha, pixel = (Image.open(tmp_path / f"{path.stem}_x2.png") for path in paths)
    assert (colour.size, colour.mode, colour.info["icc_profile"]) == ((94, 66), "RGB", profile)
    assert (grey.size, grey.mode, alpha.size, alpha.mode) == ((42, 40), "L", (32, 30), "RGBA")
    enlarged = Image.fromarray(photo(2, 15, 16, 4)[:, :, 3]).resize((32, 30), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(alpha)[:, :, 3], enlarged)
    assert pixel.size == (2, 2) and np.abs(np.asarray(pixel).astype(int) - photo(3, 1, 1)).max() < 20
    given = Image.open(tmp_path / "colour.png")
    bicubic = given.resize((94, 66), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(colour).astype(int) - np.asarray(bicubic)).mean() < 8


def test_colours_that_cannot_be_seen_do_not_bleed(monkeypatch):
    alpha = torch.zeros(30, 40, dtype=torch.uint8)
    alpha[10:20, 12:25] = 255
    cut_out = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1) * (alpha > 0)
    filled = fill_transparent(cut_out, alpha)
    assert (filled[:, 4:26, 6:31] == filled[:, 15:16, 15:16]).all() and (filled[:, 0] == 0).all()
    alpha[alpha == 0], cut_out[:, alpha == 0] = 1, 255  # white that is hardly visible
    white = cut_out.masked_fill((alpha < 255)[None], 255)
    filled = fill_transparent(white, alpha)
    assert ((filled[:, 8:22, 10:27].int() - filled[:, 15:16, 15:16].int()).abs() <= 12).all()
    even = torch.from_numpy(photo(2, 40, 30)).permute(2, 0, 1)
    for level in (1, 9, 200, 255):  # of the same visibility everywhere: as it is
        assert torch.equal(fill_transparent(even, torch.full((40, 30), level, dtype=torch.uint8)), even)
    whole = fill_transparent(cut_out, alpha)
    monkeypatch.setattr(enlarging, "TILE", 7)  # in strips
    assert torch.equal(fill_transparent(cut_out, alpha), whole)


@pytest.mark.skipif(not os.path.exists(SuperResolution.shipped), reason="models/SR.pt is not handed in")
def test_one_photo_stops_no_other(run, tmp_path, capsys):
    """Folders, twins, what is no photo, a user's own file, results of before: a line each, the rest is enlarged."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg", "c.png", "c_x2.png"):
        Image.fromarray(photo(0, 8, 8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    before = (tmp_path / "in" / "c_x2.png").read_bytes()
    theirs = ("--network_options", "{}")
    assert run("--predict", tmp_path / "in", *theirs) == 1
    errors = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "error:" in line]
    assert len(errors) == 2 and "b.png: not a readable picture" in errors[0]
    assert "c_x2.png: would be read and replaced" in errors[1] and (tmp_path / "in" / "c_x2.png").read_bytes() == before
    made = {"a_png_x2.png", "a_jpg_x2.png", "c_x2_x2.png"}
    assert made == {path.name for path in (tmp_path / "in").glob("*_x2.png")} - {"c_x2.png"}
    times = {name: (tmp_path / "in" / name).stat().st_mtime_ns for name in made}
    for more, same in (((), True), (("--overwrite",), False)):
        assert run("--predict", *sorted((tmp_path / "in").iterdir()), *theirs, *more) == 1
        captured = capsys.readouterr()
        assert captured.err.count("left out, as it is the result of another photo") == 3
        assert all(((tmp_path / "in" / name).stat().st_mtime_ns == times[name]) == same for name in made)
    assert len(list((tmp_path / "in").iterdir())) == 9  # with the page
    assert run("--predict", tmp_path / "in", "--output", tmp_path / "out", *theirs) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == made | {"c_x2.png", "enlarged.html"}


# ------------------------------------------------------------------------------------------------ from end to end


def test_train_interrupt_resume_evaluate(run, tmp_path, monkeypatch, capsys):
    more = ["--optimizer", "adam", "--learning_rate", "2e-3", "--epochs", "2", "--jitter", "0.1"]
    assert run(*more, "--name", "whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8, owner=SuperResolution, name="loss")  # in the second epoch of five steps
        assert run(*more, "--name", "parts") == 130
    assert run("--resume", "--name", "parts") == 0
    for one, two in zip(log(tmp_path, "whole"), log(tmp_path, "parts"), strict=True):
        assert {**one, "minutes": 0} == {**two, "minutes": 0}
    whole, parts = (load_weights(tmp_path / "models" / f"{name}.last.pt") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(map(torch.equal, whole.values(), parts.values()))
    assert {"train_loss", "psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "l1"} <= log(tmp_path, "whole")[0].keys()
    for name in ("whole.png", "whole_samples.png"):
        assert Image.open(tmp_path / "losses" / name).size[0] > 500

    capsys.readouterr()
    models = [tmp_path / "models" / f"{name}.pt" for name in ("whole", "parts")]
    assert run("--evaluate", *models, "--name", "table") == 0
    output = capsys.readouterr().out
    assert (
        "24 drawn images" not in output
        and "drawn images, held out of training; reduced to half the size, bicubic" in output
    )
    with open(tmp_path / "losses" / "table_evaluation.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.basename(row["depixelation_model"]) for row in rows] == [
        "whole.pt",
        "parts.pt",
        "nearest",
        "bilinear",
        "bicubic",
    ]
    best = max(row["psnr_y"] for row in log(tmp_path, "whole"))
    assert float(rows[0]["psnr_y"]) == pytest.approx(best, abs=1e-3)
    assert rows[0]["psnr_y"] == rows[1]["psnr_y"] and float(rows[2]["psnr_y"]) < float(rows[4]["psnr_y"])
    assert run("--evaluate", models[0], "--name", "table", "--downscaling", "bilinear", "--antialias", "false") == 0
    assert "reduced to half the size, bilinear without antialiasing" in capsys.readouterr().out
    with open(tmp_path / "losses" / "table_evaluation.csv", encoding="utf-8") as file:
        assert abs(float(next(csv.DictReader(file))["psnr_y"]) - best) > 0.05
    assert run("--compare", "whole", "parts") == 0 and (tmp_path / "losses/super_resolution_compared.png").exists()


def test_photos_of_a_folder(run, tmp_path, folder, refused, capsys):
    assert (
        run("--images", folder, "--epochs", "1", "--network", "BasicSRModel", "--network_options", '{"layers": 1}') == 0
    )
    assert "4 images to train on, 1 held out" in capsys.readouterr().out
    refused(
        run("--images", folder, "--epochs", "1", "--crop_size", "90", "--name", "b"), "crop_size", "98 pixels a side"
    )
    refused(run("--epochs", "1", "--crop_size", "33", "--name", "c"), "crop_size", "even")
    consistent = ["--network_options", '{"consistent": true, "channels": 16, "blocks": 1}', "--epochs", "1"]
    refused(run("--images", folder, *consistent, "--name", "d"), "consistent needs --downscaling bilinear")
    more = ["--downscaling", "bilinear", "--antialias", "false", "--max_images", "2", "--loss", "mse"]
    assert run("--images", folder, *consistent, *more, "--name", "d") == 0
    assert "2 images to train on" in capsys.readouterr().out
