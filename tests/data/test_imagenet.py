"""The words for ImageNet's classes, where TFDS keeps them apart."""

from train_loop.data import imagenet


def test_classes_are_called_by_words_with_the_id_behind():
    names = imagenet.class_names()
    assert len(set(names)) == len(names) == 1000
    # As in keras.applications' imagenet_class_index.json.
    assert names[0] == "tench (n01440764)"
    assert names[1] == "goldfish (n01443537)"
    assert names[134] == "crane (bird) (n02012849)"
    assert names[281] == "tabby (n02123045)"
    assert names[638:640] == ["maillot (n03710637)", "maillot (n03710721)"]
    assert names[999] == "toilet tissue (n15075141)"


def test_other_names_stay_as_they_are():
    names = ["n01443537", "goldfish", "n99999999"]
    assert imagenet.in_words(names) == ["goldfish (n01443537)", *names[1:]]
    assert imagenet.in_words([]) == []
