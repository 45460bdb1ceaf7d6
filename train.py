"""Train a ReID model: `python train.py [PRESET] [--setting value ...]`; see --help."""

import os

from config.cli import parse_train, typed_command
from utils.errors import run


def main() -> None:
    cfg = parse_train(None, os.environ)

    # imported here because torch takes seconds to import, and --help does not need it
    from processor.setup import start_session, training_criterion, training_data, training_model
    from processor.train import train
    from solver import make_optimizer

    with start_session(cfg, typed_command()) as session:  # processes, device, precision, random seed
        data = training_data(cfg, session)  # loaders of the training, query and gallery images
        model = training_model(cfg, session, data)
        criterion = training_criterion(cfg, session, data, model)
        optimizer = make_optimizer(cfg, model, criterion)
        train(cfg, session, data, model, criterion, optimizer)


if __name__ == "__main__":
    run(main)
