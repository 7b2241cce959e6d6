"""Files in, batches out; only `pipeline.py` knows Ray. (This is the project's own package, not Hugging Face's.)"""
