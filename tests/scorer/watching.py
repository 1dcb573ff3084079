"""What a training must leave alone, and what the training of a small network is given, without a step of it."""

import json


class Stopped(Exception):
    """The training was about to begin."""


def given_to_training(monkeypatch, module, begin):
    """Begin a training of a module: the keys of the images that it learns from, and what its result depends on."""
    found = []

    def stop(objective, dataset, *rest, depends, **more):
        keys = {item.key for share in dataset.turns for item in share.items}
        found.append((keys, json.dumps(depends)))
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", stop)
        try:
            begin()
        except Stopped:
            return found[0]
    raise AssertionError("it did not train")


def frozen_state(scorer):
    """Give the tensors that residual training must leave as they are, by name."""
    residual = {id(tensor) for tensor in scorer.residual_module().state_dict(keep_vars=True).values()}
    tensors = scorer.state_dict(keep_vars=True).items()
    return {name: tensor for name, tensor in tensors if id(tensor) not in residual}
