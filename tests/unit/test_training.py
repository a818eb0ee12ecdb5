"""The training loop: it learns, keeps the best, goes on after a stop as if there had been none, and two ranks are one.

The model is small and dropout is on wherever randomness has to be repeated.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from sentiment.batching import Examples, LengthBucketedBatches
from sentiment.errors import ConfigError, DataError
from sentiment.models.rnn import RecurrentClassifier
from sentiment.training.checkpoint import Checkpoint
from sentiment.training.loop import Hooks, evaluate, fit, learning_rate_at
from sentiment.training.recipes import OptimizerConfig
from sentiment.training.run import Rank, load_on_all_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NEGATIVE_TOKEN, POSITIVE_TOKEN, VOCABULARY = 2, 3, 20
CONFIG = OptimizerConfig(epochs=3, learning_rate=1e-2, schedule="one-cycle", weight_decay=1e-2)


class FinetuningConfig(OptimizerConfig):
    """The recurrent layer has a learning rate of its own."""

    finetuned_prefix = "rnn."
    rate: float = 1e-4

    def peak_and_warmup(self, *, finetuned: bool) -> tuple[float, float]:
        return (self.rate, 0.5) if finetuned else (self.learning_rate, self.warmup_share)


# What depends on the clock.
TIMES = ("train_s", "rows_per_s")
FILES = ("model.safetensors", "best.safetensors", "optimizer.pt", "state.json")


def rows(num_rows: int, seed: int = 0, learnable: bool = True) -> Examples:
    """Noise with one telling token at a random place; if not learnable, the labels have nothing to do with it."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 12, num_rows)
    says = random.integers(0, 2, num_rows)
    sequences = [random.integers(4, VOCABULARY, length).astype(np.int32) for length in lengths]
    for sequence, positive in zip(sequences, says, strict=True):
        sequence[random.integers(len(sequence))] = POSITIVE_TOKEN if positive else NEGATIVE_TOKEN
    labels = says if learnable else random.integers(0, 2, num_rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Examples(np.concatenate(sequences), offsets, labels.astype(np.int32))


def batches(
    examples: Examples,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    max_micro_batch_tokens: int | None = None,
) -> LengthBucketedBatches:
    return LengthBucketedBatches(
        examples,
        batch_size=32,
        pad_id=1,
        max_length=64,
        shuffle=shuffle,
        seed=3,
        rank=rank,
        world_size=world_size,
        max_micro_batch_tokens=max_micro_batch_tokens,
    )


def model(seed: int = 0, dropout: float = 0.3, word_dropout: float = 0.1) -> RecurrentClassifier:
    torch.manual_seed(seed)
    return RecurrentClassifier(VOCABULARY, 8, 8, 1, True, dropout, word_dropout=word_dropout)


def run(
    train: Examples, validation: Examples, *, config: OptimizerConfig = CONFIG, seed: int = 0, **more: Any
) -> Checkpoint:
    data = batches(train), batches(validation, shuffle=False)
    return fit(model(seed), *data, config, seed=3, device=CPU, precision="float32", **more)


def assert_same_weights(one: dict[str, Tensor] | None, other: dict[str, Tensor] | None, atol: float) -> None:
    assert one is not None
    assert other is not None
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def timeless(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in history]


def assert_same_history(one: Checkpoint, other: Checkpoint, tolerance: float) -> None:
    assert one.progress.best_epoch == other.progress.best_epoch
    pairs = zip(timeless(one.progress.history), timeless(other.progress.history), strict=True)
    for line, expected in pairs:
        assert line == pytest.approx(expected, abs=tolerance, rel=0)


def test_it_learns_what_can_be_learnt() -> None:
    config = CONFIG.model_copy(update={"epochs": 5, "learning_rate": 2e-2})
    final = run(rows(600), rows(200, seed=1), config=config)
    history = final.progress.history
    assert [line["epoch"] for line in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert history[-1]["validation_accuracy"] > 0.95


def test_the_result_is_the_epoch_of_lowest_validation_loss() -> None:
    """Validation labels that follow from nothing: fitting on makes their loss worse, so the best is not the last."""
    after_each: list[dict[str, Tensor]] = []
    losses: list[float] = []

    def keep(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        assert figures is not None
        after_each.append({name: weight.clone() for name, weight in checkpoint.weights.items()})
        losses.append(figures["validation_loss"])

    final = run(rows(300), rows(100, seed=1, learnable=False), hooks=Hooks(on_checkpoint=keep))
    best = int(np.argmin(losses))
    assert best < len(losses) - 1, "the data no longer make the last epoch worse: the test would show nothing"
    assert final.progress.best_epoch == best
    assert final.progress.best_validation_loss == losses[best]
    assert_same_weights(final.best_weights, after_each[best], atol=0)
    assert_same_weights(final.weights, after_each[-1], atol=0)


def test_the_best_weights_have_the_figures_that_were_told() -> None:
    validation = rows(100, seed=1)
    final = run(rows(300), validation)
    assert final.best_weights is not None
    assert final.progress.best_epoch is not None
    judged = model()
    judged.load_state_dict(final.best_weights)
    figures = evaluate(judged, batches(validation, shuffle=False), device=CPU, precision="float32")
    told = final.progress.history[final.progress.best_epoch]
    assert (figures.loss, figures.accuracy) == (told["validation_loss"], told["validation_accuracy"])


def test_train_figures_are_over_every_row() -> None:
    """The last batch is smaller, so a mean of batch means would be off. No dropout, no step: fresh weights' loss."""
    train = rows(70)
    config = OptimizerConfig(epochs=1, learning_rate=1e-12)
    data = batches(train), batches(train, shuffle=False)
    final = fit(model(dropout=0.0, word_dropout=0.0), *data, config, seed=3, device=CPU, precision="float32")
    line = final.progress.history[0]
    # Float32 sums of one row in batches of other shapes.
    assert line["train_loss"] == pytest.approx(line["validation_loss"], abs=1e-6)
    assert line["train_accuracy"] == line["validation_accuracy"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A whole run, dropout on, every checkpoint of it saved as `<epoch>-<step>`."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def save(checkpoint: Checkpoint, figures: dict[str, Any] | None) -> None:
        place = folder / f"{checkpoint.progress.epoch}-{checkpoint.progress.step}"
        place.mkdir()
        assert (figures is None) == (checkpoint.progress.step > 0)
        checkpoint.save(place)

    return run_with_checkpoints(hooks=Hooks(on_checkpoint=save)), folder


def run_with_checkpoints(**more: Any) -> Checkpoint:
    """210 rows are 7 steps an epoch: checkpoints after 3, 6 and 7. The validation labels make epoch 1 or 2 the best."""
    return run(rows(210), rows(80, seed=1, learnable=False), checkpoint_steps=3, **more)


def test_checkpoints_come_when_they_were_asked_for(undisturbed: tuple[Checkpoint, Path]) -> None:
    names = sorted(place.name for place in undisturbed[1].iterdir())
    assert names == ["0-3", "0-6", "1-0", "1-3", "1-6", "2-0", "2-3", "2-6", "3-0"]


@pytest.mark.parametrize("place", ["0-3", "1-0", "1-6", "2-0", "2-3", "3-0"])
def test_going_on_from_a_checkpoint_ends_the_same(undisturbed: tuple[Checkpoint, Path], place: str) -> None:
    """1e-6 for float32 kernels; a dropout mask drawn anew moves weights by 1e-2. The fresh model is another one."""
    whole, folder = undisturbed
    resumed = run_with_checkpoints(seed=99, resume=Checkpoint.load(folder / place))
    assert_same_weights(resumed.weights, whole.weights, atol=1e-6)
    assert_same_weights(resumed.best_weights, whole.best_weights, atol=1e-6)
    assert_same_history(resumed, whole, tolerance=1e-6)


def test_going_on_takes_only_the_steps_that_are_left(undisturbed: tuple[Checkpoint, Path]) -> None:
    taken: list[tuple[int, int, int]] = []
    hooks = Hooks(on_step=lambda epoch, step, steps: taken.append((epoch, step, steps)))
    run_with_checkpoints(resume=Checkpoint.load(undisturbed[1] / "1-6"), hooks=hooks)
    assert taken == [(1, 7, 7), *((2, step, 7) for step in range(1, 8))]


def test_checkpoint_round_trip(undisturbed: tuple[Checkpoint, Path], tmp_path: Path) -> None:
    """The end of the run: by then the best is an earlier epoch, so all four files are there."""
    whole, _ = undisturbed
    whole.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    read = Checkpoint.load(tmp_path)
    assert read.progress == whole.progress
    assert_same_weights(read.weights, whole.weights, atol=0)
    assert_same_weights(read.best_weights, whole.best_weights, atol=0)
    assert str(read.optimizer) == str(whole.optimizer)


def test_checkpoints_hold_no_code(undisturbed: tuple[Checkpoint, Path]) -> None:
    for place in undisturbed[1].iterdir():
        assert {file.name for file in place.iterdir()} <= set(FILES)
        torch.load(place / "optimizer.pt", weights_only=True)


def test_best_weights_are_not_written_twice(undisturbed: tuple[Checkpoint, Path]) -> None:
    assert not (undisturbed[1] / "1-0" / "best.safetensors").exists()
    read = Checkpoint.load(undisturbed[1] / "1-0")
    assert_same_weights(read.best_weights, read.weights, atol=0)
    assert Checkpoint.load(undisturbed[1] / "0-3").best_weights is None


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "garbage"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint(undisturbed: tuple[Checkpoint, Path], tmp_path: Path, name: str, damage: str) -> None:
    undisturbed[0].save(tmp_path)
    content = (tmp_path / name).read_bytes()
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(
            {"empty": b"", "half": content[: len(content) // 2], "garbage": b"x" * 99}[damage]
        )
    if damage == "missing" and name == "best.safetensors":
        assert undisturbed[0].progress.best_epoch != 2, "the last epoch is the best one: the test would show nothing"
    with pytest.raises(DataError, match=f"checkpoint {tmp_path} can't be read") as caught:
        Checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_loss_that_is_no_number() -> None:
    data = batches(rows(40)), batches(rows(20, seed=1), shuffle=False)
    broken = model()
    with torch.no_grad():
        broken.fc.bias.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"no longer finite in epoch 1 .*--learning-rate"):
        fit(broken, *data, CONFIG, seed=3, device=CPU, precision="float32")


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_accumulated_gradients_make_the_same_step(max_tokens: int) -> None:
    """Down to one row a pass; sums of gradients in another order, which Adam divides by their own size."""
    plain = model(dropout=0.0, word_dropout=0.0), batches(rows(100))
    parted = model(dropout=0.0, word_dropout=0.0), batches(rows(100), max_micro_batch_tokens=max_tokens)
    most = max(batch.inputs_BT.numel() for batch in parted[1].epoch(0))
    assert most <= max(max_tokens, 12)
    assert sum(batch.ends_step for batch in parted[1].epoch(0)) == len(parted[1]) == len(plain[1])
    steps: list[int] = []
    hooks = Hooks(on_step=lambda epoch, step, of: steps.append(step))
    validation = batches(rows(30, seed=1), shuffle=False)
    finals = [
        fit(made, data, validation, CONFIG, seed=3, device=CPU, precision="float32", hooks=hooks)
        for made, data in (plain, parted)
    ]
    assert steps == [1, 2, 3, 4] * 3 * 2
    assert_same_history(finals[1], finals[0], tolerance=1e-5)
    assert_same_weights(finals[1].weights, finals[0].weights, atol=1e-4)


def test_finetuned_weights_follow_a_rate_of_their_own() -> None:
    config = FinetuningConfig(**CONFIG.model_dump())
    rates = [learning_rate_at(step, 100, config, finetuned=True) for step in range(100)]
    assert rates[:50] == pytest.approx([1e-4 * (step + 1) / 50 for step in range(50)])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    constant = config.model_copy(update={"schedule": "constant"})
    rates = [learning_rate_at(step, 100, constant, finetuned=True) for step in range(100)]
    assert rates[:50] == pytest.approx([1e-4 * (step + 1) / 50 for step in range(50)])
    assert set(rates[50:]) == {1e-4}
    # A rate that moves nothing, to see which weights it is for.
    still = config.model_copy(update={"rate": 1e-30, "weight_decay": 0.0})
    final, fresh = run(rows(64), rows(20, seed=1), config=still), model().state_dict()
    moved = {name.split(".")[0] for name, weight in final.weights.items() if not torch.equal(weight, fresh[name])}
    assert moved == {"embedding", "fc"}


def test_gradients_are_clipped() -> None:
    """SGD on a clipped gradient moves by at most learning rate × norm; AdamW's first step hides it, so look inside."""
    norms: list[float] = []
    watched = model()
    config = CONFIG.model_copy(update={"epochs": 1, "clip_norm": 1e-3})

    def note(*_: object) -> None:
        grads = [weight.grad for weight in watched.parameters() if weight.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads]))))

    hooks = Hooks(on_step=note)
    fit(watched, batches(rows(64)), batches(rows(20)), config, seed=3, device=CPU, precision="float32", hooks=hooks)
    assert norms
    assert max(norms) <= 1e-3 * (1 + 1e-5)


def test_constant_learning_rate() -> None:
    config = CONFIG.model_copy(update={"schedule": "constant"})
    assert {learning_rate_at(step, 100, config) for step in range(100)} == {1e-2}


@pytest.mark.parametrize("total", [10, 100, 1234])
def test_one_cycle_rises_in_a_line_and_falls_like_a_cosine(total: int) -> None:
    rates = [learning_rate_at(step, total, CONFIG) for step in range(total)]
    peak = round(total * 0.1) - 1
    assert max(rates) == pytest.approx(CONFIG.learning_rate)
    assert rates[: peak + 1] == pytest.approx([1e-2 * (step + 1) / (peak + 1) for step in range(peak + 1)])
    assert all(before >= after for before, after in itertools.pairwise(rates[peak:]))
    assert 0.01 * 1e-2 < rates[-1] < 0.05 * 1e-2
    # Half the decay lies half-way, between two steps if need be.
    half_way = np.interp(peak + 1 + (total - peak - 1) / 2, range(total), rates)
    assert half_way == pytest.approx(1e-2 * 0.505, rel=0.01)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_few_steps_moves_at_all(total: int) -> None:
    config = CONFIG.model_copy(update={"warmup_share": 0.0})
    assert all(0 < learning_rate_at(step, total, config) <= 1e-2 for step in range(total))
    assert learning_rate_at(0, total, config) == 1e-2


# 200 rows: every batch splits evenly but the last, of 8. 201: its 9 are 5 and 4. 193: its single row leaves rank 1 a
# filler. Validation has 51 rows, so the ranks measure different numbers of them too.
RANK_CASES = (200, 201, 193)


def run_rank(rank: int, world_size: int, folder: str) -> None:
    """One rank of the gloo group; a module-level function, so that a fresh process finds it."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=60),
        )

    def go(num_rows: int, seed: int, **more: Any) -> Checkpoint:
        data = (
            # Two ranks take their steps in several micro-batches, not equally many; one process takes them whole.
            batches(rows(num_rows), rank, world_size, max_micro_batch_tokens=50 if world_size > 1 else None),
            batches(rows(51, seed=1), rank, world_size, shuffle=False),
        )
        fresh = model(seed, dropout=0.0, word_dropout=0.0)
        config = CONFIG.model_copy(update={"epochs": 2})
        how: dict[str, Any] = {"device": CPU, "precision": "float32", "checkpoint_steps": 3}
        return fit(fresh, *data, config, seed=3, **how, **more)

    for num_rows in RANK_CASES:
        stopped = Path(folder) / f"{num_rows}-stopped-{world_size}-{rank}"

        def save(checkpoint: Checkpoint, figures: object, stopped: Path = stopped) -> None:
            if (checkpoint.progress.epoch, checkpoint.progress.step) == (1, 3):
                stopped.mkdir()
                checkpoint.save(stopped)

        # Rank 1 begins with other weights: DDP must give it rank 0's.
        final = go(num_rows, seed=rank, hooks=Hooks(on_checkpoint=save))
        place = Path(folder) / f"{num_rows}-{world_size}-{rank}"
        place.mkdir()
        final.save(place)
    if world_size > 1:
        # As after a kill: every rank goes on from rank 0's checkpoint inside epoch 2.
        kept = Checkpoint.load(Path(folder) / f"{RANK_CASES[1]}-stopped-{world_size}-0")
        place = Path(folder) / f"resumed-{rank}"
        place.mkdir()
        go(RANK_CASES[1], seed=7, resume=kept).save(place)
        for case, data, mistake in (("lacks", "data-0", rank == 1), ("differs", f"data-{rank}", False)):
            said = what_is_told(rank, f"{folder}/{data}", mistake)
            (Path(folder) / f"{case}-{rank}").write_text(said)
        dist.barrier()
        dist.destroy_process_group()
        # All is written. A process that ends in order is aborted once in some hundred runs, by a thread of gloo's.
        os._exit(0)


def what_is_told(rank: int, data: str, mistake: bool) -> str:
    """What a rank says whose run can't begin, maybe only on the other one."""

    def load(rank: Rank) -> None:
        if mistake:
            raise DataError("no features on this node")

    run: Any = SimpleNamespace(data=data, load=load)
    try:
        load_on_all_ranks(run, Rank(rank, 2, CPU), lambda: None)
    except DataError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes for all cases, as starting them is most of the time; beside them the same in one."""
    folder = tmp_path_factory.mktemp("ranks")
    for rank in (0, 1):
        (folder / f"data-{rank}").mkdir()
        (folder / f"data-{rank}" / "manifest.json").write_text(json.dumps({"counts": {"train": rank}}))
        (folder / f"data-{rank}" / "tokenizer.json").write_text("{}")
    started = multiprocessing.start_processes(
        run_rank, args=(2, str(folder)), nprocs=2, join=False, start_method="spawn"
    )
    run_rank(0, 1, str(folder))
    while not started.join():
        pass
    return folder


@pytest.mark.parametrize("num_rows", RANK_CASES)
def test_two_ranks_are_one(ranks: Path, num_rows: int) -> None:
    """Losses within 1e-5, weights within 1e-4: gradients are float32 sums in another order, and Adam divides the small
    ones by their own size. A rank weighted wrongly in the odd batch moves weights by 1e-3."""
    one, two = Checkpoint.load(ranks / f"{num_rows}-1-0"), Checkpoint.load(ranks / f"{num_rows}-2-0")
    assert_same_history(two, one, tolerance=1e-5)
    assert_same_weights(two.weights, one.weights, atol=1e-4)
    assert_same_weights(two.best_weights, one.best_weights, atol=1e-4)


@pytest.mark.parametrize("num_rows", RANK_CASES)
def test_ranks_agree_to_the_bit(ranks: Path, num_rows: int) -> None:
    one, other = Checkpoint.load(ranks / f"{num_rows}-2-0"), Checkpoint.load(ranks / f"{num_rows}-2-1")
    assert_same_weights(one.weights, other.weights, atol=0)
    assert timeless(one.progress.history) == timeless(other.progress.history)


def test_a_mistake_that_one_rank_sees_is_told_by_all(ranks: Path) -> None:
    """The others would wait for it until their time limit, and their word is the one that counts."""
    assert {(ranks / f"lacks-{rank}").read_text() for rank in (0, 1)} == {"no features on this node"}
    for rank in (0, 1):
        assert "isn't the same on all nodes" in (ranks / f"differs-{rank}").read_text()


def test_two_ranks_go_on_from_inside_an_epoch(ranks: Path) -> None:
    """The sums so far are over both ranks: they must be carried on once, not twice."""
    whole = Checkpoint.load(ranks / f"{RANK_CASES[1]}-2-0")
    for rank in (0, 1):
        resumed = Checkpoint.load(ranks / f"resumed-{rank}")
        assert_same_history(resumed, whole, tolerance=1e-6)
        assert_same_weights(resumed.weights, whole.weights, atol=1e-6)
