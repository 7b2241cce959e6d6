"""The frozen experiment tree, its YAML files, and the override words that change it."""
