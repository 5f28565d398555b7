"""The worker: the fresh process that owns TensorFlow for one run.

    python -m runner.worker SPEC.json

Everything is imported under the guard, because each decode process imports this module anew (spawn does that with the
main module) and has no need of any of it.
"""

if __name__ == "__main__":
    import sys

    from runner.embed_run import main

    sys.exit(main(sys.argv[1]))
