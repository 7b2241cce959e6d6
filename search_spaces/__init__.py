"""What may vary, as data: one YAML file per space, and `space.py`, which reads them."""
