"""The training loop: schedule, averages, log, and checkpoints from which a run resumes bit for bit."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thinksound.errors import InputError
from thinksound.training.log import LOG, check_tensorboard
from thinksound.training.loop import CHECKPOINT, Learner, Trainer, Update, read_checkpoint, step_generator
from thinksound.training.options import LoopOptions
from thinksound.training.record import RUN, declare_run, read_run

pytestmark = pytest.mark.slow


def weight_of(networks: Mapping[str, nn.Module], name: str = "risen") -> Tensor:
    weights = networks["weights"]
    assert isinstance(weights, nn.ParameterDict)
    return weights[name]


class Climber(Learner):
    """A weight that rises by the learning rate in every step, and one that is frozen."""

    averaged = ("weights",)

    def __init__(self, rate: float = 1.0, size: int = 1) -> None:
        self.weights = nn.ParameterDict({"risen": torch.zeros(size), "frozen": torch.ones(2)})
        self.weights["frozen"].requires_grad_(False)
        self.networks = {"weights": self.weights}
        self.optimizers = {"weights": torch.optim.SGD([self.weights["risen"]], rate)}

    @property
    def value(self) -> float:
        return self.weights["risen"][0].item()

    def loss(self, generator: torch.Generator) -> Tensor:
        return -self.weights["risen"].sum()

    def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
        return {"gradient": update(self.loss(generator), self.optimizers["weights"])}

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        return {"value": weight_of(networks)[0].item()}


class Wanderer(Climber):
    """Random steps with momentum: the next step depends on everything that a checkpoint holds."""

    def __init__(self) -> None:
        super().__init__(size=5)
        self.optimizers = {"weights": torch.optim.AdamW([self.weights["risen"]], 0.1)}

    def loss(self, generator: torch.Generator) -> Tensor:
        return (self.weights["risen"] - torch.randn(5, generator=generator)).square().sum()


def options(steps: int, **changes: Any) -> LoopOptions:
    return LoopOptions(
        steps, **{"warmup": 0, "validate_every": 100, "save_every": 2, "log_every": 1, **changes}
    )


def rows(folder: Path) -> list[list[str]]:
    with (folder / LOG).open(newline="") as file:
        return list(csv.reader(file))


def test_rate_rises_linearly_then_falls_on_a_cosine():
    schedule = LoopOptions(steps=110, warmup=10, final_rate=0.2)
    assert [schedule.rate_factor(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    assert schedule.rate_factor(60) == pytest.approx(0.6)  # half way: the mean of 1 and 0.2
    assert schedule.rate_factor(110) == pytest.approx(0.2)
    constant = LoopOptions(steps=110, warmup=10)
    assert {constant.rate_factor(step) for step in range(9, 200)} == {1.0}


def test_the_schedule_reaches_the_weights(tmp_path):
    learner = Climber(rate=2.0)
    Trainer(learner, options(4, warmup=4), tmp_path).run()
    assert learner.value == pytest.approx(2 * (0.25 + 0.5 + 0.75 + 1))


def averages_by_hand(steps: int, ema_decay: float) -> list[float]:
    """The averages after each step of a weight that is 1, 2, 3, ...; early averages are over fewer steps."""
    means = [0.0]
    for step in range(1, steps + 1):
        decay = min(ema_decay, (1 + step) / (10 + step))
        means.append(decay * means[-1] + (1 - decay) * step)
    return means[1:]


@pytest.mark.parametrize("steps", [3, 50])
def test_averages_follow_the_weights_as_computed_by_hand(tmp_path, steps):
    trainer = Trainer(Climber(), options(steps, ema_decay=0.6), tmp_path)
    trainer.run()
    mean = averages_by_hand(steps, 0.6)[-1]
    assert weight_of(trainer.averages).item() == pytest.approx(mean, rel=1e-5)
    if steps == 50:  # far from the start an average of decay d lags d / (1 - d) steps behind
        assert mean == pytest.approx(50 - 1.5, abs=1e-3)


def test_validation_samples_and_files_beside_checkpoints_have_the_averaged_weights(tmp_path):
    sampled: list[float] = []
    beside: list[float] = []

    def write(networks: Mapping[str, nn.Module], folder: Path) -> None:
        (beside if folder == tmp_path else sampled).append(weight_of(networks).item())

    often = options(6, ema_decay=0.9, validate_every=1, sample_every=1, save_every=1)
    Trainer(Climber(), often, tmp_path, write_samples=write, write_beside=write).run()
    validated = [float(row[3]) for row in rows(tmp_path) if row[1] == "validation"]
    wanted = averages_by_hand(6, 0.9)
    assert all(abs(mean - step) > 0.1 for step, mean in enumerate(wanted, 1))  # what the raw weights are
    assert validated == pytest.approx(wanted, rel=1e-5)
    assert sampled == pytest.approx(wanted, rel=1e-5)
    assert beside == pytest.approx(wanted, rel=1e-5)


def test_groups_of_an_optimizer_keep_their_own_rates(tmp_path):
    learner = Climber()
    slow = nn.Parameter(torch.zeros(1))
    learner.optimizers["weights"].add_param_group({"params": [slow], "lr": 0.25})
    trainer = Trainer(learner, options(1, warmup=2), tmp_path)
    trainer.run()
    rates = [group["lr"] for group in learner.optimizers["weights"].param_groups]
    assert rates == [0.5, 0.125]  # half way through the warm-up


def test_the_log_shows_means_since_the_row_before(tmp_path):
    class Counter(Climber):
        def train_step(self, step: int, generator: torch.Generator, update: Update) -> dict[str, float]:
            return {**super().train_step(step, generator, update), "number": float(step)}

    Trainer(Counter(), options(7, log_every=3), tmp_path).run()
    means = [(row[0], float(row[3])) for row in rows(tmp_path) if row[2] == "number"]
    assert means == [("3", 1.0), ("6", 4.0), ("7", 6.0)]


def test_what_is_frozen_is_neither_copied_nor_stored(tmp_path):
    trainer = Trainer(learner := Climber(), options(2), tmp_path)
    trainer.run()
    assert weight_of(trainer.averages, "frozen") is learner.weights["frozen"]
    assert weight_of(trainer.averages) is not learner.weights["risen"]
    state = read_checkpoint(tmp_path / CHECKPOINT)
    assert set(state["networks"]["weights"]) == set(state["averages"]["weights"]) == {"risen"}


def test_a_gradient_is_clipped_and_one_that_overflows_changes_nothing():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], 1.0)
    assert Update(clip_norm=0.5)((weight * 3).sum(), optimizer) == pytest.approx(6.0)
    assert weight.norm().item() == pytest.approx(0.5)
    before = weight.detach().clone()
    assert Update(clip_norm=0.5)((weight * torch.inf).sum(), optimizer) == torch.inf
    assert torch.equal(weight.detach(), before)


def test_a_run_in_pieces_is_the_run_in_one(tmp_path):
    whole = Trainer(Wanderer(), options(7), tmp_path / "whole")
    whole.run()
    for steps in (3, 5, 7):
        pieces = Trainer(Wanderer(), options(steps), tmp_path / "pieces")
        pieces.run()
    for one, other in ((pieces.learner.networks, whole.learner.networks), (pieces.averages, whole.averages)):
        assert torch.equal(weight_of(one), weight_of(other))
    kept = [row for row in rows(tmp_path / "whole") if row[2] == "gradient"]
    assert [row for row in rows(tmp_path / "pieces") if row[2] == "gradient"] == kept


def test_every_step_and_process_draws_other_numbers():
    draws = {step_generator(*numbers).initial_seed() for numbers in ((0, 0), (0, 1), (1, 0), (0, 0, 1))}
    assert len(draws) == 4
    assert step_generator(3, 5, 1).initial_seed() == step_generator(3, 5, 1).initial_seed()


def test_the_log_holds_each_step_once_after_a_kill(tmp_path):
    Trainer(Climber(), options(4), tmp_path).run()
    with (tmp_path / LOG).open("a") as file:  # two steps after the checkpoint, the last row half written
        file.write("5,train,gradient,1\n6,trai")
    Trainer(Climber(), options(6), tmp_path).run()
    steps = [row[0] for row in rows(tmp_path) if row[1:3] == ["train", "gradient"]]
    assert steps == ["1", "2", "3", "4", "5", "6"]
    assert rows(tmp_path)[0] == ["step", "kind", "name", "value"]


def test_older_checkpoints_are_kept_where_that_is_wanted(tmp_path):
    Trainer(Climber(), options(4, keep=True), tmp_path / "kept").run()
    kept = sorted((tmp_path / "kept").glob("*.pt"))
    assert [file.name for file in kept] == ["checkpoint-00000002.pt", "checkpoint-00000004.pt", CHECKPOINT]
    assert [read_checkpoint(file)["step"] for file in kept] == [2, 4, 4]
    Trainer(Climber(), options(4), tmp_path / "one").run()
    assert [file.name for file in (tmp_path / "one").glob("*.pt")] == [CHECKPOINT]


def test_samples_are_asked_for_at_their_steps(tmp_path):
    asked: list[tuple[str, float]] = []

    def write(networks: Mapping[str, nn.Module], folder: Path) -> None:
        asked.append((folder.name, weight_of(networks).item()))

    trainer = Trainer(Climber(), options(5, sample_every=2, ema_decay=0.0), tmp_path, write_samples=write)
    trainer.run()
    assert [name for name, _ in asked] == ["00000002", "00000004", "00000005"]
    assert [value for _, value in asked] == pytest.approx([2, 4, 5], rel=1e-5)


def test_another_network_does_not_take_up_a_checkpoint(tmp_path):
    Trainer(Climber(), options(2), tmp_path).run()
    with pytest.raises(InputError, match="other network sizes"):
        Trainer(Climber(size=3), options(4), tmp_path).run()
    stranger = Climber()
    stranger.networks = {"other": stranger.weights}
    stranger.averaged = ("other",)
    with pytest.raises(InputError, match="holds weights, this run trains other"):
        Trainer(stranger, options(4), tmp_path).run()


def test_a_damaged_checkpoint_is_named(tmp_path):
    Trainer(Climber(), options(2), tmp_path).run()
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint"):
        (tmp_path / CHECKPOINT).write_bytes(damaged)
        with pytest.raises(InputError, match=r"checkpoint\.pt: cannot be read"):
            Trainer(Climber(), options(4), tmp_path).run()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("log_every", 0),
        ("ema_decay", 1.0),
        ("final_rate", 1.5),
        ("clip_norm", 0.0),
        ("seed", -1),
    ],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        LoopOptions(**{"steps": 10, name: value})


def test_a_run_is_taken_up_only_with_the_options_that_decide_its_result(tmp_path):
    declare_run(tmp_path, {"batch": 8, "betas": (0.9, 0.95)}, {"steps": 10})
    # Nothing was trained yet, so the options may still change.
    assert declare_run(tmp_path, {"batch": 16, "betas": (0.9, 0.95)}, {"steps": 10}) == []
    (tmp_path / CHECKPOINT).touch()
    assert declare_run(tmp_path, {"batch": 16, "betas": (0.9, 0.95)}, {"steps": 20}) == []
    assert read_run(tmp_path)["other"]["steps"] == 20
    with pytest.raises(InputError, match="started with batch 16, not 8; rank nothing, not 4; give the same"):
        declare_run(tmp_path, {"batch": 8, "betas": (0.9, 0.95), "rank": 4}, {"steps": 20})


def test_other_versions_are_worth_a_note(tmp_path):
    declare_run(tmp_path, {}, {})
    (tmp_path / CHECKPOINT).touch()
    text = (tmp_path / RUN).read_text()
    (tmp_path / RUN).write_text(text.replace('"torch": "', '"torch": "1.0-'))
    (note,) = declare_run(tmp_path, {}, {})
    assert note.startswith("torch was 1.0-")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no training run .there is no run\.json"):
        read_run(tmp_path)
    (tmp_path / RUN).write_text("{}")
    with pytest.raises(InputError, match="not the record of a run"):
        read_run(tmp_path)


def test_tensorboard_gets_the_same_values(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(Climber(), options(4), tmp_path, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/gradient")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("train/gradient")] == [1.0] * 4


def test_without_tensorboard_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        check_tensorboard()


def test_a_checkpoint_that_finds_no_room_is_told_and_the_old_one_stays(tmp_path):
    """Simulates a full disk by the largest file size that a process may write."""
    Trainer(Climber(), options(2), tmp_path).run()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    script = (
        "import resource, signal\n"
        "from test_training_loop import Climber, Trainer, options\n"
        "from thinksound.errors import OutputError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"try: Trainer(Climber(), options(4), {str(tmp_path)!r}).run()\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert "checkpoint.pt: cannot be written" in done.stdout, done.stderr
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_a_seed_that_is_too_large_is_refused():
    with pytest.raises(InputError, match="seed 4294967296 is out of range; give a whole number from 0 to"):
        options(1, seed=2**32)
