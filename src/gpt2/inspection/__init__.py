"""Looking into the network: what it computes on the way, and what becomes of its text if that is changed.

    model = load_model()
    logits, seen = run_with_cache(model, "Once upon a time")
    seen["blocks.0.attn.hook_pattern"]                      # (1, H, T, T): where each head looks
    run_with_hooks(model, "Once upon a time", ablate_heads([(0, 3)]))

There is one forward pass, that of `gpt2.model`, which shows its activations to whoever asks. `names` says what they are
called, `running` keeps or changes them, `interventions` has the usual changes, `reading`, `induction` and `tracing`
what one reads off them, `pictures` and `page` show it. It runs by the reference engine, on any Keras backend.
"""

from gpt2.inspection.induction import Induction, find_induction, repeated_tokens
from gpt2.inspection.interventions import ablate_heads, ablate_neurons, direction_between, patch, steer
from gpt2.inspection.names import hook_names
from gpt2.inspection.reading import Inspection, Lens, Predictions, inspect, lens_logits, logit_lens, token_losses
from gpt2.inspection.running import Activations, Hook, Hooks, run_with_cache, run_with_hooks, with_hooks
from gpt2.inspection.tracing import patch_effects

__all__ = [
    "Activations",
    "Hook",
    "Hooks",
    "Induction",
    "Inspection",
    "Lens",
    "Predictions",
    "ablate_heads",
    "ablate_neurons",
    "direction_between",
    "find_induction",
    "hook_names",
    "inspect",
    "lens_logits",
    "logit_lens",
    "patch",
    "patch_effects",
    "repeated_tokens",
    "run_with_cache",
    "run_with_hooks",
    "steer",
    "token_losses",
    "with_hooks",
]
