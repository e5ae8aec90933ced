"""The names in tables that take long to import."""

import functools
import pkgutil
from collections.abc import Collection

from train_loop import environment


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
        environment.import_tensorflow()
        table, spell = map(pkgutil.resolve_name, (self.place, self.spelled))
        return (*self.others, *map(spell, table))

    def __contains__(self, name):
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)
