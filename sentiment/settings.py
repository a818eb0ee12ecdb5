"""Every setting: a class for each section of `ray_config.yaml`, whose fields are its keys and the flags of its command.

A field's description is the one text about it: `--help`, the comments of `ray_config.yaml` and docs/settings.md are
made of it, its type, limits and default. Imports neither torch nor Ray, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sentiment.storage.uris import is_uri, join
from sentiment.training.recipes import BERT_RECIPES, RECIPES, Recipe

# In a field's `json_schema_extra`: what its flag means when no value follows.
FLAG_ALONE = "flag_alone"
Pairs = tuple[tuple[str, str], ...]


class Section(BaseSettings):
    """One section of `ray_config.yaml`, frozen and checked; the fields that people need first come first.

    Attributes:
        section: Its name; its variables are SENTIMENT_<SECTION>_<KEY>.
        paths: Fields that hold paths or URIs of data, models and results; relative ones begin at `storage.root`.
        groups: Headings of `--help`, each behind the name of the first field below it.
        renamed: Old names of keys, each with today's; the old ones still work, with a warning.
        named_recipes: Recipes whose fields may stand in the section too, and are flags of its command.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    section: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ()
    groups: ClassVar[Pairs] = ()
    renamed: ClassVar[Pairs] = ()
    named_recipes: ClassVar[Mapping[str, Recipe]] = {}
    _root: str | None = PrivateAttr(None)
    _config_flags: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Name the section's variables after it."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.model_config["env_prefix"] = f"SENTIMENT_{cls.section.upper()}_"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments only: `sentiment.config` reads file and environment, and knows which value came from where."""
        return (init_settings,)

    @classmethod
    def keys(cls) -> dict[str, FieldInfo]:
        """The section's keys and their fields: all fields but `overrides`, which holds a recipe's."""
        return {name: field for name, field in cls.model_fields.items() if name != "overrides"}

    @classmethod
    def recipe_fields(cls) -> dict[str, FieldInfo]:
        """Fields of all kinds of its recipes that the section itself doesn't have."""
        fields: dict[str, FieldInfo] = {}
        for kind in dict.fromkeys(type(recipe) for recipe in cls.named_recipes.values()):
            known = (*kind.WORDS, *cls.model_fields, *fields)
            fields |= {name: field for name, field in kind.model_fields.items() if name not in known}
        return fields

    def rooted(self, root: str | None) -> Self:
        """Copy whose relative paths begin at a folder or URI; None: they stay relative to the working directory."""
        given = {name: value for name in self.paths if (value := getattr(self, name)) is not None}
        rooted = {
            name: [_join(root, path) for path in value] if isinstance(value, list) else _join(root, value)
            for name, value in given.items()
        }
        settings = self.model_copy(update=rooted)
        settings._root = root
        return settings

    @property
    def is_rooted(self) -> bool:
        """Whether relative paths begin elsewhere than in the working directory."""
        return bool(self._root)

    def at_root(self, path: str) -> str:
        """A path that no field holds, such as a recipe's default data set, relative to the same root."""
        return _join(self._root, path)


def _join(root: str | None, path: str) -> str:
    return path if not root or is_uri(path) or path.startswith(("/", "~")) else join(root, path)


def _range(given: Any) -> int | list[int]:
    """`1-4` as it may stand on a command line, for [1, 4]; refuses what is neither that nor a number."""
    parts = given.split("-") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else [given]
    ends = [int(part) for part in parts if str(part).strip().isdecimal()]
    if len(ends) != len(parts) or len(ends) not in (1, 2) or not 1 <= ends[0] <= ends[-1]:
        raise ValueError("must be a number from 1 on, or a range such as 1-4 ([1, 4] in a file)")
    return ends[0] if len(ends) == 1 else ends


Precision = Literal["auto", "bf16", "float32"]
Encoding = Literal["auto", "utf-8", "latin-1"]
NumWorkers = Annotated[int | tuple[int, int], BeforeValidator(_range)]

# Settings that several sections have, with the same meaning.
_Precision = Annotated[
    Precision, Field(description="number format of the forward pass; auto: bf16 where the hardware has it")
]
_Encoding = Annotated[
    Encoding,
    Field(description="encoding of text files; auto: UTF-8, or Latin-1 for lines of Sentiment140 that are no UTF-8"),
]
_TextColumn = Annotated[
    str | None, Field(description="column with the text; null: found by its name (text, tweet, review, …)")
]
_LabelColumn = Annotated[
    str | None, Field(description="column with the label; null: found by its name (label, sentiment, polarity, …)")
]
_Labeled = Annotated[list[str], Field(min_length=1, description="labeled files, folders, globs or URIs to read")]
_Model = Annotated[str, Field(description="bundle (folder or URI) that a training job wrote")]
_NumActors = Annotated[
    int | None,
    Field(gt=0, description="model actors; null: as many as fit on the cluster's CPUs, or with use_gpu on its GPUs"),
]
_ActorsOnGpu = Annotated[bool, Field(description="run the model actors on GPUs")]
_GpusPerActor = Annotated[float, Field(gt=0, description="GPUs per model actor, with use_gpu; 0.25: four share one")]
_SortWindowRows = Annotated[
    int,
    Field(gt=0, description="rows that a model actor sorts by length together; more: less padding, more memory"),
]
_Overwrite = Annotated[bool, Field(description="replace what the output folder holds")]


class StorageSettings(Section):
    """Where relative paths of data, models and results begin, for all commands."""

    section = "storage"

    root: str | None = None
    """folder or URI that relative paths begin at, such as s3://bucket/sentiment or /mnt/shared; null: the working
    directory"""


class RaySettings(Section):
    """How a command finds a Ray cluster, or starts a Ray of its own in its process (the embedded Ray)."""

    section = "ray"

    address: str | None = None
    """Ray cluster to join, such as "auto" or ray://head:10001; null: RAY_ADDRESS, or else an embedded Ray"""
    num_cpus: int | None = Field(None, gt=0)
    """logical CPUs of the embedded Ray; null: the machine's cores"""
    num_gpus: int | None = Field(None, ge=0)
    """logical GPUs of the embedded Ray; null: the machine's GPUs"""
    object_store_gib: float | None = Field(None, ge=0.1)
    """shared memory of the embedded Ray, in GiB; null: 30 % of the machine's memory"""
    wait_for_nodes_s: float = Field(0.0, ge=0)
    """seconds to wait for an autoscaler to add the nodes that a job needs; 0: refuse a job that doesn't fit at once"""
    worker_timeout_s: float = Field(120.0, gt=0)
    """seconds without a sign of life after which a worker process counts as frozen and is replaced"""
    dashboard: bool = False
    """start the embedded Ray's dashboard, at http://127.0.0.1:8265"""
    verbose: bool = False
    """show debug messages, and Ray's own log lines"""


class PrepareSettings(Section):
    """What `sentiment prepare` reads, how it splits the rows, and the vocabulary that it builds."""

    section = "prepare"
    paths = ("input", "test_input", "output")
    groups = (("encoding", "input"), ("seed", "splits"), ("vocabulary_size", "vocabulary"), ("rows_per_file", "output"))

    input: _Labeled
    output: str
    """folder or URI for the prepared data set"""
    test_input: list[str] = []
    """official test set (files, folders, globs or URIs), kept apart and never split"""
    text_column: _TextColumn = None
    label_column: _LabelColumn = None
    encoding: _Encoding = "auto"
    seed: int = 1
    """seed of the hash that assigns texts to training, validation and test"""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """share of the rows for validation, which picks the best epoch: a few thousand rows are enough"""
    test_share: float = Field(0.10, ge=0, lt=1)
    """share of the rows for testing; 5,000 rows measure accuracy to half a point; ignored with test_input"""
    vocabulary_size: int = Field(25_000, gt=0, le=1_000_000)
    """maximum number of words in the vocabulary, besides <unk> and <pad>"""
    min_frequency: int = Field(2, gt=0)
    """occurrences a word needs to enter the vocabulary; rarer ones train the vector of <unk>"""
    rows_per_file: int = Field(100_000, gt=0)
    """approximate rows of each Parquet file"""
    overwrite: _Overwrite = False

    @model_validator(mode="after")
    def _leave_rows_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("--validation-share and --test-share leave no rows to train on")
        return self


class TrainSettings(Section):
    """How `sentiment train lstm` trains; fields of the recipe may stand here too, such as `epochs: 5`."""

    section = "train"
    named_recipes: ClassVar[Mapping[str, Recipe]] = RECIPES
    paths: ClassVar[tuple[str, ...]] = ("data", "output")
    groups: ClassVar[Pairs] = (("cpus_per_worker", "workers"), ("resume", "checkpoints"), ("mlflow", "tracking"))

    data: str | None = None
    """prepared data set that `sentiment prepare` wrote; null: runs/imdb or runs/sentiment140, by recipe"""
    output: str
    """folder or URI for checkpoints, learning curve, metrics and the bundle"""
    recipe: str = "tweets"
    """named recipe: model and hyperparameters; --help lists them"""
    num_workers: NumWorkers = 2
    """data-parallel Ray Train workers, which divide each batch; 1-4 ([1, 4] in YAML): elastic, as many as the cluster
    has room for at the time"""
    use_gpu: bool = False
    """give each worker one GPU"""
    cpus_per_worker: int = Field(1, gt=0)
    """CPUs, and torch threads, of a worker; several workers are faster than one with several threads"""
    seed: int = Field(1, ge=0, lt=2**63)
    """seed of all random numbers in training"""
    precision: _Precision = "auto"
    resume: bool = False
    """resume from the last checkpoint in the output folder"""
    overwrite: _Overwrite = False
    checkpoint_steps: int = Field(0, ge=0)
    """optimizer steps between checkpoints, besides the one after each epoch; 0: none"""
    max_failures: int = Field(2, ge=0)
    """worker failures after which training restarts from the last checkpoint; the next one ends it"""
    collective_timeout_s: int = Field(120, gt=0)
    """seconds that a worker waits for the others' gradients before it fails, so that a hang ends"""
    mlflow: str | None = Field(None, json_schema_extra={FLAG_ALONE: "runs/mlflow"})
    """log to MLflow: a tracking URI, or a folder for its database (the flag without a value: runs/mlflow); null: no
    tracking"""
    mlflow_experiment: str = Field("sentiment", min_length=1)
    """MLflow experiment that runs are logged to"""
    overrides: dict[str, Any] = {}
    """fields of the recipe that were set"""

    @property
    def workers(self) -> tuple[int, int]:
        """Ray Train workers, at least and at most."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)


class TrainBertSettings(TrainSettings):
    """How `sentiment train bert` trains; fields of the recipe may stand here too, such as `encoder: minilm`."""

    section = "train_bert"
    named_recipes = BERT_RECIPES
    paths = ("data", "output", "features")
    groups = (*TrainSettings.groups, ("cache_features", "encoder"))

    output: str = "runs/bert"
    """folder or URI for checkpoints, learning curve, metrics and the bundle"""
    recipe: str = "bert-gru"
    """named recipe: model and hyperparameters; --help lists them"""
    cache_features: Literal["auto", "always", "never"] = "auto"
    """compute the frozen encoder's features once and keep them on disk; auto: if they take less than 80 % of the
    free disk space"""
    features: str | None = None
    """folder for cached features, shared by runs and kept; null: in the output folder, removed at the end"""
    pass_tokens: int = Field(16_384, gt=0)
    """maximum padded tokens per micro-batch; larger batches are split and their gradients accumulated"""
    encoder_by_reference: bool = False
    """the bundle names the encoder (revision and sha256) instead of containing its weights"""


class ScoreSettings(Section):
    """What `sentiment score` reads, which model actors score it, and the Parquet that it writes."""

    section = "score"
    paths = ("model", "input", "output")
    groups = (("id_column", "input"), ("use_gpu", "model actors"), ("rows_per_file", "output"))
    renamed = (("batch_rows", "sort_window_rows"),)

    model: _Model
    input: list[str] = Field(min_length=1)
    """files, folders, globs or URIs to score"""
    output: str
    """folder or URI for scored/, rejected/ and manifest.json; an interrupted run in it is resumed"""
    text_column: _TextColumn = None
    num_actors: _NumActors = None
    id_column: str | None = None
    """column that identifies a row, which is copied, as text, to rejected/ too; null: none"""
    encoding: _Encoding = "auto"
    strict: bool = False
    """stop at the first unreadable file instead of writing it to rejected/ with its reason"""
    use_gpu: _ActorsOnGpu = False
    gpus_per_actor: _GpusPerActor = 1.0
    sort_window_rows: _SortWindowRows = 4096
    precision: _Precision = "auto"
    rows_per_file: int | None = Field(None, gt=0)
    """approximate rows of each Parquet file; null: 4,096 to 262,144, depending on input size and actors"""
    partition_by: list[str] = []
    """columns by whose values scored/ is divided into subfolders, such as label"""
    overwrite: bool = False
    """start over: replace what the output folder holds instead of resuming"""


class EvaluateSettings(Section):
    """What `sentiment evaluate` measures a bundle on, and which model actors score it."""

    section = "evaluate"
    paths = ("model", "input", "output")
    groups = (("encoding", "input"), ("num_actors", "model actors"), ("overwrite", "output"))
    renamed = ScoreSettings.renamed

    model: _Model
    input: _Labeled
    output: str
    """folder or URI for evaluation.json, scored/ and rejected/"""
    text_column: _TextColumn = None
    label_column: _LabelColumn = None
    encoding: _Encoding = "auto"
    num_actors: _NumActors = None
    use_gpu: _ActorsOnGpu = False
    gpus_per_actor: _GpusPerActor = 1.0
    sort_window_rows: _SortWindowRows = 4096
    precision: _Precision = "auto"
    overwrite: _Overwrite = False


class ServeSettings(Section):
    """What `sentiment serve` and `serve_app.app:build` serve, on how many replicas, and the limits of a request."""

    section = "serve"
    paths = ("model",)
    groups = (
        ("name", "model and access"),
        ("min_replicas", "replicas"),
        ("max_batch_tokens", "batching and limits of a replica"),
        ("max_texts", "limits of a request"),
    )

    model: _Model
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0: all of the machine's addresses"""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port to listen on"""
    max_replicas: int = Field(2, gt=0)
    """maximum number of replicas, started under load"""
    gpus_per_replica: float = Field(0.0, ge=0)
    """GPUs of a replica; 0.25: four share one; 0: on the CPU"""
    name: str = Field("sentiment", pattern=r"^[\w.-]+$")
    """name of the model in the URL /v2/models/NAME"""
    precision: _Precision = "auto"
    api_keys_file: str | None = None
    """file with an API key on each line; null: SENTIMENT_API_KEYS, or else no key is needed"""
    min_replicas: int = Field(1, ge=0)
    """replicas that are always running; 0: the first request waits until one has started"""
    cpus_per_replica: float = Field(1.0, ge=0)
    """CPUs of a replica, and threads of its model"""
    target_ongoing_requests: int = Field(32, gt=0)
    """concurrent requests per replica that autoscaling aims at"""
    upscale_delay_s: float = Field(10.0, ge=0)
    """seconds of sustained load above target before a replica is added"""
    downscale_delay_s: float = Field(300.0, ge=0)
    """seconds of sustained load below target before a replica is removed"""
    max_ongoing_requests: int = Field(4096, gt=0)
    """maximum concurrent requests of a replica; keep it above max_queued_texts: then overload is answered with 429"""
    max_batch_tokens: int = Field(4096, gt=0)
    """maximum padded tokens of a batch; more: higher throughput, higher latency"""
    max_queued_texts: int = Field(2048, gt=0)
    """maximum texts queued in a replica; requests beyond are answered with 429"""
    retry_after_s: float = Field(1.0, gt=0)
    """seconds that clients are told to wait after a 429 (header Retry-After)"""
    request_timeout_s: float = Field(30.0, gt=0)
    """seconds until a request without an answer is answered with 504"""
    max_streams: int = Field(16, gt=0)
    """maximum concurrent /score streams of a replica; further ones are answered with 429"""
    max_texts: int = Field(1024, gt=0)
    """maximum texts of a request"""
    max_text_chars: int = Field(100_000, gt=0)
    """maximum characters of a text; the model reads its first tokens only"""
    max_body_mib: float = Field(8.0, gt=0, le=64)
    """maximum size of a request body, in MiB; /score streams have no limit"""

    @model_validator(mode="after")
    def _have_room_between_least_and_most(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("--min-replicas is more than --max-replicas")
        return self


class ReproduceSettings(Section):
    """Which recipes `jobs/reproduce.py` trains on which data, to compare them with their sources, and its resources."""

    section = "reproduce"
    paths = ("imdb", "sentiment140", "output")
    groups = (("datasets", "comparisons"), ("output", "output"), ("cpus_per_run", "resources"))

    imdb: str | None = None
    """IMDB as `sentiment prepare` wrote it; null: runs/imdb, unless sentiment140 is given"""
    sentiment140: str | None = None
    """Sentiment140 as `sentiment prepare` wrote it; null: runs/sentiment140, unless imdb is given"""
    recipes: list[str] = []
    """recipes to train; empty: all"""
    seeds: list[int] = Field([1, 2, 3], min_length=1)
    """seeds; each recipe is trained once with each"""
    vectors: str | None = None
    """file or name of word vectors for the recipes that use some; null: those that they name"""
    datasets: Literal["own", "all"] = "own"
    """data for each recipe; own: what it is meant for; all: whatever is given"""
    max_lengths: list[int] = [128, 256, 1024]
    """further maximum lengths, in tokens, that IMDB is measured at with the first seed"""
    baseline: bool = True
    """also measure TF-IDF with logistic regression (needs the extra `baseline`)"""
    output: str = "runs/reproduction"
    """folder or URI for the runs, seen by all nodes; finished ones are kept"""
    overwrite: bool = False
    """replace runs of other data or settings in the output folder"""
    report: str = "docs/results"
    """folder for reproduction.md and reproduction.json"""
    cpus_per_run: int = Field(1, gt=0)
    """CPUs, and torch threads, of a run; several runs at once are faster than one with several threads"""
    gpus_per_run: float = Field(0.0, ge=0)
    """GPUs of a run; 0.25: four share one; 0: on the CPU"""
    precision: _Precision = "auto"

    @model_validator(mode="after")
    def _hold_numbers_in_range(self) -> Self:
        if not 0 <= min(self.seeds) <= max(self.seeds) < 2**63:
            raise ValueError("--seeds must be 0 or more, and less than 2**63")
        if any(length < 1 for length in self.max_lengths):
            raise ValueError("--max-lengths must be 1 or more")
        return self


class DemoSettings(Section):
    """What `sentiment demo` runs on, and where its results go."""

    section = "demo"

    data: str | None = None
    """labeled tweets in Sentiment140's format; null: a small corpus is generated"""
    output: str = "runs/demo"
    """folder for all results; each run replaces it"""

    @property
    def config_flags(self) -> tuple[str, ...]:
        """`--config` and `--profile` as they were given, for the commands that the demo runs."""
        return self._config_flags


SECTIONS: dict[str, type[Section]] = {
    cls.section: cls
    for cls in (
        *(StorageSettings, RaySettings, PrepareSettings, TrainSettings, TrainBertSettings, ScoreSettings),
        *(EvaluateSettings, ServeSettings, ReproduceSettings, DemoSettings),
    )
}
