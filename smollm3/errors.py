"""What can go wrong that a user can mend.

Every message is one line that names the input and the way out. Each class is also the builtin that a
caller would expect to catch (`ValueError`, `OSError`, ...). The command line prints the message alone.
"""


class SmolLM3Error(Exception):
    """Any error that a user of the package can cause and mend."""


class ConfigError(SmolLM3Error, ValueError):
    """A config.json, or arguments of a config, that contradict themselves or ask for what is not there."""


class CheckpointError(SmolLM3Error, ValueError):
    """A checkpoint file that is missing parts, damaged, unsafe or of the wrong shape."""


class ModelNotFoundError(SmolLM3Error, OSError):
    """A model name that leads to no folder, no file, no cached and no reachable repository."""


class TemplateError(SmolLM3Error, ValueError):
    """A chat template that fails, loops, grows without end or leaves its sandbox."""


class PromptError(SmolLM3Error, ValueError):
    """A prompt or message that cannot be turned into token ids."""


class ContextOverflowError(PromptError):
    """A prompt that, with the tokens asked for, does not fit the model's context."""


class ParameterError(SmolLM3Error, ValueError):
    """An argument outside its range, unknown, or in conflict with another."""


class ConstraintError(ParameterError):
    """A form of an answer that cannot be followed to its end."""


class MissingDependencyError(SmolLM3Error, ImportError):
    """An optional package that the request needs and that is not installed."""


class DeviceError(SmolLM3Error, RuntimeError):
    """A device that was asked for and is not there, or cannot do what was asked."""
