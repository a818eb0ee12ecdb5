"""Which runs `jobs/reproduce.py` plans, and what it refuses before any of them begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reproduction.runs import Planned, plan
from jobs import reproduce
from sentiment.config import load
from sentiment.errors import ConfigError, DataError
from sentiment.settings import RaySettings, ReproduceSettings
from sentiment.training.recipes import RECIPES, get_recipe, twin_of

Make = Callable[..., str]


@pytest.fixture(autouse=True)
def in_an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout's ray_config.yaml takes no part."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Fake a prepared folder; gives its path, which is relative."""

    def make(name: str, **rows: int) -> str:
        (tmp_path / name).mkdir()
        splits = {
            split: {"rows": rows.get(split, 10), "negative": 4, "positive": 6}
            for split in ("train", "validation", "test")
        }
        (tmp_path / name / "manifest.json").write_text(json.dumps({"inputs": [{"sha256": name}], "splits": splits}))
        (tmp_path / name / "tokenizer.json").write_text("{}")
        return name

    return make


def planned(**settings: Any) -> list[Planned]:
    return plan(load(ReproduceSettings, {"baseline": False, **settings}))


def named(runs: list[Planned]) -> list[tuple[str, str, int | None]]:
    return [(run.dataset, run.recipe.name if run.recipe else "-", run.seed) for run in runs]


def distinct(dataset: str | None = None) -> list[str]:
    """Recipes that need runs of their own, in their order."""
    recipes = [recipe for recipe in RECIPES.values() if dataset in (None, recipe.dataset)]
    return list(dict.fromkeys(twin_of(recipe).name for recipe in recipes))


def test_each_recipe_runs_on_its_own_data(make: Make) -> None:
    runs = named(planned(imdb=make("films"), sentiment140=make("tweets"), seeds=[1]))
    expected = [(get_recipe(name).dataset, name, 1) for name in distinct()]
    assert runs == expected
    assert {dataset for dataset, _, _ in runs} == {"imdb", "sentiment140"}


def test_recipes_without_data_are_left_out_unless_named(make: Make) -> None:
    tweets = make("tweets")
    assert {name for _, name, _ in named(planned(sentiment140=tweets))} == set(distinct("sentiment140"))
    with pytest.raises(ConfigError, match="recipe lstm is for imdb: give --imdb, or --datasets all"):
        planned(sentiment140=tweets, recipes=["tweets", "lstm"])


def test_every_recipe_on_all_data(make: Make) -> None:
    films, tweets = make("films"), make("tweets")
    runs = named(planned(imdb=films, sentiment140=tweets, seeds=[1], datasets="all"))
    # In one order on any day: what stands first in a queue of days is seen first.
    assert runs == [(dataset, name, 1) for name in distinct() for dataset in ("imdb", "sentiment140")]
    assert named(planned(imdb=films, seeds=[1], datasets="all")) == [("imdb", name, 1) for name in distinct()]
    assert named(planned(sentiment140=tweets, recipes=["lstm"], seeds=[1], datasets="all")) == [
        ("sentiment140", "lstm", 1)
    ]


def test_seeds_times_recipes(make: Make) -> None:
    runs = planned(imdb=make("films"), recipes=["lstm", "bigru"], seeds=[3, 1, 3])
    assert named(runs) == [("imdb", name, seed) for name in ("lstm", "bigru") for seed in (3, 1)]
    assert len({run.folder for run in runs}) == len(runs)


def test_recipes_that_only_differ_in_name_share_runs(make: Make) -> None:
    films = make("films")
    runs = planned(imdb=films, recipes=["bilstm-packed", "bilstm"], seeds=[1, 2])
    assert named(runs) == [("imdb", "bilstm", 1), ("imdb", "bilstm", 2)]
    assert named(planned(imdb=films, recipes=["bilstm-packed"], seeds=[1])) == [("imdb", "bilstm", 1)]


def test_baseline_is_a_run_for_each_dataset(make: Make) -> None:
    runs = planned(imdb=make("films"), sentiment140=make("tweets"), recipes=["lstm"], seeds=[1], baseline=True)
    assert named(runs) == [("imdb", "-", None), ("sentiment140", "-", None), ("imdb", "lstm", 1)]
    assert [run.label for run in runs] == ["imdb tf-idf", "sentiment140 tf-idf", "imdb lstm seed 1"]


def test_places_are_absolute(make: Make, tmp_path: Path) -> None:
    """Tasks may stand elsewhere."""
    [run] = planned(imdb=make("films"), recipes=["lstm"], seeds=[4], output="out")
    assert run.data == str(tmp_path / "films")
    assert run.folder == tmp_path / "out/imdb/lstm/seed-4"


def test_vectors_replace_vectors_only(make: Make) -> None:
    runs = planned(
        imdb=make("films"),
        sentiment140=make("tweets"),
        recipes=["rnn", "bilstm", "glove-mlp"],
        seeds=[1],
        vectors="a.b",
    )
    recipes = [run.recipe for run in runs if run.recipe]
    assert [recipe.vectors for recipe in recipes] == [None, "a.b", "a.b"]
    for recipe in recipes:
        own = get_recipe(recipe.name)
        assert recipe.model_copy(update={"vectors": own.vectors}) == own
    [run] = planned(imdb="films", recipes=["bilstm"], seeds=[1])
    assert run.recipe == get_recipe("bilstm")


@pytest.mark.parametrize("name", ["bilstms", "bi-lstm", "bilsmt"])
def test_unknown_recipe_names_near_ones(make: Make, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown recipe '{name}' .*: did you mean .*bilstm"):
        planned(imdb=make("films"), recipes=["lstm", name])


def test_no_data_at_all() -> None:
    with pytest.raises(ConfigError, match="nothing to train on: give --imdb, --sentiment140 or both"):
        planned(recipes=["lstm"])


def test_data_that_cannot_be_trained_on(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no prepared data"):
        planned(imdb="nowhere")
    for split in ("train", "validation", "test"):
        with pytest.raises(DataError, match=f"no-{split} has no {split} rows"):
            planned(imdb=make(f"no-{split}", **{split: 0}))
    (tmp_path / make("scored") / "manifest.json").write_text('{"rows_in": 3}')
    with pytest.raises(DataError, match=r"scored was written by another job; give what `sentiment prepare` wrote"):
        planned(sentiment140="scored")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1, -1]}, "--seeds"),
        ({"seeds": []}, "--seeds"),
        ({"max_lengths": [0]}, "--max-lengths"),
        ({"output": "s3://bucket/runs"}, "--output s3://bucket/runs"),
        ({"report": "memory://results"}, "--report memory://results"),
    ],
)
def test_settings_that_do_not_fit(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(imdb=make("films"), **settings)


def test_vectors_are_missed_before_anything_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.reproduction.runs.ray_session", lambda _: pytest.fail("Ray was started"))
    flags = ["--imdb", make("films"), "--recipes", "rnn", "lstm", "--vectors", "glove.6B.50"]
    assert reproduce.JOB.main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing was run: imdb lstm seed 1: no vectors 'glove.6B.50'" in captured.err
    assert not Path("docs").exists()


def test_finished_runs_need_neither_vectors_nor_ray(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reproduction.runs.ray_session", lambda _: pytest.fail("Ray was started"))
    monkeypatch.setattr("benchmarks.reproduction.runs.write_report", lambda output, report: report)
    flags = {"imdb": make("films"), "recipes": ["rnn", "lstm"], "seeds": [1, 2], "vectors": "gone.txt"}
    runs = planned(**flags)
    for run in runs:
        run.folder.mkdir(parents=True)
        (run.folder / "run.json").write_text(json.dumps(run.identity("auto")))
        (run.folder / "result.json").write_text(json.dumps({"identity": run.identity("auto")}))
    settings = load(ReproduceSettings, {"baseline": False, **flags})
    result = reproduce.JOB.run(settings, load(RaySettings, {}))
    assert (result["runs_kept"], result["runs_done"]) == (4, 0)


@pytest.mark.parametrize("change", [{"seed": 2}, {"recipe": "bigru"}, {"imdb": "others"}])
def test_what_was_made_of_something_else_is_not_finished(make: Make, change: dict[str, Any]) -> None:
    make("films"), make("others")
    about: dict[str, Any] = {"imdb": "films", "seed": 1, "recipe": "lstm"}

    def run_of(imdb: str, seed: int, recipe: str) -> Planned:
        [run] = planned(imdb=imdb, seeds=[seed], recipes=[recipe])
        return run

    run, other = run_of(**about), run_of(**{**about, **change})
    run.folder.mkdir(parents=True)
    assert not run.finished(run.identity("auto"))
    (run.folder / "result.json").write_text(json.dumps({"identity": run.identity("auto"), "a": 1}))
    assert run.finished(run.identity("auto"))
    assert not run.finished(other.identity("auto"))


def test_runs_of_other_data_are_not_replaced_unasked(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("films"), make("others")
    [run] = planned(imdb="films", recipes=["rnn"], seeds=[1])
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps(run.identity("auto")))
    (run.folder / "checkpoint-0001").mkdir()
    flags = ["--imdb", "others", "--recipes", "rnn", "--seeds", "1", "--no-baseline"]
    assert reproduce.JOB.main(flags) == 2
    assert "holds 1 of these runs with other data or settings (such as imdb rnn seed 1)" in capsys.readouterr().err
    assert (run.folder / "run.json").exists()
