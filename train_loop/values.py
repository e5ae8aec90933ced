"""Values of settings: their bounds, their choices, and calls as text."""

import functools
import inspect
import math
import pkgutil
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple, get_type_hints

from train_loop import process
from train_loop.errors import UserError, check_choice


class Bounds(NamedTuple):
    """The smallest and the largest number that a value may be."""

    low: float = -math.inf
    high: float = math.inf

    def check(self, what, value):
        """Raises UserError for a number that is not within, or no number.

        Args:
          what: that has the value, such as "--batch_size".
          value: an int or a float.
        """
        if math.isfinite(value) and self.low <= value <= self.high:
            return
        raise UserError(f"{what}={value} is not possible; it takes {self}")

    def __str__(self):
        if self.high < math.inf:
            return f"a number from {self.low:g} to {self.high:g}"
        if self.low > -math.inf:
            return f"a number of at least {self.low:g}"
        return "a number"


class Names(Collection):
    """The names in a table, which is imported when they are asked for.

    Flags can be read without it: what it stands for needs TensorFlow, which
    takes seconds.

    Args:
      place: of the table, "module:TABLE".
      *others: names that are possible besides, in front.
      spelled: "module:function" that makes of a name how it is written.
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
    """A row of a table of functions, with numbers for its parameters.

    As text it is `NAME` or `NAME:NUMBER:NUMBER`, such as `step:0.1:30:60:80`.
    The numbers are the function's `parameters_of`, in the order of its
    signature, which has the defaults of those that are not given.

    A subclass names the `flag` that has such texts, and the `table`, {name:
    function}.
    """

    __slots__ = ()

    flag: ClassVar[str]
    table: ClassVar[Mapping]

    @classmethod
    def parse(cls, text):
        """Returns what a text describes.

        Raises:
          UserError: there is none of that name, or a number is not possible.
        """
        flag, table = cls.flag, cls.table
        name, *numbers = text.strip().split(":")
        check_choice(flag, name, table)
        parameters = list(parameters_of(table[name]).items())
        if takes_more(table[name]):
            parameters += parameters[-1:] * (len(numbers) - len(parameters))
        if len(numbers) > len(parameters):
            raise UserError(
                f"{flag}={text} has {len(numbers)} numbers; it takes "
                f"{call_usage(name, table[name])}, and fewer where the last "
                "ones are left out"
            )
        arguments = []
        for number, (parameter, hint) in zip(numbers, parameters, strict=False):
            kind, [bounds] = hint.__origin__, hint.__metadata__
            try:
                value = kind(number)
            except ValueError as error:
                raise UserError(
                    f"{flag}={text}: {parameter}={number} is not a "
                    f"{'whole ' * (kind is int)}number"
                ) from error
            bounds.check(f"{flag}={text}: {parameter}", value)
            arguments.append(value)
        return cls(name, tuple(arguments))

    def __str__(self):
        return ":".join([self.name, *map(repr, self.arguments)])

    @property
    def row(self):
        """The function, which takes numbers for its parameters."""
        return self.table[self.name]


def parameters_of(function):
    """Returns {name: `Annotated` type} of a function's own parameters."""
    hints = get_type_hints(function, include_extras=True)
    return {
        name: hints[name]
        for name in inspect.signature(function).parameters
        if name in hints
    }


def takes_more(function):
    """Whether the last parameter stands for any number of numbers."""
    *_, last = inspect.signature(function).parameters.values()
    return last.kind is last.VAR_POSITIONAL


def call_usage(name, function):
    """Returns how a call is written, as NAME:NUMBER (its default)."""
    parameters = inspect.signature(function).parameters
    names = list(parameters_of(function))
    if not names:
        return name
    words = ":".join([name, *map(str.upper, names)])
    if takes_more(function):
        words += f":{names.pop().upper()}..."
    defaults = ":".join(f"{parameters[each].default:.3g}" for each in names)
    return f"{words} ({defaults})"
