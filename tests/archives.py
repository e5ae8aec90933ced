"""Small archives with the layout of the original data sets."""

import io
import tarfile

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

BREEDS = ("Abyssinian", "beagle", "Persian")


def encode(file_format, seed, channels=3, scale=60):
    """Returns an image file with pixels of 1, 2 and 3 times `scale`."""
    random = np.random.default_rng(seed)
    height, width = random.integers(40, 80, 2)
    pixels = random.integers(1, 4, (height, width, channels), dtype="uint8")
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze() * scale).save(file, file_format)
    return file.getvalue()


def write_tar(path, files, mode="w"):
    """Writes {name: bytes} as an archive."""
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_pets(directory, train=3, test=2):
    """Writes images.tar.gz and annotations.tar.gz as upstream."""
    images, annotations = {}, {}
    lists = {"trainval": [], "test": []}
    labels = {"Abyssinian": 1, "beagle": 5, "Persian": 24}
    for breed in BREEDS:
        species = 2 if breed.islower() else 1
        for number in range(1, train + test + 1):
            name = f"{breed}_{number}"
            part = "trainval" if number <= train else "test"
            lists[part].append(f"{name} {labels[breed]} {species} 1\n")
            images[f"images/{name}.jpg"] = encode("jpeg", len(images))
            annotations[f"annotations/trimaps/{name}.png"] = encode(
                "png", len(images), channels=1, scale=1
            )
            if part == "trainval":
                annotations[f"annotations/xmls/{name}.xml"] = (
                    b"<annotation><size><width>40</width><height>40</height>"
                    b"</size><object><bndbox><xmin>3</xmin><ymin>4</ymin>"
                    b"<xmax>20</xmax><ymax>30</ymax></bndbox></object>"
                    b"</annotation>"
                )
    for part, lines in lists.items():
        annotations[f"annotations/{part}.txt"] = "".join(lines).encode()
    write_tar(directory / "images.tar.gz", images, "w:gz")
    write_tar(directory / "annotations.tar.gz", annotations, "w:gz")


def write_imagenet(directory, train=3, validation=5):
    """Writes the tars of two classes, for training and validation."""
    classes = {}
    for synset in ("n01440764", "n01443537"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for number in range(train):
                content = encode("jpeg", number)
                member = tarfile.TarInfo(f"{synset}_{number}.JPEG")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        classes[f"{synset}.tar"] = file.getvalue()
    write_tar(directory / "ILSVRC2012_img_train.tar", classes)
    write_tar(
        directory / "ILSVRC2012_img_val.tar",
        {
            f"ILSVRC2012_val_{number:08}.JPEG": encode("jpeg", 50 + number)
            for number in range(1, validation + 1)
        },
    )


def expect_archives(directory, set_attribute):
    """Makes TFDS expect these archives instead of the original ones.

    Args:
      directory: folder of the archives.
      set_attribute: `monkeypatch.setattr` of pytest.
    """
    builder = tfds.builder_cls("oxford_iiit_pet")
    url_infos = {
        url: tfds.download.checksums.compute_url_info(directory / info.filename)
        for url, info in builder.url_infos.items()
    }
    set_attribute(builder, "url_infos", url_infos)
