"""Which names of the model a request may use: the one that is served, or its last part."""

from smollm3.server.errors import NotFoundError
from smollm3.server.service import Service


def check_model(service: Service, name: str) -> None:
    """Raise NotFoundError unless `name` is the served model's, or its last part."""
    if name not in (service.model_id, service.model_id.rsplit("/", 1)[-1]):
        raise NotFoundError(
            f"model: there is no {name!r} here: this server has {service.model_id!r}",
            param="model",
            code="model_not_found",
        )
