"""Every error that this package raises on purpose, in one tree.

    GPT2Error
    ├── ConfigError (ValueError)          a setting is out of range or of the wrong kind
    ├── CodecError (ValueError)           text or tokens that cannot be encoded or decoded, or a broken vocabulary
    ├── PromptError (ValueError)          a prompt that the model cannot be given
    │   └── ContextLengthError            ... because it is longer than the context
    ├── CheckpointError                   a model on disk that cannot be read or written
    │   ├── CheckpointNotFoundError (FileNotFoundError)
    │   ├── CheckpointFormatError         not a checkpoint, a broken file, or a format that is refused
    │   └── TensorMismatchError           tensors missing, unexpected, misshapen or not finite
    ├── ModelNameError (ValueError)       a model's name that the store does not accept or does not know
    │   ├── NameTakenError                a name that something else has already
    │   └── ModelLockedError              a model that somebody else is writing now
    ├── ModelInUseError                   a model that cannot be closed, since requests use it
    ├── DownloadError                     the network or the server failed; trying again may help
    │   └── IntegrityError                what arrived is not what was asked for; trying again will not help
    ├── TrainingError                     training data or a training run that cannot go on
    ├── EvaluationError                   a test set that cannot be read, or runs that cannot be compared
    ├── JobError                          no such training job or uploaded file
    │   └── JobStateError                 a job that cannot do this in its state
    ├── CompressionError                  a compressed file that is broken, or that this model cannot expand
    ├── CacheFullError                    more rows at once than the engine's cache holds
    ├── QueueFullError                    more requests wait than a scheduler takes
    ├── CancelledError                    a request that was given up, or whose scheduler was closed
    └── GenerationError                   logits that no token can be chosen from, such as NaN

Whoever calls this package and wants to catch all of it catches `GPT2Error`. Messages name the argument or the file,
what was expected and what came. Anything else that escapes is a bug.
"""

from __future__ import annotations


class GPT2Error(Exception):
    """The root of all errors that this package raises on purpose."""


class ConfigError(GPT2Error, ValueError):
    """A setting is out of range or of the wrong kind."""


class CodecError(GPT2Error, ValueError):
    """Text or tokens that cannot be encoded or decoded, or a vocabulary that cannot be read."""


class PromptError(GPT2Error, ValueError):
    """A prompt that the model cannot be given."""


class ContextLengthError(PromptError):
    """A prompt, or a prompt and its continuation, longer than the model's context."""


class CheckpointError(GPT2Error):
    """A model on disk that cannot be read or written."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is nothing at that path."""


class CheckpointFormatError(CheckpointError):
    """Not a checkpoint, a broken file, or a format that is refused."""


class TensorMismatchError(CheckpointError):
    """Tensors are missing, unexpected, misshapen or not finite; the message lists all of them."""


class ModelNameError(GPT2Error, ValueError):
    """A model's name that the store does not accept or does not know."""


class NameTakenError(ModelNameError):
    """A name that something else has already."""


class ModelLockedError(ModelNameError):
    """Somebody else is writing the model of that name now."""


class ModelInUseError(GPT2Error):
    """A model cannot be closed while requests use it."""


class JobError(GPT2Error):
    """There is no such training job, or no such uploaded file."""


class JobStateError(JobError):
    """A training job cannot do what is asked of it in its state."""


class DownloadError(GPT2Error):
    """The network or the server failed; trying again may help."""


class IntegrityError(DownloadError):
    """What arrived is not what was asked for (hash, size or kind); trying again will not help."""


class TrainingError(GPT2Error):
    """Training data that cannot be used, or a training run that cannot go on."""


class EvaluationError(GPT2Error):
    """A test set that cannot be read or scored, or evaluations that cannot be compared."""


class CompressionError(GPT2Error):
    """A compressed file is broken, foreign, or made with another model, engine or version than is here."""


class GenerationError(GPT2Error):
    """The model gave logits that no token can be chosen from: NaN, or -inf for every token."""


class CacheFullError(GPT2Error):
    """More rows of tokens at once than the engine's cache has memory for; fewer or shorter ones fit."""


class QueueFullError(GPT2Error):
    """More requests wait than a scheduler takes; later there may be room."""


class CancelledError(GPT2Error):
    """A request was given up, or its scheduler was closed, before its text was finished."""
