#!/usr/bin/env python
"""Train a recurrent or bag-of-words classifier, data-parallel on Ray Train, into a bundle.

  python jobs/train_lstm.py --output runs/tweets                              # on runs/sentiment140, recipe tweets
  python jobs/train_lstm.py --output runs/bigru --recipe bigru                # on runs/imdb; fetches GloVe 100d
  python jobs/train_lstm.py --output runs/bigru --recipe bigru --vectors glove.6B.50d.txt
  python jobs/train_lstm.py --output runs/tweets --resume                     # go on after a kill
  python jobs/train_lstm.py --data runs/reviews --output runs/big --num-workers 4 --use-gpu --hidden-dim 512

Without --address it runs on an embedded Ray. The last line of stdout is one JSON object; the output folder gets
bundle/, checkpoints/, metrics.jsonl (a line an epoch), metrics.json and curve.png.
"""

from __future__ import annotations

import sys
from typing import Any

from sentiment.cli import Job
from sentiment.recipe import BagRecipe, RecurrentRecipe
from sentiment.recipes import RECIPES, get_recipe
from sentiment.settings import RaySettings, TrainSettings


def run(settings: TrainSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Train `settings.recipe` with the fields that were overridden."""
    from jobs.ray_training import Plan, train
    from jobs.word_run import WordRun, with_vectors

    recipe = get_recipe(settings.recipe).with_overrides(settings.overrides)

    def plan_for(data: str) -> Plan:
        run = WordRun(
            recipe=recipe,
            data=data,
            seed=settings.seed,
            precision=settings.precision,
            checkpoint_steps=settings.checkpoint_steps,
        )
        return Plan(run, complete=lambda: with_vectors(run))

    return train(settings, ray_settings, recipe, plan_for)


_ABOUT = f"{__doc__}\nRecipes:\n" + "\n".join(f"  {name:<17}{recipe.summary}" for name, recipe in RECIPES.items())
JOB = Job("train_lstm", _ABOUT, TrainSettings, run, overrides=(RecurrentRecipe, BagRecipe))

if __name__ == "__main__":
    sys.exit(JOB.main())
