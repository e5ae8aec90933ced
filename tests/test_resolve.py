"""Resolution of settings: which value wins."""

import dataclasses
import json
import pathlib

import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from resnet_layers import (
    NORMALIZATIONS,
    Normalization,
    Preprocessing,
    WeightsInfo,
    write_config,
)
from train_loop import Settings, UserError
from train_loop import resolve as resolve_module
from train_loop.recipes import FINETUNE, GENERIC, RECIPES
from train_loop.resolve import (
    DEFAULTS,
    check_run_or_new,
    locate_weights,
    resolve,
    resolve_by_size,
)
from train_loop.settings import warn_once


def test_recipe_overrides_defaults_and_explicit_settings_both():
    resolved = resolve(Settings(seed=3, learning_rate=0.7))
    digits = RECIPES["digits"].settings
    assert resolved.recipe == "digits"
    assert resolved.batch_size == digits.batch_size != DEFAULTS.batch_size
    assert resolved.weight_decay == digits.weight_decay
    assert resolved.crop_fraction == 1.0
    assert (resolved.seed, resolved.learning_rate) == (3, 0.7)
    assert resolved.schedule == DEFAULTS.schedule


def test_data_set_has_its_own_recipe(tmp_path):
    assert resolve(Settings(dataset="imagenet2012")).batch_size == 256
    assert resolve(Settings(dataset="cifar10")).recipe == GENERIC
    resolved = resolve(Settings(dataset=tmp_path, recipe="imagenet2012"))
    assert resolved.learning_rate == 0.1
    assert resolved.dataset == str(tmp_path)
    assert resolve(Settings(recipe="cifar_he2015")).dataset == "cifar10"
    with pytest.raises(UserError, match="Did you mean imagenet2012"):
        resolve(Settings(recipe="imagenet"))


def test_only_settings_where_none_has_a_meaning_stay_none():
    open_settings = {
        name
        for name, field in Settings.__dataclass_fields__.items()
        # Settings of modes are not part of a run.
        if not field.metadata["modes"] and name not in resolve(Settings()).given
    }
    assert open_settings == {
        "eval_split",
        "data_service",
        "data_dir",
        "manual_dir",
        "workdir",
        "weights",
        "steps",
        "base_batch_size",
        "momentum",
        "nesterov",
        "beta_1",
        "beta_2",
        "epsilon",
        "clip_norm",
        "early_stopping",
        "unfreeze_after_epochs",
        "unfrozen_learning_rate",
        "virtual_devices",
        "profile_steps",
    }


@pytest.fixture
def earlier(tmp_path):
    """Returns the folder of an existing run."""
    resolved = resolve(Settings(image_size=16, steps=30, weight_decay=0.5))
    resolved.write(tmp_path / "flags.txt")
    return tmp_path


def test_run_keeps_its_own_settings(earlier):
    resolved = resolve(Settings(workdir=earlier, weight_decay=0.25))
    assert (resolved.image_size, resolved.steps) == (16, 30)
    assert resolved.weight_decay == 0.25


def test_explicit_epochs_override_the_steps_of_a_run(earlier):
    resolved = resolve(Settings(workdir=earlier, epochs=2))
    assert (resolved.steps, resolved.epochs) == (None, 2.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_norm", 0.5),
        ("steps", 9),
        ("base_batch_size", 64),
        ("momentum", 0.5),
        ("early_stopping", 3),
        ("virtual_devices", 2),
        ("data_dir", "/data"),
        ("data_service", "grpc://host:5050"),
    ],
)
def test_none_resets_optional_settings_of_a_run(name, value, tmp_path):
    resolve(Settings(**{name: value})).write(tmp_path / "flags.txt")
    resolved = resolve(Settings(workdir=tmp_path))
    assert getattr(resolved, name) == value
    resolved = resolve(Settings(workdir=tmp_path, **{name: "none"}))
    assert getattr(resolved, name) is None
    resolved.write(tmp_path / "flags.txt")
    assert getattr(resolve(Settings(workdir=tmp_path)), name) is None


def test_none_is_rejected_for_required_settings():
    with pytest.raises(UserError, match="--epochs=none: must be"):
        Settings(epochs="none")


@pytest.mark.parametrize("others", [{}, {"steps": 9}, {"learning_rate": 1}])
def test_mistyped_workdir_does_not_become_a_run_of_digits(tmp_path, others):
    resolve(Settings()).write(tmp_path / "S/flags.txt")
    resolve(Settings()).write(tmp_path / "pets-2/flags.txt")
    for name, expected in {
        "S1": f"beside it: {tmp_path}/S. Pass",
        "pets2": f"beside it: {tmp_path}/pets-2. Pass",
        "digits": f"beside it: {tmp_path}/S, {tmp_path}/pets-2. Pass",
        "new/digits": "not an existing run. Pass one, or add --dataset",
    }.items():
        given = Settings(workdir=tmp_path / name, **others)
        with pytest.raises(UserError) as error:
            check_run_or_new(given)
        assert expected in str(error.value)
        assert str(error.value).startswith(f"--workdir={tmp_path / name}: ")
        assert "\n" not in str(error.value)
    # A setting that describes a new run, or an existing run, is accepted.
    for given in ({"dataset": "digits"}, {"model": "resnet18"}):
        check_run_or_new(Settings(workdir=tmp_path / "S1", **given))
    check_run_or_new(Settings(workdir=tmp_path / "S", **others))
    check_run_or_new(Settings(**others))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "resnet18"},
        {"dataset": "oxford_iiit_pet"},
        {"train_split": "train[:50%]"},
        {"eval_split": "train"},
        {"validation_fraction": 0.5},
        {"image_size": 8},
        {"batch_size": 32},
        {"optimizer": "sgd", "seed": 3},
        {"stochastic_depth": 0.1},
        {"weights": "README.md"},
        {"freeze": "backbone"},
        {"frozen_batch_norm": True},
        {"cached_embeddings": True},
        {"normalization": "caffe"},
        {"unfreeze_after_epochs": 2.5},
    ],
    ids=lambda change: [*change][-1],
)
def test_fixed_settings_of_a_run_cannot_change(earlier, change):
    name, value = [*change.items()][-1]
    with pytest.raises(
        UserError, match="new run in another --workdir"
    ) as error:
        resolve(Settings(workdir=earlier, **change))
    assert f"--{name}=" in str(error.value)
    # A new run of the same model may start from the weights.
    suggests_weights = name not in ("model", "weights")
    assert (
        str(error.value).endswith(f"--weights={earlier}.") == suggests_weights
    )
    assert f"{value}" in str(error.value)
    assert "\n" not in str(error.value)


def test_run_on_embeddings_rejects_augmentation(tmp_path):
    resolve(Settings(freeze="backbone")).write(tmp_path / "flags.txt")
    assert resolve(Settings(workdir=tmp_path)).cached_embeddings
    with pytest.raises(UserError, match=f"--weights={tmp_path}"):
        resolve(Settings(workdir=tmp_path, augment="flip"))


def test_paths_of_a_run_may_change_but_not_its_data_set(tmp_path):
    """The content is compared later."""
    (tmp_path / "new").mkdir()
    run = tmp_path / "run"
    resolve(Settings(dataset=tmp_path / "old")).write(run / "flags.txt")
    moved = dict.fromkeys(("dataset", "data_dir"), tmp_path / "new")
    resolved = resolve(Settings(workdir=run, **moved))
    assert {resolved.dataset, resolved.data_dir} == {str(tmp_path / "new")}
    with pytest.raises(UserError, match="has --dataset="):
        resolve(Settings(workdir=run, dataset="cifar10"))


def test_flags_of_a_run_may_be_repeated(earlier):
    given = Settings(
        workdir=earlier, recipe="auto", cache="auto", image_size=16
    )
    assert resolve(given).recipe == "digits"


def test_run_keeps_a_recipe_of_another_data_set(tmp_path):
    given = Settings(recipe="imagenet_goyal2017", weight_average="swa")
    resolve(given).write(tmp_path / "flags.txt")
    again = resolve(Settings(workdir=tmp_path, recipe="auto"))
    assert again.recipe == "imagenet_goyal2017"
    assert again.base_batch_size == 256
    # A --flagfile that repeats settings changes nothing.
    assert resolve(again).texts() == again.texts()


def test_run_resumes_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    resolved = resolve(Settings(dataset="pictures", data_dir="data"))
    assert resolved.dataset == str(tmp_path / "pictures")
    assert resolved.data_dir == str(tmp_path / "data")
    # A named data set stays a name.
    (tmp_path / "digits").mkdir()
    assert resolve(Settings()).dataset == "digits"


def weights_of_timm(folder, architecture="resnet50d", **config):
    """Writes weights with a config beside them, without tensors."""
    path = folder / "model.safetensors"
    save_file({}, path)
    content = {"architecture": architecture, "pretrained_cfg": config}
    (folder / "config.json").write_text(json.dumps(content))
    return path


TIMM = {
    "input_size": [3, 40, 40],
    "crop_pct": 0.95,
    "interpolation": "bicubic",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.5, 0.25],
}


def test_weights_define_the_preprocessing(tmp_path):
    """They override the recipe; explicit settings override them."""
    weights = weights_of_timm(tmp_path, **TIMM)
    resolved = resolve(Settings(weights=weights))
    expected = Normalization((25.5, 51.0, 76.5), (127.5, 127.5, 63.75))
    assert resolved.preprocessing == (expected, 40, 0.95, "bicubic", True)
    resolved = resolve(Settings(weights=weights, image_size=16))
    assert resolved.preprocessing == (expected, 16, 0.95, "bicubic", True)


def test_weights_define_the_model(tmp_path):
    """It overrides the recipe; an explicit model overrides it."""
    weights = weights_of_timm(tmp_path, **TIMM)
    for path in (weights, tmp_path):
        assert resolve(Settings(weights=path)).model == "resnet50d"
    given = Settings(weights=weights, model="resnet50d")
    assert resolve(given).model == "resnet50d"
    with pytest.raises(UserError) as error:
        resolve(Settings(weights=weights, model="resnet50"))
    [line] = str(error.value).splitlines()
    assert f"--weights={weights}" in line
    assert "resnet50d" in line
    assert "--model=resnet50: " in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dataset": "photos"}, GENERIC),
        ({"dataset": "photos", "weights": True}, FINETUNE),
        ({"dataset": "photos", "weights": True, "recipe": "auto"}, FINETUNE),
        ({"dataset": "oxford_iiit_pet", "weights": True}, FINETUNE),
        ({"dataset": "oxford_iiit_pet"}, "oxford_iiit_pet"),
        ({"weights": True}, "digits"),
        ({"dataset": "imagenet2012", "weights": True}, "imagenet2012"),
        ({"dataset": "photos", "weights": True, "recipe": GENERIC}, GENERIC),
        ({"weights": True, "recipe": FINETUNE}, FINETUNE),
    ],
)
def test_weights_replace_recipes_for_random_weights(tmp_path, given, expected):
    if "weights" in given:
        given["weights"] = weights_of_timm(tmp_path, **TIMM)
    assert resolve(Settings(**given)).recipe == expected


def test_run_keeps_its_recipe_beside_weights(tmp_path):
    """As runs that began before there was a recipe for fine-tuning."""
    weights = weights_of_timm(tmp_path, **TIMM)
    run = tmp_path / "run"
    run.mkdir()
    given = Settings(dataset="photos", weights=weights, recipe=GENERIC)
    resolve(given).write(run / "flags.txt")
    again = resolve(Settings(workdir=run, recipe="auto"))
    assert (again.recipe, again.epochs) == (GENERIC, 100)


def test_size_of_the_data_decides_what_is_not_explicit(tmp_path):
    weights = weights_of_timm(tmp_path, **TIMM)
    given = Settings(dataset="photos", weights=weights, learning_rate=0.5)
    resolved = resolve(given)
    few, many = (resolve_by_size(resolved, count) for count in (60, 10**7))
    assert few.learning_rate == many.learning_rate == 0.5
    assert few.epochs > many.epochs
    assert (few.evaluate_every, many.evaluate_every) == (50, None)
    # The numbers are those of the run from then on.
    run = tmp_path / "run"
    run.mkdir()
    few.write(run / "flags.txt")
    again = resolve(Settings(workdir=run))
    assert resolve_by_size(again, 10**7) == dataclasses.replace(
        few, workdir=again.workdir
    )


def test_weights_of_unknown_architecture_are_rejected(tmp_path):
    weights = weights_of_timm(tmp_path, "ecaresnet50d_pruned", **TIMM)
    for given in ({}, {"model": "resnet50"}):
        with pytest.raises(UserError, match="architecture ecaresnet50d_pruned"):
            resolve(Settings(weights=weights, **given))


def test_weights_without_architecture_load_into_any_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    recipe = RECIPES["digits"].settings.model
    assert resolve(Settings(weights=tmp_path)).model == recipe
    given = Settings(weights=tmp_path, model="resnet18")
    assert resolve(given).model == "resnet18"


def test_run_keeps_its_model_when_its_weights_change(tmp_path):
    weights = weights_of_timm(tmp_path, **TIMM)
    run = tmp_path / "run"
    run.mkdir()
    resolve(Settings(weights=weights)).write(run / "flags.txt")
    weights_of_timm(tmp_path, "resnet18", **TIMM)
    assert resolve(Settings(workdir=run)).model == "resnet50d"
    with pytest.raises(UserError, match="has --model=resnet50d"):
        resolve(Settings(workdir=run, model="resnet18"))


def test_preprocessing_stays_with_a_run_and_its_successors(
    tmp_path,
):
    resolved = resolve(Settings(weights=weights_of_timm(tmp_path, **TIMM)))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    resolved.write(run / "flags.txt")
    (run / "checkpoints/ckpt-2.index").touch()
    # The weights are not read again.
    (tmp_path / "model.safetensors").unlink()
    for given in (
        Settings(workdir=run),
        Settings(weights=run),
        Settings(weights=run / "checkpoints/ckpt-2"),
    ):
        assert resolve(given).preprocessing == resolved.preprocessing
        assert resolve(given).model == "resnet50d"
    with pytest.raises(UserError, match="--model=resn.* are of resnet50d"):
        resolve(Settings(weights=run, model="resnet50"))


def test_unsupported_interpolation_is_not_guessed(tmp_path):
    weights = weights_of_timm(tmp_path, **{**TIMM, "interpolation": "lanczos"})
    with pytest.raises(UserError, match="Set --interpolation to"):
        resolve(Settings(weights=weights))
    resolved = resolve(Settings(weights=weights, interpolation="bilinear"))
    assert resolved.preprocessing[1:] == (40, 0.95, "bilinear", True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": "none.h5"}, "none.h5: not found"),
        (
            {"weights": "imagenet", "model": "resnet_tiny"},
            "variant=resnet_tiny: has no weights",
        ),
        ({"weights": "README.md"}, "cannot be read as weights"),
        ({"unfreeze_after_epochs": 3}, "requires --freeze"),
        (
            {"freeze": "stage1", "unfrozen_learning_rate": 0.1},
            "requires --unfreeze_after_epochs",
        ),
        ({"cached_embeddings": True}, "requires --freeze=backbone"),
        (
            {"keep_best": "ema_loss"},
            "requires --weight_average=ema, not none",
        ),
        ({"ema_decay": 0.9}, "requires --weight_average=ema, not none"),
        ({"max_rollbacks": 9}, "requires --on_nonfinite=rollback, not stop"),
        (
            {
                "cached_embeddings": True,
                "freeze": "backbone",
                "augment": ("flip",),
            },
            "without --augment",
        ),
    ],
)
def test_conflicting_settings_are_one_clear_line(
    given, message, pytestconfig, monkeypatch
):
    monkeypatch.chdir(pytestconfig.rootpath)
    with pytest.raises(UserError, match=message) as error:
        resolve(Settings(**given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "cached", "augment"),
    [
        ({}, False, "shift"),
        ({"freeze": "backbone"}, True, ""),
        ({"freeze": "backbone", "augment": "flip"}, False, "flip"),
        ({"freeze": "backbone", "augment": ""}, True, ""),
        ({"freeze": "backbone", "cached_embeddings": False}, False, "shift"),
        ({"freeze": "stage1"}, False, "shift"),
        # Layers that unfreeze later train on augmented images.
        ({"freeze": "backbone", "unfreeze_after_epochs": 1}, True, "shift"),
        (
            {
                "freeze": "backbone",
                "unfreeze_after_epochs": 1,
                "augment": "flip",
                "cached_embeddings": True,
            },
            True,
            "flip",
        ),
    ],
)
def test_embeddings_are_cached_unless_images_are_augmented(
    given, cached, augment
):
    resolved = resolve(Settings(**given))
    assert resolved.cached_embeddings == cached
    assert resolved.texts()["augment"] == augment


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_only_what_differs_from_defaults(name, monkeypatch):
    found = WeightsInfo(pathlib.Path("resnet50.h5"), None, Preprocessing())
    monkeypatch.setattr(resolve_module, "find_weights", lambda *_: found)
    recipe = RECIPES[name]
    assert recipe.settings.over(DEFAULTS) == Settings(
        **{**DEFAULTS.given, **recipe.settings.given}
    )
    assert recipe.source
    assert recipe.result
    assert resolve(Settings(recipe=name)).recipe == name


def test_pets_resolve_to_their_recipe():
    """Every setting of --dataset=oxford_iiit_pet that is not a default."""
    resolved = resolve(Settings(dataset="oxford_iiit_pet"))
    assert {
        name: value
        for name, value in resolved.given.items()
        if value != getattr(DEFAULTS, name)
    } == {
        "dataset": "oxford_iiit_pet",
        "recipe": "oxford_iiit_pet",
        "epochs": 200,
        "cached_embeddings": False,
    }


def test_earlier_name_of_a_recipe_is_resolved(workdir, capsys):
    by_name = resolve(Settings(recipe="oxford_iiit_pet"))
    warn_once.cache_clear()
    assert resolve(Settings(recipe="pets_scratch")) == by_name
    line = (
        "--recipe=pets_scratch: renamed to oxford_iiit_pet. Use the new name."
    )
    assert capsys.readouterr().out == f"warning: {line}\n"
    workdir.mkdir()
    earlier = dataclasses.replace(by_name, recipe="pets_scratch")
    earlier.write(workdir / "flags.txt")
    for recipe in (None, "oxford_iiit_pet", "pets_scratch"):
        resolved = resolve(Settings(workdir=workdir, recipe=recipe))
        assert resolved == dataclasses.replace(by_name, workdir=workdir)
    assert capsys.readouterr().out == ""


def test_weights_of_a_recipe_use_its_model(monkeypatch):
    asked = []

    def find(*names):
        asked.append(names)
        return WeightsInfo(
            pathlib.Path(names[0]),
            None,
            Preprocessing(NORMALIZATIONS["caffe"], None, 0.5),
        )

    monkeypatch.setattr(resolve_module, "find_weights", find)
    resolved = resolve(Settings(recipe="pets_finetune"))
    assert asked == [("imagenet", "resnet50_keras")]
    assert resolved.weights == "imagenet"
    assert resolved.normalization == NORMALIZATIONS["caffe"]
    assert resolved.crop_fraction == 0.5


def test_channels_come_from_weights_unless_explicit(monkeypatch):
    grey = Normalization((117.0,), (57.0,))
    found = WeightsInfo(
        pathlib.Path("grey.safetensors"), "resnet18", Preprocessing(grey)
    )
    monkeypatch.setattr(resolve_module, "find_weights", lambda *_: found)
    resolved = resolve(Settings(weights="grey.safetensors"))
    assert resolved.channels == 1
    assert resolved.preprocessing.normalization == grey
    resolved = resolve(Settings(weights="grey.safetensors", channels=3))
    assert resolved.preprocessing.normalization.mean == (117.0,) * 3
    resolved = resolve(Settings(channels=1))
    [mean] = resolved.preprocessing.normalization.mean
    assert mean == pytest.approx((123.675 + 116.28 + 103.53) / 3)
    assert resolve(Settings()).channels == 3


def test_options_of_another_optimizer_are_rejected():
    given = {"optimizer": "adamw", "learning_rate": 0.001}
    resolved = resolve(Settings(**given, beta_2=0.99))
    assert resolved.beta_2 == 0.99
    message = "--nesterov=True: .* with --optimizer=adamw, which uses --beta"
    with pytest.raises(UserError, match=message):
        resolve(Settings(**given, nesterov=True))
    with pytest.raises(UserError, match="uses --momentum, --nesterov. Remove"):
        resolve(Settings(epsilon=0.1))


def test_learning_rate_of_a_recipe_is_for_its_optimizer():
    message = "--optimizer=adam: requires --learning_rate. .* digits is for sgd"
    with pytest.raises(UserError, match=message):
        resolve(Settings(optimizer="adam"))
    # So are its options.
    recipe = {"recipe": "imagenet_goyal2017", "learning_rate": 0.001}
    assert resolve(Settings(**recipe)).base_batch_size == 256
    resolved = resolve(Settings(**recipe, optimizer="lamb"))
    assert resolved.base_batch_size is None
    recipe = {"recipe": "cifar_he2015", "learning_rate": 2}
    assert resolve(Settings(**recipe)).nesterov is False
    assert resolve(Settings(**recipe, optimizer="lars")).nesterov is None


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/ckpt-3"])
def test_flags_describe_weights_of_an_earlier_run(place, tmp_path):
    """Its `config.json`, if any, has no architecture."""
    checkpoint = tf.train.Checkpoint(model=tf.Variable(1.0))
    checkpoint.write(str(tmp_path / "checkpoints/ckpt-3"))
    flags = tmp_path / "flags.txt"

    def find():
        return locate_weights(Settings(weights=str(tmp_path / place)))

    flags.write_text(
        "--model=resnet50d\n--normalization=1.0:2.0:3.0:4.0:5.0:6.0:bgr\n"
        "--image_size=40\n--crop_fraction=0.95\n--interpolation=bicubic\n"
    )
    normalization = Normalization((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), bgr=True)
    expected = Preprocessing(normalization, 40, 0.95, "bicubic")
    assert find()[1:] == ("resnet50d", expected)
    (tmp_path / "config.json").write_text('{"format_version": 2}')
    assert find()[1:] == ("resnet50d", expected)
    flags.write_text("--normalization=caffe\n")
    assert find()[1:] == (None, Preprocessing(NORMALIZATIONS["caffe"]))
    flags.write_text("--normalization=7:5\n--channels=1\n")
    assert find().preprocessing.normalization == ((7.0,), (5.0,), False)
    flags.write_text("--image_size=many\n")
    with pytest.raises(UserError) as error:
        find()
    assert "\n" not in str(error.value)
    # The config wins.
    write_config(tmp_path / "config.json", "resnet18", ["a"], expected)
    assert find()[1:] == ("resnet18", expected)
