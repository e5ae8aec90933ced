"""The command line, as `python -m train_loop`: see `main.py`."""

from train_loop.main import run_program

if __name__ == "__main__":
    run_program()
