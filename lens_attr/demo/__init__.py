"""Demo models, and the sentence generator that they were trained on.

Importing this package is cheap: neither torch nor transformers is loaded.
"""

from pathlib import Path

from lens_attr.demo.grammar import TASKS, generate

_MODELS = Path(__file__).parent / "models"

DEMO_MODELS: dict[str, Path] = {
    name: _MODELS / name for name in ("demo-gpt2", "demo-llama", "demo-bert")
}

__all__ = ["DEMO_MODELS", "TASKS", "generate"]
