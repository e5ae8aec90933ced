"""All error messages of both packages, from their source.

    python tests/messages.py

prints them as one page, to be read aloud.
"""

import ast
import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
# Package -> its exceptions for mistakes of a user.
EXCEPTIONS = {
    "train_loop": {"UserError"},
    "resnet_layers": {"ValueError", "TypeError"},
}


class Message(NamedTuple):
    """The text of an error, with {EXPRESSION} for what is filled in."""

    file: str
    line: int
    text: str


def collect_messages():
    """Returns every `Message` that is written where an error is raised."""
    return [
        message
        for package, exceptions in EXCEPTIONS.items()
        for path in sorted((ROOT / package).rglob("*.py"))
        for message in _messages_in(path, exceptions)
    ]


def _messages_in(path, exceptions):
    file = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        if getattr(node.func, "id", None) in exceptions:
            text = _text_of(node.args[0])
            if text:
                yield Message(file, node.lineno, text)


def _text_of(node):
    """Returns a text with {EXPRESSION}; "" for one that is made elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr():
            return "".join(
                part.value
                if isinstance(part, ast.Constant)
                else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
            )
        case ast.BinOp(op=ast.Add()):
            return _text_of(node.left) + _text_of(node.right)
    return ""


if __name__ == "__main__":
    for message in collect_messages():
        print(f"{message.file}:{message.line}\n    {message.text}")
