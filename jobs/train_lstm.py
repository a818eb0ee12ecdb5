#!/usr/bin/env python
"""Train a recurrent classifier, data-parallel on Ray Train, into a bundle.

  python jobs/train_lstm.py --data runs/tweets --output runs/bilstm
  python jobs/train_lstm.py --data runs/tweets --output runs/bilstm --resume          # go on after a kill
  python jobs/train_lstm.py --data runs/tweets --output runs/big --num-workers 4 --use-gpu --hidden-dim 512

Without --address it runs on an embedded Ray. The last line of stdout is one JSON object; the output folder gets
bundle/, checkpoints/, metrics.jsonl (a line an epoch), metrics.json and curve.png.
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import ValidationError

from jobs.cli import Job
from sentiment.config import RaySettings, TrainSettings, describe
from sentiment.errors import ConfigError
from sentiment.recipes import BILSTM, RECIPES, Recipe, get_recipe


def run(settings: TrainSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Train `settings.recipe` with the fields that were overridden."""
    from jobs.ray_training import train

    recipe = get_recipe(settings.recipe)
    try:
        recipe = Recipe.model_validate({**recipe.model_dump(), **settings.overrides})
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    return train(settings, ray_settings, recipe)


_ABOUT = f"{__doc__}\nRecipes:\n" + "\n".join(f"  {name:<10}{recipe.summary}" for name, recipe in RECIPES.items())
JOB = Job("train_lstm", _ABOUT, TrainSettings, run, overrides=BILSTM)

if __name__ == "__main__":
    sys.exit(JOB.main())
