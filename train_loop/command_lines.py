"""Command lines of the programs beside `main`, explained by their modules."""

import argparse


def parser_of(program, documentation):
    """Returns a parser whose help is what a module says of itself.

    Args:
      program: what to type.
      documentation: the module's; its first line says what the program does.
    """
    first, *others = documentation.splitlines()
    return argparse.ArgumentParser(
        prog=program,
        description=first,
        epilog="\n".join(others),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
