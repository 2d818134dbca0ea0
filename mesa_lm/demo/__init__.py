"""The demo model that ships with the package: a small Llama; `pipelines/development/train_demo_model.py` trained it."""

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
