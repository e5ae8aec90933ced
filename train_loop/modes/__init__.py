"""What the program does for the one who starts it, a story each."""

from train_loop.modes.compare import compare
from train_loop.modes.data import look_at_data
from train_loop.modes.evaluate import evaluate
from train_loop.modes.export import export
from train_loop.modes.predict import predict
from train_loop.modes.summary import summarize
from train_loop.modes.train import train

# Name -> function of the `Settings` that were given.
MODES = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "predict": predict,
    "export": export,
    "data": look_at_data,
    "summary": summarize,
}
