"""One name for one thing: what two rooms both call by a name is one object."""

import importlib
import inspect

ROOMS = ("core", "integrate", "train", "nn", "metrics", "data", "matching", "particles", "dmft", "hopfield",
         "hopfield.theory", "recipes")  # fmt: skip


def test_a_name_means_one_thing_in_all_rooms():
    meanings = {}
    for room in ROOMS:
        for name, thing in vars(importlib.import_module(f"physml.{room}")).items():
            if not name.startswith("_") and not inspect.ismodule(thing):
                meanings.setdefault(name, {})[id(thing)] = room
    assert len(meanings) > 400
    double = {name: sorted(rooms.values()) for name, rooms in meanings.items() if len(rooms) > 1}
    assert not double
