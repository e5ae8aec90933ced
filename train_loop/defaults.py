"""What every setting is where nobody gives it, and no recipe."""

from dataclasses import fields

from train_loop.settings import Settings


def _defaults(of_modes):
    return Settings(
        **{
            field.name: field.metadata["default"]
            for field in fields(Settings)
            if bool(field.metadata["modes"]) == of_modes
        }
    )


# Of a run, and of what is asked of the modes that ask for more.
DEFAULTS = _defaults(of_modes=False)
MODE_DEFAULTS = _defaults(of_modes=True)
