"""Checkpoints of a training: what it needs to go on as if it had never stopped. Tensors and numbers only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from streamai.errors import ModelError


class Checkpoint:
    """One file, replaced whole at the end of every epoch.

    run: a name of what is trained (model, data, recipe); a file of another run is refused.
    """

    def __init__(self, path: str | Path, run: str) -> None:
        self.path, self.run = Path(path), run

    def write(self, parts: dict, rng: np.random.Generator, noise: torch.Generator, facts: dict) -> None:
        """parts: name -> an object with a state_dict; facts: numbers, strings, lists, dicts, tensors."""
        state = {
            "run": self.run,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            # numbers of 128 bits: as text
            "rng": {k: str(v) for k, v in rng.bit_generator.state["state"].items()},
            "noise": noise.get_state(),
            "torch": torch.get_rng_state(),
            "facts": facts,
        }
        draft = self.path.with_name(self.path.name + ".draft")
        with draft.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        draft.replace(self.path)

    def read(self, parts: dict, rng: np.random.Generator, noise: torch.Generator) -> dict | None:
        """Bring everything to where it was; returns the facts, None when there is no file."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception as e:  # torch raises whatever the damage leads to
            raise ModelError(f"{self.path}: not a checkpoint ({e!r}); remove it to begin anew") from e
        if state["run"] != self.run:
            raise ModelError(f"{self.path} is a checkpoint of {state['run']}; this is {self.run}. Remove it.")
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        inner = rng.bit_generator.state
        inner["state"] = {k: int(v) for k, v in state["rng"].items()}
        rng.bit_generator.state = inner
        noise.set_state(state["noise"])
        torch.set_rng_state(state["torch"])
        return state["facts"]

    def remove(self) -> None:
        """The training is done."""
        self.path.unlink(missing_ok=True)
