"""Small square pictures, for charts and pages."""

import base64
import io

import PIL.Image
import PIL.ImageOps


def thumbnail(picture, side):
    """Returns the middle square of a picture, `side` pixels wide.

    Args:
      picture: uint8 [height, width, 3].
      side: of the square; a smaller picture is enlarged.
    """
    image = PIL.Image.fromarray(picture)
    return PIL.ImageOps.fit(image, (side, side))


def data_uri(picture, side):
    """Returns a `thumbnail` as text that stands in a page for its file."""
    file = io.BytesIO()
    thumbnail(picture, side).save(file, "jpeg", quality=80)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{encoded}"
