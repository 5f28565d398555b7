"""For the processes of a Ray that the double's worker starts: where an actor's module is loaded, the double is, too.

Python imports this module at the start of each process that has its folder on ``PYTHONPATH``.
"""

import sys


class _BeforeActors:
    """Finds ``runner.engines.ray.actor`` as Python does, but for what is done before."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "runner.engines.ray.actor":
            sys.meta_path.remove(_BeforeActors)
            from tests.double.framework import take_the_place_of_tensorflow

            take_the_place_of_tensorflow()


sys.meta_path.insert(0, _BeforeActors)
