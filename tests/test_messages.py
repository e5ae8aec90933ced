"""Error messages: one form, plain words."""

import re

import pytest
from messages import collect_messages

# Words that stand for nothing, or that the field has other words for.
FILLERS = (
    "that there is",
    "of no use",
    "is not possible",
    "leave it out",
    "leave the flag out",
    "nobody",
    "whoever",
    "refuse",
    "go on",
    "goes on",
    "given",
    "told",
    "takes",
    "picture",
    "beyond all reason",
    "of this name",
)
# A flag, an argument, a path or another value, and a colon; or another error.
SUBJECT = re.compile(r"(--|\{|[a-zA-Z_.`\"'\[]).*?: |\{(str\()?(error|reason)")
# Their errors are reasons, which a message about the file contains.
REASONS = (
    "resnet_layers/weights/architectures.py",
    "resnet_layers/weights/pickles.py",
    "resnet_layers/weights/preprocessing.py",
)
MESSAGES = collect_messages()
COMPLETE = [m for m in MESSAGES if m.file not in REASONS]


def test_messages_are_found():
    assert len(MESSAGES) > 150
    files = {message.file for message in MESSAGES}
    assert {"train_loop/settings.py", "resnet_layers/arguments.py"} <= files


@pytest.mark.parametrize("filler", FILLERS)
def test_messages_have_no_filler(filler):
    texts = [re.sub(r"\{.*?\}", "", message.text) for message in MESSAGES]
    assert not [text for text in texts if re.search(rf"\b{filler}", text)]


def test_messages_name_their_subject_first():
    assert not [m for m in COMPLETE if not SUBJECT.match(m.text)]


def test_messages_end_with_a_sentence():
    """The last one says what to do, where the text does not end in a list."""
    ends = (".", "?", "}")
    assert not [m for m in COMPLETE if not m.text.endswith(ends)]


def test_messages_are_one_line_and_short():
    for message in MESSAGES:
        assert "\n" not in message.text
        words = re.sub(r"\{.*?\}", "X", message.text).split()
        assert len(words) <= 60, message
