"""Options that several commands share."""

from dataclasses import dataclass

from utils import Config, Keys, inherited, key


def named_only(name, config_type=Config):
    """A training key as a command's option: None unless it was named."""
    return inherited(name, None, config_type)


@dataclass(frozen=True)
class ModelOptions(Keys):
    """Options of commands that use a trained model. Training keys are None here unless they were named."""

    model: str | None = key(
        None, "the model file; none: models/NAME.pt, or the shipped one if nothing was trained", path=True
    )
    name: str | None = named_only("name")
    network: str | None = named_only("network")
    network_options: dict | None = named_only("network_options")
    views: int | None = key(
        None,
        "flipped and transposed views whose predictions are averaged, unless the network predicts the same for all; "
        "none: 8, in super-resolution 1, in classification 10 (shifted and mirrored)",
        minimum=1,
        maximum=10,
    )


@dataclass(frozen=True)
class RealismOptions(Keys):
    """Options of commands that can make restorations look real."""

    realism: float = key(
        0.0,
        "how real restorations look: from 0, most accurate, to 1, most real; --evaluate measures it, too",
        argparse={"nargs": "?", "const": "1"},
        minimum=0,
        maximum=1,
    )
    refiner: str | None = key(
        None,
        "the model for --realism, trained with --adversarial or --task flow; none: the shipped one",
        path=True,
    )
    samples: int | None = key(
        None, "show this many possible originals, and how far they differ", minimum=2, maximum=100
    )


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """Options of --evaluate for every task. A task adds its own in a subclass."""

    seed: int | None = named_only("seed")
    synthetic_images: int | None = named_only("synthetic_images")
    validation_fraction: float | None = named_only("validation_fraction")
    sheet: str | None = key(
        None,
        "file for the picture of samples: a JPEG if its name ends in .jpg, else a PNG; none: "
        "losses/NAME_evaluation_samples.png",
        path=True,
    )
