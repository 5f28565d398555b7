"""Settings that NumPy and TensorFlow read when they are imported, which this package is before them."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: their threads don't add up
    os.environ |= dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
