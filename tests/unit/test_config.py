"""Settings: what wins over what, and that a mistake is told with the name that was meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from sentiment.cli import in_force
from sentiment.cli import show_config as main
from sentiment.config import Configuration, load
from sentiment.errors import ConfigError
from sentiment.settings import (
    SECTIONS,
    PrepareSettings,
    RaySettings,
    ScoreSettings,
    Section,
    ServeSettings,
    TrainSettings,
)
from sentiment.training.recipes import RecurrentRecipe, get_recipe

pytestmark = pytest.mark.usefixtures("in_an_empty_place")

ROOT = Path(__file__).parents[2]
# What a job can't do without; not the configuration file's business.
REQUIRED = {"data": "d", "input": ["i"], "output": "o", "model": "m"}


def required_of(section: type[Section]) -> dict[str, object]:
    return {name: value for name, value in REQUIRED.items() if name in section.model_fields}


def write(text: str, name: str = "ray_config.yaml") -> str:
    Path(name).write_text(text)
    return name


def train(flags: dict[str, object] | None = None, file: str | None = None) -> TrainSettings:
    return load(TrainSettings, {"data": "d", "output": "o", **(flags or {})}, file)


def test_flags_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train().num_workers == 2
    write("train: {num_workers: 3, seed: 7, precision: float32}")
    assert train().num_workers == 3
    monkeypatch.setenv("SENTIMENT_TRAIN_NUM_WORKERS", "4")
    monkeypatch.setenv("SENTIMENT_TRAIN_SEED", "8")
    settings = train({"num_workers": "5"})
    assert (settings.num_workers, settings.seed, settings.precision) == (5, 8, "float32")


GPUS = """
train: {num_workers: 3, seed: 7}
profiles:
  gpus: {train: {num_workers: 8, use_gpu: true}, score: {use_gpu: true}}
  empty:
"""


def test_a_profile_wins_over_the_file_and_loses_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write(GPUS)

    def with_profile(name: str | None) -> TrainSettings:
        return load(TrainSettings, {"data": "d", "output": "o"}, None, name)

    settings = with_profile("gpus")
    assert (settings.num_workers, settings.use_gpu, settings.seed) == (8, True, 7)
    assert with_profile("empty") == with_profile(None)
    monkeypatch.setenv("SENTIMENT_TRAIN_NUM_WORKERS", "5")
    monkeypatch.setenv("SENTIMENT_PROFILE", "gpus")
    assert (with_profile(None).num_workers, with_profile(None).use_gpu) == (5, True)
    assert not with_profile("empty").use_gpu
    assert load(ScoreSettings, required_of(ScoreSettings)).use_gpu


def test_mistakes_in_profiles_are_told() -> None:
    write(GPUS)
    for profile, content, words in (
        ("gpu", GPUS, "unknown profile 'gpu' in ray_config.yaml: did you mean gpus"),
        (
            "a",
            "profiles: {a: {trian: {}}}",
            "unknown section 'trian' in profile a of ray_config.yaml: did you mean train",
        ),
        ("a", "profiles: {a: {train: {num_worker: 1}}}", "unknown key 'num_worker' in section train of profile a"),
        ("a", "profiles: {a: 3}", "profile a of ray_config.yaml must hold sections"),
        ("a", "profiles: [a]", "profiles of ray_config.yaml must hold"),
    ):
        write(content)
        with pytest.raises(ConfigError, match=words):
            load(TrainSettings, {"data": "d", "output": "o"}, None, profile)


def test_what_is_in_force_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(GPUS + "train_bert: {epochs: 3}")
    monkeypatch.setenv("SENTIMENT_SCORE_SORT_WINDOW_ROWS", "16")
    assert in_force(TrainSettings, Configuration(profile="gpus"))["num_workers"] == (8, "profile gpus")
    assert main(["--profile", "gpus", "train", "train_bert", "score"]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {
        *("train:", "num_workers: 8 # profile gpus", "seed: 7 # ray_config.yaml", "cpus_per_worker: 1 # default"),
        *("epochs: 3 # ray_config.yaml", "model: # to be given"),
        "sort_window_rows: 16 # SENTIMENT_SCORE_SORT_WINDOW_ROWS",
    } <= lines
    assert main(["trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SENTIMENT_RAY_NUM_CPUS", "many", "--num-cpus: .*, got 'many' from SENTIMENT_RAY_NUM_CPUS"),
        ("SENTIMENT_PREPARE_TEST_SHARE", "0.97", "leave no rows to train on"),
        ("SENTIMENT_SCORE_SORT_WINDOW_ROW", "16", "did you mean SENTIMENT_SCORE_SORT_WINDOW_ROWS"),
        ("SENTIMENT_TRAIN_NUM_WORKER", "1", "did you mean SENTIMENT_TRAIN_NUM_WORKERS"),
        ("SENTIMENT_TRAIN_HIDEN_DIM", "32", "did you mean SENTIMENT_TRAIN_HIDDEN_DIM"),
        ("SENTIMENT_TRAIN_EPOCHS", "three", "--epochs: .*, got 'three'"),
        ("SENTIMENT_TRAIN_RECIPE", "bilsm", "unknown recipe 'bilsm' .*did you mean bilstm"),
        ("SENTIMENT_TRAIN_BERT_UNFREEZE_LAYERS", "top", "--unfreeze-layers: .*, got 'top'"),
        ("SENTIMENT_TRAIN_BERT_RECIPE", "bilstm", "unknown recipe 'bilstm'"),
        ("SENTIMENT_TRIAN_SEED", "1", "did you mean SENTIMENT_TRAIN_SEED"),
        ("SENTIMENT_PROFILE", "gpus", "unknown profile 'gpus'"),
        ("SENTIMENT_PREPARE_INPUT", "a.csv", "a list is written as JSON"),
        ("SENTIMENT_SCORE_OUTPUT", "s3://KEY:SECRET@bucket/out", "keys don't belong in a URI"),
    ],
)
def test_what_the_jobs_refuse_is_refused(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    capsys.readouterr()
    monkeypatch.setenv(variable, value)
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("config: ")
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_the_repositorys_profiles_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for profile in yaml.safe_load((ROOT / "ray_config.yaml").read_text())["profiles"]:
        for section in SECTIONS.values():
            load(section, required_of(section), None, profile)


def test_other_sections_do_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train: {seed: 7}\nscore: {sort_window_rows: 16}")
    monkeypatch.setenv("SENTIMENT_PREPARE_SEED", "9")
    assert train().seed == 7
    assert load(ScoreSettings, required_of(ScoreSettings)).sort_window_rows == 16


def test_recipe_fields_come_from_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train: {epochs: 9, hidden_dim: 32, dropout: 0.1}")
    monkeypatch.setenv("SENTIMENT_TRAIN_EPOCHS", "8")
    monkeypatch.setenv("SENTIMENT_TRAIN_BATCH_SIZE", "16")
    settings = train({"epochs": "7", "num_workers": "1"})
    assert settings.overrides == {"epochs": "7", "hidden_dim": 32, "dropout": 0.1, "batch_size": "16"}
    assert settings.num_workers == 1
    recipe = get_recipe("bilstm").with_overrides(settings.overrides)
    assert isinstance(recipe, RecurrentRecipe)
    assert (recipe.epochs, recipe.hidden_dim, recipe.batch_size) == (7, 32, 16)


def test_lists_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_PREPARE_INPUT", '["a.csv", "b.csv"]')
    assert load(PrepareSettings, {"output": "o"}).input == ["a.csv", "b.csv"]
    monkeypatch.setenv("SENTIMENT_PREPARE_INPUT", "a.csv")
    with pytest.raises(ConfigError, match=r'"input".*JSON.*\["a\.csv"'):
        load(PrepareSettings, {"output": "o"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {seed: 1}", r"unknown section 'trian' in ray_config.yaml: did you mean train"),
        ("train: {num_worker: 1}", r"unknown key 'num_worker' in section train .*did you mean num_workers"),
        ("train: {hiden_dim: 1}", r"unknown key 'hiden_dim' .*did you mean hidden_dim"),
        ("train: {overrides: {epochs: 1}}", "unknown key 'overrides'"),
        ("train: {0xyzzy: 1}", "unknown key '0xyzzy' .*there are: .*num_workers"),
        ("train: 7", "section train of ray_config.yaml must hold"),
        ("[train]", "ray_config.yaml must hold sections"),
        ("train: {seed: [}", "ray_config.yaml can't be read as YAML"),
    ],
)
def test_mistakes_in_the_file(text: str, message: str) -> None:
    write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        train()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score: {sort_window: 3}", r"unknown key 'sort_window' in section score of .*sort_window_rows"),
        ("train: {hiden_dim: 1}", r"unknown key 'hiden_dim' in section train of .*hidden_dim"),
        ("profiles: {night: {serve: {prot: 1}}}", r"unknown key 'prot' in section serve of profile night of .*port"),
        ("profiles: {night: {sore: {}}}", r"unknown section 'sore' in profile night of .*score"),
        ("profiles: {night: 3}", r"profile night of .* must hold sections"),
    ],
)
def test_mistakes_in_what_is_not_read_now(text: str, message: str) -> None:
    """They would be found by another command, maybe at night."""
    Path("ray_config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(PrepareSettings, {"input": ["a.csv"], "output": "out"})


def test_variables_that_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SENTIMENT_API_KEYS", "SENTIMENT_MODEL", "SENTIMENT_GLOVE", "SENTIMENT_DASHBOARD_URL"):
        monkeypatch.setenv(name, "something")
    # As Kubernetes sets them in every pod beside a service.
    for name, value in {
        "SENTIMENT_PREPARE_SVC_SERVICE_HOST": "10.0.0.1",
        "SENTIMENT_PREPARE_SVC_SERVICE_PORT_HTTP": "8000",
        "SENTIMENT_PREPARE_SVC_PORT": "tcp://10.0.0.1:8000",
        "SENTIMENT_PREPARE_SVC_PORT_8000_TCP_ADDR": "10.0.0.1",
        "SENTIMENT_SERVICE_HOST": "10.0.0.2",
        "SENTIMENT_SERVE_PORT": "tcp://10.0.0.3:80",
    }.items():
        monkeypatch.setenv(name, value)
    assert load(PrepareSettings, {"input": ["a.csv"], "output": "out"}).input == ["a.csv"]
    assert load(ServeSettings, {"model": "bundle"}).port == 8000
    monkeypatch.setenv("SENTIMENT_PERPARE_SEED", "4")
    with pytest.raises(
        ConfigError, match=r"unknown setting 'SENTIMENT_PERPARE_SEED' .* did you mean SENTIMENT_PREPARE_S"
    ):
        load(PrepareSettings, {"input": ["a.csv"], "output": "out"})


@pytest.mark.parametrize(
    "flags", [{"output": "s3://KEY:SECRET@bucket/out"}, {"input": ["a", "s3://KEY:SEC%2FRET@b/in"]}]
)
def test_keys_in_a_uri_are_refused_and_not_repeated(flags: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^--(in|out)put: keys don't belong in a URI") as refused:
        load(PrepareSettings, {"input": ["a.csv"], "output": "out", **flags})
    assert "SEC" not in str(refused.value).replace("SECRET_ACCESS", "")


def test_keys_in_the_root_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path begins with it."""
    monkeypatch.setenv("SENTIMENT_STORAGE_ROOT", "s3://KEY:SECRET@bucket/team")
    with pytest.raises(ConfigError, match=r"^storage\.root: keys don't belong in a URI") as refused:
        load(PrepareSettings, {"input": ["a.csv"], "output": "out"})
    assert "KEY:" not in str(refused.value)


def test_a_closed_pipe_ends_the_listing_quietly() -> None:
    """`… | head`"""
    read, write = os.pipe()
    os.close(read)
    listing = [sys.executable, "-m", "sentiment.config"]
    done = subprocess.run(listing, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_named_file_must_be_there() -> None:
    assert train(file=write("train: {seed: 5}", "mine.yaml")).seed == 5
    with pytest.raises(ConfigError, match=r"no configuration file at other\.yaml"):
        train(file="other.yaml")
    assert train(file=write("", "empty.yaml")).seed == 1


def test_mistyped_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_TRAIN_NUM_WORKER", "1")
    with pytest.raises(ConfigError, match=r"'SENTIMENT_TRAIN_NUM_WORKER' in the environment: .*_NUM_WORKERS"):
        train()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_workers": "three"}, r"^--num-workers: must be a number from 1 on, or a range .*, got 'three'$"),
        ({"num_workers": "0"}, r"--num-workers: must be a number from 1 on.*, got '0'"),
        ({"num_workers": [4, 1]}, r"--num-workers: must be a number from 1 on.*, got \[4, 1\]"),
        ({"cpus_per_worker": "0"}, r"--cpus-per-worker: .*greater than 0, got '0'"),
        ({"precision": "fp16"}, r"--precision: .*'bf16'.*, got 'fp16'"),
        ({"use_gpu": "perhaps"}, r"--use-gpu: .*boolean.*, got 'perhaps'"),
        ({"seed": "-1", "max_failures": "x"}, r"--seed: .*got '-1'; --max-failures: .*got 'x'"),
    ],
)
def test_wrong_values_name_flag_and_value(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train(flags)
    assert "\n" not in str(caught.value)


def test_wrong_value_of_a_variable_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_RAY_NUM_CPUS", "many")
    with pytest.raises(ConfigError, match=r"--num-cpus: .*got 'many'"):
        load(RaySettings, {})


def test_missing_settings_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"^--model is required; --input is required; --output is required$"):
        load(ScoreSettings, {})
    with pytest.raises(ConfigError, match=r"--input: .*at least 1"):
        load(PrepareSettings, {"input": [], "output": "o"})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        train().seed = 2  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_setting_is_explained(name: str) -> None:
    """The description is the text of --help."""
    for field, info in SECTIONS[name].model_fields.items():
        assert info.description, f"{name}.{field}"


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_repositorys_own_file_loads(name: str) -> None:
    file = ROOT / "ray_config.yaml"
    section = SECTIONS[name]
    settings = load(section, required_of(section), str(file))
    for key, value in ((yaml.safe_load(file.read_text()) or {}).get(name) or {}).items():
        if key in section.model_fields and key not in REQUIRED:
            assert getattr(settings, key) == value, key


def test_relative_paths_begin_at_the_root_of_the_storage() -> None:
    write("storage: {root: s3://bucket/team}")
    flags = {"model": "runs/a/bundle", "input": ["in/*.csv", "/mnt/b.csv", "gs://c/d.csv"], "output": "~/out"}
    settings = load(ScoreSettings, flags)
    assert settings.model == "s3://bucket/team/runs/a/bundle"
    assert settings.input == ["s3://bucket/team/in/*.csv", "/mnt/b.csv", "gs://c/d.csv"]
    assert settings.output == "~/out"
    assert settings.text_column is None
    training = load(TrainSettings, {"output": "runs/x"})
    assert (training.data, training.output) == (None, "s3://bucket/team/runs/x")
    assert training.at_root("runs/imdb") == "s3://bucket/team/runs/imdb"


def test_a_root_may_have_options_or_be_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for root, output in (
        ("s3://bucket/?endpoint_override=localhost:9000", "s3://bucket/runs/x?endpoint_override=localhost:9000"),
        ("/mnt/shared/", "/mnt/shared/runs/x"),
    ):
        monkeypatch.setenv("SENTIMENT_STORAGE_ROOT", root)
        assert load(TrainSettings, {"output": "runs/x"}).output == output
        assert load(TrainSettings, {"output": "runs/x"}).is_rooted
    monkeypatch.setenv("SENTIMENT_STORAGE_ROOT", "")
    assert load(TrainSettings, {"output": "runs/x"}).output == "runs/x"
    assert not load(TrainSettings, {"output": "runs/x"}).is_rooted
