"""Reading and writing checkpoints for every model class."""


class PreTrained:
    """Gives a model `from_pretrained` and `save_pretrained`."""
