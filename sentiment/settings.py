"""What can be set: a section for each job and one for Ray, as they stand in `ray_config.yaml`.

Imports neither torch nor ray, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from sentiment.section import FLAG_ALONE, Section

Precision = Literal["auto", "bf16", "float32"]
Encoding = Literal["auto", "utf-8", "latin-1"]


def _range(given: Any) -> int | list[int]:
    """`1-4` as it may stand on a command line, for [1, 4]; refuses what is neither that nor a number."""
    parts = given.split("-") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else [given]
    ends = [int(part) for part in parts if str(part).strip().isdecimal()]
    if len(ends) != len(parts) or len(ends) not in (1, 2) or not 1 <= ends[0] <= ends[-1]:
        raise ValueError("must be a number from 1 on, or a range such as 1-4 ([1, 4] in a file)")
    return ends[0] if len(ends) == 1 else ends


NumWorkers = Annotated[int | tuple[int, int], BeforeValidator(_range)]


class StorageSettings(Section):
    """Where data, models and results are."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_STORAGE_")
    section = "storage"

    root: str | None = Field(
        None, description="folder or URI that relative paths begin at; none: the working directory"
    )


class RaySettings(Section):
    """How jobs find Ray, or start their own."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_RAY_")
    section = "ray"

    address: str | None = Field(None, description="cluster to join (also RAY_ADDRESS); none: an embedded Ray")
    num_cpus: int | None = Field(None, gt=0, description="logical CPUs of the embedded Ray; none: the machine's cores")
    num_gpus: int | None = Field(None, ge=0, description="logical GPUs of the embedded Ray; none: the machine's GPUs")
    object_store_gib: float | None = Field(None, ge=0.1, description="shared memory of the embedded Ray, GiB")
    wait_for_nodes_s: float = Field(
        0.0,
        ge=0,
        description="so long a job waits for nodes that it needs and asks an autoscaler for; 0: not at all",
    )
    dashboard: bool = Field(False, description="start the dashboard of the embedded Ray")
    verbose: bool = Field(False, description="show Ray's own log lines")


class PrepareSettings(Section):
    """`jobs/prepare.py`."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_PREPARE_")
    section = "prepare"
    paths = ("input", "test_input", "output")

    input: list[str] = Field(min_length=1, description="labelled files, folders, globs or URIs")
    output: str = Field(description="folder for the prepared data")
    test_input: list[str] = Field([], description="official test set, kept apart and left as it is")
    text_column: str | None = Field(None, description="column with the text; found by name if not given")
    label_column: str | None = Field(None, description="column with the label; found by name if not given")
    encoding: Encoding = Field("auto", description="of csv and tsv: auto, utf-8 or latin-1")
    seed: int = Field(1, description="picks which texts fall into validation and test")
    validation_share: float = Field(0.05, ge=0, lt=1, description="share of the rows kept for validation")
    test_share: float = Field(0.10, ge=0, lt=1, description="share kept for testing; 0 with --test-input")
    vocabulary_size: int = Field(25_000, gt=0, description="words at most, beside <unk> and <pad>")
    min_frequency: int = Field(2, gt=0, description="rarer words are <unk>, so that its vector is trained")
    rows_per_file: int = Field(100_000, gt=0, description="rows of a Parquet file, about")
    overwrite: bool = Field(False, description="replace what the output folder holds")

    @model_validator(mode="after")
    def _leave_rows_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("--validation-share and --test-share leave no rows to train on")
        return self


class TrainSettings(Section):
    """`jobs/train_lstm.py`; the recipe's own fields are flags too."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_TRAIN_")
    section = "train"
    paths: ClassVar[tuple[str, ...]] = ("data", "output")

    data: str | None = Field(
        None, description="folder that jobs/prepare.py wrote; none: runs/imdb or runs/sentiment140, by recipe"
    )
    output: str = Field(description="folder for checkpoints, curve, metrics and the bundle")
    recipe: str = Field("tweets", description="named recipe of sentiment/recipes.py")
    num_workers: NumWorkers = Field(
        2, description="Ray Train workers, data-parallel; 1-4: as many as there is room for, more or fewer on the way"
    )
    use_gpu: bool = Field(False, description="one GPU for each worker")
    cpus_per_worker: int = Field(1, gt=0, description="CPUs, and torch threads, of a worker")
    seed: int = Field(1, ge=0, lt=2**63, description="everything random follows from it")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")
    resume: bool = Field(False, description="go on from the last checkpoint in --output")
    overwrite: bool = Field(False, description="replace what the output folder holds")
    checkpoint_steps: int = Field(0, ge=0, description="a checkpoint every so many steps beside each epoch's; 0: none")
    max_failures: int = Field(2, ge=0, description="lost workers that are made good from the last checkpoint")
    collective_timeout_s: int = Field(120, gt=0, description="a worker that waits longer for the others fails, s")
    mlflow: str | None = Field(
        None,
        description="log to MLflow: tracking URI, or a folder for its database; without a value: runs/mlflow",
        json_schema_extra={FLAG_ALONE: "runs/mlflow"},
    )
    mlflow_experiment: str = Field("sentiment", min_length=1, description="MLflow experiment that runs are logged to")
    overrides: dict[str, Any] = Field({}, description="fields of the recipe that were set")

    @property
    def workers(self) -> tuple[int, int]:
        """Ray Train workers, at least and at most."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)


class TrainBertSettings(TrainSettings):
    """`jobs/train_bert.py`; the recipe's own fields are flags too."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_TRAIN_BERT_")
    section = "train_bert"
    paths = ("data", "output", "features")

    output: str = Field("runs/bert", description="folder for checkpoints, curve, metrics and the bundle")
    recipe: str = Field("bert-gru", description="named recipe of sentiment/bert_recipes.py")
    cache_features: Literal["auto", "always", "never"] = Field(
        "auto", description="keep what the frozen encoder makes of a text; auto: if the disk has room for it"
    )
    features: str | None = Field(
        None, description="folder for that, shared by runs and kept after them; none: in --output, removed at the end"
    )
    pass_tokens: int = Field(
        16_384, gt=0, description="padded tokens of a training pass; more are several passes with gradients added up"
    )
    encoder_by_reference: bool = Field(
        False, description="the bundle names the encoder with revision and sha256 instead of carrying its weights"
    )


class ScoreSettings(Section):
    """`jobs/score.py`."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_SCORE_")
    section = "score"
    paths = ("model", "input", "output")

    model: str = Field(description="bundle that a training job wrote")
    input: list[str] = Field(min_length=1, description="files, folders, globs or URIs to score")
    output: str = Field(description="folder for scored/, rejected/ and manifest.json; a run that was stopped goes on")
    text_column: str | None = Field(None, description="column with the text; found by name if not given")
    id_column: str | None = Field(None, description="column whose value rejected rows keep too, as text")
    encoding: Encoding = Field("auto", description="of csv and tsv: auto, utf-8 or latin-1")
    num_actors: int | None = Field(None, gt=0, description="model actors; none: one for each CPU, or each GPU")
    use_gpu: bool = Field(False, description="model actors run on GPUs")
    gpus_per_actor: float = Field(1.0, gt=0, description="GPU share of an actor; 0.25 puts four on one")
    batch_rows: int = Field(4096, gt=0, description="rows that an actor takes at once and sorts by length")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")
    rows_per_file: int | None = Field(
        None, gt=0, description="rows of a Parquet file, about; none: 4,096 to 262,144, as suits input and actors"
    )
    partition_by: list[str] = Field([], description="columns that become folders of scored/, such as label")
    strict: bool = Field(False, description="stop at the first file that can't be read; else it is rejected/ rows")
    overwrite: bool = Field(False, description="start clean: replace what the output folder holds")


class ServeSettings(Section):
    """`python -m serve_app` and `serve_app.app:build`."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_SERVE_")
    section = "serve"
    paths = ("model",)

    model: str = Field(description="bundle that a training job wrote")
    name: str = Field("sentiment", pattern=r"^[\w.-]+$", description="of the model, in /v2/models/NAME")
    host: str = Field("127.0.0.1", description="address to listen at; 0.0.0.0 for all of the machine's")
    port: int = Field(8000, ge=0, le=65535, description="port to listen at")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")
    min_replicas: int = Field(1, ge=0, description="replicas that are always there; 0: the first request waits for one")
    max_replicas: int = Field(2, gt=0, description="replicas under load")
    cpus_per_replica: float = Field(1.0, ge=0, description="CPUs of a replica, and threads of its model")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs of a replica, or its share of one")
    target_ongoing_requests: int = Field(32, gt=0, description="requests at a time that a replica should have")
    upscale_delay_s: float = Field(10.0, ge=0, description="so long there must be too many of them, s")
    downscale_delay_s: float = Field(300.0, ge=0, description="so long there must be too few of them, s")
    max_ongoing_requests: int = Field(4096, gt=0, description="requests at a time that a replica takes")
    max_batch_tokens: int = Field(4096, gt=0, description="tokens of a batch; more: more texts/s, later answers")
    max_queued_texts: int = Field(2048, gt=0, description="texts that may wait in a replica; further ones get a 429")
    retry_after_s: float = Field(1.0, gt=0, description="when clients shall try again then, s")
    request_timeout_s: float = Field(30.0, gt=0, description="no answer in so many seconds becomes a 504")
    max_texts: int = Field(1024, gt=0, description="texts of a request")
    max_text_chars: int = Field(100_000, gt=0, description="characters of a text; the model reads its first tokens")
    max_body_mib: float = Field(8.0, gt=0, description="size of a request but of /score, which has no end, MiB")
    api_keys_file: str | None = Field(
        None, description="file with an API key on each line; or SENTIMENT_API_KEYS; without both none is asked for"
    )

    @model_validator(mode="after")
    def _have_room_between_least_and_most(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("--min-replicas is more than --max-replicas")
        return self


class EvaluateSettings(Section):
    """`jobs/evaluate.py`."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_EVALUATE_")
    section = "evaluate"
    paths = ("model", "input", "output")

    model: str = Field(description="bundle that a training job wrote")
    input: list[str] = Field(min_length=1, description="labelled files, folders, globs or URIs")
    output: str = Field(description="folder for evaluation.json, scored/ and rejected/")
    text_column: str | None = Field(None, description="column with the text; found by name if not given")
    label_column: str | None = Field(None, description="column with the label; found by name if not given")
    encoding: Encoding = Field("auto", description="of csv and tsv: auto, utf-8 or latin-1")
    num_actors: int | None = Field(None, gt=0, description="model actors; none: one for each CPU, or each GPU")
    use_gpu: bool = Field(False, description="model actors run on GPUs")
    gpus_per_actor: float = Field(1.0, gt=0, description="GPU share of an actor")
    batch_rows: int = Field(4096, gt=0, description="rows that an actor takes at once and sorts by length")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")
    overwrite: bool = Field(False, description="replace what the output folder holds")


class ReproduceSettings(Section):
    """`jobs/reproduce.py`."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_REPRODUCE_")
    section = "reproduce"
    paths = ("imdb", "sentiment140", "output")

    imdb: str | None = Field(
        None, description="IMDB as jobs/prepare.py wrote it; runs/imdb if neither of both is given"
    )
    sentiment140: str | None = Field(None, description="Sentiment140, likewise; runs/sentiment140")
    recipes: list[str] = Field([], description="recipes to run; none: all")
    seeds: list[int] = Field([1, 2, 3], min_length=1, description="a run for each")
    datasets: Literal["own", "all"] = Field("own", description="data that a recipe is meant for, or all that is given")
    vectors: str | None = Field(None, description="file or name of vectors to use where a recipe asks for some")
    max_lengths: list[int] = Field([128, 256, 1024], description="other maximum lengths that IMDB runs are measured at")
    baseline: bool = Field(True, description="also TF-IDF with logistic regression (needs the extra `baseline`)")
    output: str = Field(
        "runs/reproduction", description="folder for the runs, seen by all nodes; finished ones are kept"
    )
    overwrite: bool = Field(False, description="replace runs of other data or settings in --output")
    report: str = Field("docs/results", description="folder for reproduction.md and reproduction.json")
    cpus_per_run: int = Field(1, gt=0, description="CPUs, and torch threads, of a run")
    gpus_per_run: float = Field(0.0, ge=0, description="GPU share of a run; 0.25 puts four on one")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware has it")

    @model_validator(mode="after")
    def _hold_numbers_in_range(self) -> Self:
        if not 0 <= min(self.seeds) <= max(self.seeds) < 2**63:
            raise ValueError("--seeds must be 0 or more, and less than 2**63")
        if any(length < 1 for length in self.max_lengths):
            raise ValueError("--max-lengths must be 1 or more")
        return self


class DemoSettings(Section):
    """`jobs/demo.py`."""

    model_config = SettingsConfigDict(env_prefix="SENTIMENT_DEMO_")
    section = "demo"

    data: str | None = Field(None, description="labelled tweets; none: the embedded corpus")
    output: str = Field("runs/demo", description="folder for everything; replaced by each run")
    config: str | None = Field(None, description="configuration file; handed on to the jobs")
    profile: str | None = Field(None, description="profile in it; handed on too")


SECTIONS: dict[str, type[Section]] = {
    cls.section: cls
    for cls in (
        *(
            StorageSettings,
            RaySettings,
            PrepareSettings,
            TrainSettings,
            TrainBertSettings,
            ScoreSettings,
            EvaluateSettings,
        ),
        *(ServeSettings, ReproduceSettings, DemoSettings),
    )
}
