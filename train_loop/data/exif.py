"""EXIF orientation of images, read with TensorFlow operations.

Cameras store the pixels in the order of the sensor, with an orientation from 1
to 8: how to rotate and flip them. 1 is upright; 5 to 8 swap rows and columns.

A missing or damaged orientation is 1, as in Pillow. Unlike in Pillow, an
orientation in XMP metadata is ignored.

Source: CIPA DC-008, Exif 2.32, tag 0x0112.
"""

import tensorflow as tf

# By orientation: whether the rows or the columns of the upright image are
# reversed, after rows and columns have been swapped.
ROWS_REVERSED = (0, 0, 0, 1, 1, 0, 0, 1, 1)
COLUMNS_REVERSED = (0, 0, 1, 1, 0, 0, 1, 1, 0)
FIRST_SWAPPED = 5

# JPEG markers: of the segments that can precede EXIF (application data such as
# JFIF, and comments), of EXIF, and of the first segment after the metadata.
APPLICATION, COMMENT = (0xE0, 0xEF), 0xFE
JFIF = b"\xff\xe0\x00\x10"
EXIF, EXIF_NAME = b"\xff\xe1", b"Exif\0\0"
QUANTIZATION = b"\xff\xdb"
# PNG: position after the signature and the first chunk.
SECOND_CHUNK = 33
TAG = 0x0112
# Types of the tag's value: 16 and 32 bits.
SHORT, LONG = 3, 4
# A segment has space for this many entries of 12 bytes.
MAX_ENTRIES = 5461


def as_call(function):
    """Returns a function that is a single operation in a graph.

    If it were inlined in a `tf.cond`, the executor would visit each of its
    operations for every image, even for images that do not need them.
    """
    return tf.function(
        function,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def is_plain_jpeg(encoded):
    """Whether a JPEG file has only the JFIF header before the image data.

    Most files are like this: they have no metadata, and the check is fast.
    """
    parts = tf.strings.substr(_head(encoded), [2, 20], [4, 2])
    return tf.reduce_all(parts == [JFIF, QUANTIZATION])


def is_plain_png(encoded):
    """Whether a PNG file has neither metadata nor transparency."""
    parts = tf.strings.substr(_head(encoded), [25, 37], [1, 4])
    return tf.reduce_any(
        tf.reduce_all(parts == [[b"\0", b"IDAT"], [b"\2", b"IDAT"]], axis=1)
    )


def jpeg_orientation(encoded):
    """Returns the orientation of a JPEG file, int32 from 1 to 8.

    Args:
      encoded: scalar string. The search for EXIF stops at the first segment
        that is neither application data nor a comment.
    """
    # Cameras write EXIF first; programs write it after JFIF.
    is_here = tf.reduce_all(
        tf.strings.substr(
            _head(encoded), [[2, 6, 2], [2, 20, 24]], [[2, 6, 0], [4, 2, 6]]
        )
        == [[EXIF, EXIF_NAME, b""], [JFIF, EXIF, EXIF_NAME]],
        axis=1,
    )
    position = tf.cond(
        tf.reduce_any(is_here),
        lambda: tf.where(is_here[0], 2, 20),
        lambda: _find_exif(encoded),
    )
    return tf.cond(
        position > 0,
        lambda: _tiff_orientation(encoded, position + 10),
        lambda: 1,
    )


@as_call
def _find_exif(encoded):
    """Returns the position of the EXIF segment in a JPEG file, or -1."""

    def is_before_exif(position, segment):
        del position
        kind = segment[1]
        is_application = (kind >= APPLICATION[0]) & (kind <= APPLICATION[1])
        return (
            (segment[0] == 0xFF)
            & (is_application | (kind == COMMENT))
            & ~is_exif(segment)
        )

    def is_exif(segment):
        return tf.reduce_all(
            tf.gather(segment, [0, 1, 4, 5, 6, 7, 8, 9]) == [*EXIF, *EXIF_NAME]
        )

    def next_segment(position, segment):
        position += 2 + segment[2] * 256 + segment[3]
        return position, _numbers(encoded, position, 10)

    position, segment = tf.while_loop(
        is_before_exif,
        next_segment,
        # After the marker for the start of the image.
        (tf.constant(2), _numbers(encoded, 2, 10)),
    )
    return tf.where(is_exif(segment), position, -1)


def png_orientation_and_transparency(encoded):
    """Returns the orientation and the transparency of a PNG file.

    Args:
      encoded: scalar string.

    Returns:
      (orientation, int32 from 1 to 8; whether pixels can be transparent, bool).
    """

    def kind_of(position):
        start = tf.minimum(position + 4, tf.strings.length(encoded))
        return tf.strings.substr(encoded, start, 4)

    def is_before_pixels(position, exif, is_transparent):
        del exif, is_transparent
        kind = kind_of(position)
        is_end = (kind == b"IDAT") | (kind == b"IEND") | (kind == b"")
        return ~is_end & (position > 0)

    def next_chunk(position, exif, is_transparent):
        kind = kind_of(position)
        first, *others = tf.unstack(_numbers(encoded, position, 4))
        length = first
        for byte in others:
            length = length * 256 + byte
        return (
            # A length above 31 bits is damaged and becomes negative.
            position + 12 + length,
            tf.where(kind == b"eXIf", position + 8, exif),
            is_transparent | (kind == b"tRNS"),
        )

    color_type = _numbers(encoded, 25, 1)[0]
    _, exif, is_transparent = tf.while_loop(
        is_before_pixels,
        next_chunk,
        (
            tf.constant(SECOND_CHUNK),
            tf.constant(0),
            tf.bitwise.bitwise_and(color_type, 4) > 0,
        ),
    )
    orientation = tf.cond(
        exif > 0, lambda: _tiff_orientation(encoded, exif), lambda: 1
    )
    return orientation, is_transparent


def stored_window(window, orientation, shape):
    """Converts a window of the upright image to the stored pixels.

    Args:
      window: maps the shape of the upright image to (top, left, height, width).
      orientation: int32 from 1 to 8.
      shape: int32 [3], shape of the stored image.

    Returns:
      (top, left, height, width).
    """
    swapped = orientation >= FIRST_SWAPPED
    upright = tf.where(swapped, tf.gather(shape, [1, 0, 2]), shape)
    top, left, height, width = window(upright)
    from_bottom = tf.gather(ROWS_REVERSED, orientation) > 0
    from_right = tf.gather(COLUMNS_REVERSED, orientation) > 0
    top = tf.where(from_bottom, upright[0] - top - height, top)
    left = tf.where(from_right, upright[1] - left - width, left)
    box = tf.stack([top, left, height, width])
    box = tf.where(swapped, tf.gather(box, [1, 0, 3, 2]), box)
    return tf.unstack(box)


def rotate_upright(image, orientation):
    """Rotates and flips stored pixels, [height, width, channels], upright."""

    @as_call
    def rotated(image, orientation):
        image = tf.cond(
            orientation >= FIRST_SWAPPED,
            lambda: tf.transpose(image, [1, 0, 2]),
            lambda: image,
        )
        for axis, is_reversed in enumerate((ROWS_REVERSED, COLUMNS_REVERSED)):
            image = tf.cond(
                tf.gather(is_reversed, orientation) > 0,
                lambda image=image, axis=axis: tf.reverse(image, [axis]),
                lambda image=image: image,
            )
        return image

    return tf.cond(
        orientation > 1, lambda: rotated(image, orientation), lambda: image
    )


@as_call
def _tiff_orientation(encoded, start):
    """Returns the orientation in the TIFF structure at `start`."""

    def read(little_endian):
        def words(position, count):
            """Returns 16-bit integers, int32 [count]."""
            return _numbers(encoded, position, count, tf.uint16, little_endian)

        def long(first, second):
            """Returns the 32-bit integer of two words."""
            low, high = (first, second) if little_endian else (second, first)
            return low + 65536 * high

        directory = start + long(*tf.unstack(words(start + 4, 2)))
        count = tf.clip_by_value(words(directory, 1)[0], 1, MAX_ENTRIES)
        entries = tf.reshape(words(directory + 2, 6 * count), [count, 6])
        tag, kind, _, _, *value = tf.unstack(entries, axis=1)
        is_short, is_long = kind == SHORT, kind == LONG
        values = tf.where(is_short, value[0], long(*value))
        is_orientation = (tag == TAG) & (is_short | is_long)
        # The first value counts; values outside 1 to 8 are invalid.
        found = tf.boolean_mask(values, is_orientation)
        found = tf.concat([found, [1]], axis=0)[0]
        return tf.where((found >= 1) & (found <= 8), found, 1)

    start = tf.clip_by_value(start, 0, tf.strings.length(encoded))
    head = tf.strings.substr(encoded, start, 4)
    return tf.case(
        [
            (head == b"II*\0", lambda: read(little_endian=True)),
            (head == b"MM\0*", lambda: read(little_endian=False)),
        ],
        default=lambda: 1,
    )


def _head(encoded, size=48):
    """Returns the first bytes of a file, padded with zeros.

    Past the end of a string, `substr` fails, and its message contains bytes
    that TensorFlow itself cannot decode.
    """
    return tf.strings.substr(encoded, 0, size) + bytes(size)


def _numbers(encoded, position, count, dtype=tf.uint8, little_endian=True):
    """Returns integers of a file, int32 [count]; 0 past the end."""
    size = count * dtype.size
    start = tf.clip_by_value(position, 0, tf.strings.length(encoded))
    part = tf.strings.substr(encoded, start, size)
    return tf.cast(
        tf.io.decode_raw(part, dtype, little_endian, fixed_length=size),
        tf.int32,
    )
