"""Settings: one value, from Python and from text."""

import dataclasses

import pytest

from resnet_layers import NORMALIZATIONS, Normalization
from train_loop import Settings, UserError
from train_loop import settings as settings_module
from train_loop.data.transforms import Operation
from train_loop.recipes import RECIPES
from train_loop.resolve import DEFAULTS, MODE_DEFAULTS, flags_beside
from train_loop.settings import OLD_NAMES, to_text

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def test_default_settings_are_all_unset():
    assert Settings().given == {}


def test_values_have_the_types_of_their_fields():
    settings = Settings(
        epochs=3,
        steps="12",
        learning_rate="0.5",
        deterministic="true",
        augment="flip,rand_augment:2:9",
        normalization="0:0:0:255:255:255",
    )
    assert settings.given == {
        "epochs": 3.0,
        "steps": 12,
        "learning_rate": 0.5,
        "deterministic": True,
        "augment": (Operation("flip"), Operation("rand_augment", (2, 9))),
        "normalization": Normalization((0, 0, 0), (255, 255, 255)),
    }
    assert isinstance(settings.epochs, float)
    assert isinstance(settings.steps, int)


def test_settings_are_frozen():
    settings = Settings(steps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.steps = 4
    assert hash(settings) == hash(Settings(steps=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1.5}, "--steps=1.5: must be an integer"),
        ({"steps": "many"}, "--steps=many: must be an integer"),
        ({"batch_size": 0}, "--batch_size=0: must be at least 1"),
        (
            {"crop_fraction": 1.5},
            "--crop_fraction=1.5: must be between 0.01 and 1",
        ),
        ({"epochs": float("nan")}, "--epochs=nan"),
        ({"learning_rate": float("inf")}, "--learning_rate=inf"),
        ({"learning_rate": [1]}, "must be a number"),
        ({"deterministic": "perhaps"}, "must be true or false"),
        ({"model": "resnet_50"}, "Did you mean resnet50"),
        ({"schedule": "cosin"}, "Did you mean cosine"),
        ({"interpolation": "cubic"}, "Did you mean bicubic"),
        ({"cache": "ram"}, "auto, none, memory, disk"),
        ({"channels": 2}, "channels=2: unknown. Use one of: 1, 3"),
        ({"augment": "flop"}, "Did you mean flip"),
        ({"workdir": "two\nlines"}, "must be one line"),
        ({"dataset": "two\rlines"}, "must be one line"),
        ({"dataset": "caf\udce9"}, r"--dataset=caf\\udce9: must be UTF-8"),
        ({"normalization": "imagnet"}, "Did you mean imagenet"),
        ({"normalization": "1:2:3"}, "M:M:M:S:S:S"),
        ({"normalization": "1:2:3:0:1:1"}, "M:M:M:S:S:S"),
        ({"normalization": "1:2:3:1:1:nan"}, "M:M:M:S:S:S"),
    ],
)
def test_invalid_values_are_one_clear_line(values, message):
    with pytest.raises(UserError, match=message) as error:
        Settings(**values)
    assert "\n" not in str(error.value)


def test_every_setting_has_help_and_a_valid_default():
    for name, field in FIELDS.items():
        summary, details = (field.metadata[n] for n in ("summary", "details"))
        assert summary.endswith("."), name
        assert len(summary.split()) <= 8, name
        assert details[-1:] in ("", "."), name
    defaults = {**DEFAULTS.given, **MODE_DEFAULTS.given}
    assert defaults.keys() == {
        name
        for name, field in FIELDS.items()
        if field.metadata["default"] is not None
    }


def test_explicit_settings_override_others():
    settings = Settings(steps=3, seed=1).over(Settings(seed=2, epochs=5))
    assert settings == Settings(steps=3, seed=1, epochs=5)


@pytest.mark.parametrize("name", RECIPES)
def test_file_gives_the_same_settings_again(tmp_path, name):
    settings = dataclasses.replace(
        RECIPES[name].settings.over(DEFAULTS),
        normalization=Normalization((1.25, 0.1, 3), (1e-3, 2, 1 / 3), True),
        augment="random_resized_crop:0.2:1:0.5,color_jitter:0.123,mixup:0.2",
    )
    path = tmp_path / "flags.txt"
    settings.write(path)
    assert Settings.read(path) == settings


def test_file_is_a_flagfile(tmp_path):
    path = tmp_path / "flags.txt"
    Settings(seed=3, augment=(), deterministic=True, workdir="x").write(path)
    # The folder is not needed to repeat a run.
    assert path.read_text().splitlines() == [
        "--augment=",
        "--seed=3",
        "--deterministic=True",
    ]


ENDS_OF_LINES = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


def test_unicode_line_separators_stay_in_a_value(tmp_path):
    path = tmp_path / "flags.txt"
    dataset = "".join(f"a{end}--seed=5" for end in ENDS_OF_LINES)
    settings = Settings(seed=3, dataset=dataset).over(DEFAULTS)
    settings.write(path)
    assert Settings.read(path) == settings
    assert flags_beside(tmp_path) == settings.texts()
    # Saved by a Windows editor.
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Settings.read(path) == settings
    assert flags_beside(tmp_path) == settings.texts()


def test_removed_settings_warn_only_of_changed_behavior(tmp_path, capsys):
    path = tmp_path / "flags.txt"
    lines = ["--seed=3", "--kernel_products=True", "--fused_batch_norm=True"]
    path.write_text("".join(f"{line}\n" for line in lines))
    settings = Settings.read(path)
    assert (settings.seed, settings.fast_paths) == (3, True)
    assert capsys.readouterr().out == ""
    path.write_text("--seed=3\n--kernel_products=False\n")
    assert Settings.read(path) == settings
    assert capsys.readouterr().out == (
        f"warning: {path}: --kernel_products=False: removed setting, ignored.\n"
    )


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_names_of_settings_work_and_report_the_new_one(old, capsys):
    new = OLD_NAMES[old]
    text = {bool: "true", str: "ema"}.get(FIELDS[new].type, "3")
    settings_module.warn_once.cache_clear()
    settings = Settings(**{old: text})
    assert settings == Settings(**{new: text})
    assert dataclasses.replace(settings, seed=3).given.keys() == {new, "seed"}
    assert capsys.readouterr().out == (
        f"warning: --{old}: renamed to --{new}. Use the new name.\n"
    )
    with pytest.raises(UserError, match=f"--{old}: cannot be combined with"):
        Settings(**{old: text, new: text})


def test_earlier_file_has_old_names_for_good(tmp_path, capsys):
    path = tmp_path / "flags.txt"
    settings_module.warn_once.cache_clear()
    path.write_text("--seed=3\n--average=ema\n--remat=True\n")
    assert Settings.read(path).given == {
        **Settings(seed=3, weight_average="ema").given,
        "gradient_checkpointing": True,
        "channels": 3,
        "exif_orientation": False,
        "fast_paths": True,
    }
    assert capsys.readouterr().out == ""


def test_missing_file_is_empty_settings(tmp_path):
    assert Settings.read(tmp_path / "flags.txt") == Settings()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"--seed=3\n--mod", "not a flag: '--mod'"),
        (b"\x80\xff", "not a flag: "),
        (b"", "empty"),
    ],
)
def test_damaged_file_is_rejected(tmp_path, content, fault):
    path = tmp_path / "flags.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"damaged .{fault}") as error:
        Settings.read(path)
    assert f"--weights={tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_named_normalization_is_written_by_its_name(name):
    assert Settings(normalization=name).normalization == NORMALIZATIONS[name]
    assert to_text(NORMALIZATIONS[name]) == name


def test_preprocessing_is_one_value():
    settings = Settings(normalization="caffe", image_size=64)
    assert settings.over(DEFAULTS).preprocessing == (
        NORMALIZATIONS["caffe"],
        64,
        0.875,
        "bilinear",
        True,
    )
