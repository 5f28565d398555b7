"""A stand-in for VGGish on TensorFlow, for tests of what surrounds the model; ``tests/README.md`` says when to take it.

It is a test double: ``python -m tests.double.command`` is the real command, pool, engine, shards, journal, parity gate
and MLflow, with a worker (``tests.double.worker``) whose session is a page of NumPy.  Nothing in ``runner`` or ``conf``
knows of it.
"""
