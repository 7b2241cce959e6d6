"""The machines: `runtime.py` connects to Ray and says what the cluster has."""
