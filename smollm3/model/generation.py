"""Generation for the causal model."""


class GenerationMixin:
    """Gives a causal model `generate`."""
