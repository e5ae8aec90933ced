"""Values of settings: bounds, choices, and functions with numbers."""

import functools
import inspect
import math
import pkgutil
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple, get_type_hints

from train_loop import process
from train_loop.errors import UserError, check_choice


class Bounds(NamedTuple):
    """The smallest and the largest accepted number."""

    low: float = -math.inf
    high: float = math.inf

    def check(self, subject, value):
        """Raises UserError unless a number is finite and within the bounds.

        Args:
          subject: flag or argument with this value, such as "--batch_size".
          value: an int or a float.
        """
        if math.isfinite(value) and self.low <= value <= self.high:
            return
        raise UserError(f"{subject}={value}: must be {self}.")

    def __str__(self):
        if self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        if self.low > -math.inf:
            return f"at least {self.low:g}"
        return "a finite number"


class Names(Collection):
    """The names in a table that is imported at first use.

    Tables may need TensorFlow, which takes seconds to import; flags are
    defined without it.

    Args:
      place: "module:TABLE".
      *others: further names, which come first.
      spelled: "module:function" that formats a name of the table.
    """

    def __init__(self, place, *others, spelled="builtins:str"):
        self.place = place
        self.others = others
        self.spelled = spelled

    @functools.cached_property
    def _names(self):
        process.import_tensorflow()
        table, spell = map(pkgutil.resolve_name, (self.place, self.spelled))
        return (*self.others, *map(spell, table))

    def __contains__(self, name):
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


class _Named(NamedTuple):
    name: str
    arguments: tuple = ()


class Call(_Named):
    """An entry of a table of functions, with numbers for its parameters.

    Its text is `NAME` or `NAME:NUMBER:NUMBER`, such as `step:0.1:30:60:80`.
    The numbers are the function's `parameters_of`, in the order of its
    signature, which has the defaults of omitted ones.

    A subclass sets `flag`, whose texts these are, and `table`, {name:
    function}.
    """

    __slots__ = ()

    flag: ClassVar[str]
    table: ClassVar[Mapping]

    @classmethod
    def parse(cls, text):
        """Returns the call that a text describes.

        Raises:
          UserError: the name is unknown, or a number is not accepted.
        """
        flag, table = cls.flag, cls.table
        name, *numbers = text.strip().split(":")
        check_choice(flag, name, table)
        parameters = list(parameters_of(table[name]).items())
        if accepts_more(table[name]):
            parameters += parameters[-1:] * (len(numbers) - len(parameters))
        if len(numbers) > len(parameters):
            raise UserError(
                f"{flag}={text}: too many numbers ({len(numbers)}). Use "
                f"{call_usage(name, table[name])}; trailing numbers may be "
                "omitted."
            )
        arguments = []
        for number, (parameter, hint) in zip(numbers, parameters, strict=False):
            kind, [bounds] = hint.__origin__, hint.__metadata__
            try:
                value = kind(number)
            except ValueError as error:
                raise UserError(
                    f"{flag}={text}: {parameter}={number} must be "
                    f"{'an integer' if kind is int else 'a number'}."
                ) from error
            bounds.check(f"{flag}={text}: {parameter}", value)
            arguments.append(value)
        return cls(name, tuple(arguments))

    def __str__(self):
        return ":".join([self.name, *map(repr, self.arguments)])

    @property
    def entry(self):
        """The table's function, which accepts numbers for its parameters."""
        return self.table[self.name]


def parameters_of(function):
    """Returns {name: `Annotated` type} of a function's own parameters."""
    hints = get_type_hints(function, include_extras=True)
    return {
        name: hints[name]
        for name in inspect.signature(function).parameters
        if name in hints
    }


def accepts_more(function):
    """Whether the last parameter stands for any number of numbers."""
    *_, last = inspect.signature(function).parameters.values()
    return last.kind is last.VAR_POSITIONAL


def call_usage(name, function):
    """Returns how a call is written: NAME:PARAMETER (its default)."""
    parameters = inspect.signature(function).parameters
    names = list(parameters_of(function))
    if not names:
        return name
    words = ":".join([name, *map(str.upper, names)])
    if accepts_more(function):
        words += f":{names.pop().upper()}..."
    defaults = ":".join(f"{parameters[each].default:.3g}" for each in names)
    return f"{words} ({defaults})"
