"""Training of the transformer: its inputs and targets are right, and it learns them."""

from __future__ import annotations

import pytest
import torch
from support.reference import four
from support.training_data import random_batch, write_clips
from torch.nn.functional import softplus

from thinksound.data.shards import Batch, PreparedClips
from thinksound.errors import InputError
from thinksound.families.tiny import Sizes, TinyFamily
from thinksound.models.flow import Conditions
from thinksound.models.mmdit import MMDiT, MMDiTConfig
from thinksound.models.spectrogram_vae import SpectrogramVAEConfig
from thinksound.presets import LIGHT, TINY
from thinksound.sampling.solvers import euler, flow_times
from thinksound.training.flow import (
    FlowLearner,
    draw_dropped,
    draw_times,
    epoch_order,
    given_features,
    initialise_flow,
    noisy,
    recompute_blocks,
)
from thinksound.training.loop import Trainer, Update, step_generator
from thinksound.training.options import FlowOptions, LoopOptions

pytestmark = pytest.mark.slow

SMALL = Sizes(
    mmdit=MMDiTConfig(
        latent_dim=8,
        clip_dim=16,
        clip_text_dim=16,
        sync_dim=24,
        text_dim=32,
        text_length=6,
        hidden_dim=32,
        depth=3,
        fused_depth=1,
        num_heads=2,
    ),
    vae=SpectrogramVAEConfig(latent_dim=8),
)
FAMILY = TinyFamily(TINY, SMALL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> PreparedClips:
    return PreparedClips(write_clips(tmp_path_factory.mktemp("clips") / "prepared", 6, family=FAMILY))


def small_network(seed: int = 0, recompute: bool = False) -> MMDiT:
    """A network whose values are no longer the initial ones, some of them 0, so that every weight matters."""
    network = MMDiT(FAMILY.sizes.mmdit)
    initialise_flow(network, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    if recompute:
        recompute_blocks(network)
    return network


def conditions_of(network: MMDiT, batch: Batch) -> Conditions:
    """The network's conditions for a batch in which nothing is dropped."""
    given = four(given_features(network, FAMILY.conditions, batch))
    return network.project(*given, batch.latent_mean.shape[-1])


def weights_after_one_step(
    clips: PreparedClips, options: FlowOptions, recompute: bool = False
) -> torch.Tensor:
    learner = FlowLearner(network := small_network(recompute=recompute), FAMILY, options, clips)
    learner.train_step(3, step_generator(0, 3), Update(1.0))
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_the_way_that_is_taught_is_the_one_that_the_sampler_goes():
    generator = torch.Generator().manual_seed(0)
    clip, noise = torch.randn(2, 3, 8, 20, generator=generator).unbind()
    times = torch.tensor([0.9, 0.5, 0.1])
    state, velocity = noisy(clip, noise, times)
    # The velocity of the flow that ends in these clips is known exactly.
    torch.testing.assert_close(velocity, (state - clip) / times[:, None, None])
    arrived = euler(lambda latents, time: (latents - clip) / time, noise, flow_times(10), lambda step: None)
    torch.testing.assert_close(arrived, clip)
    at_ends = noisy(clip, noise, torch.tensor([0.0, 1.0, 0.0]))[0]
    torch.testing.assert_close(at_ends, torch.stack([clip[0], noise[1], clip[2]]))


def test_times_are_logit_normal():
    times = draw_times(20_000, torch.Generator().manual_seed(0))
    for quantile, deviations in ((0.0228, -2), (0.1587, -1), (0.5, 0), (0.8413, 1)):
        expected = torch.sigmoid(torch.tensor(float(deviations)))
        assert (times < expected).float().mean().item() == pytest.approx(quantile, abs=0.01)


def test_conditions_are_dropped_as_often_as_asked():
    dropped = draw_dropped(
        20_000, 4, FlowOptions(drop_one=0.2, drop_all=0.1), torch.Generator().manual_seed(0)
    )
    assert dropped.shape == (20_000, 4)
    assert dropped.float().mean(dim=0).tolist() == pytest.approx([1 - 0.8 * 0.9] * 4, abs=0.01)
    assert dropped.all(dim=1).float().mean().item() == pytest.approx(0.1 + 0.9 * 0.2**4, abs=0.01)
    # Dropped independently: any two are dropped together with the product of their chances.
    pair = (dropped[:, 0] & dropped[:, 2]).float().mean().item()
    assert pair == pytest.approx(0.1 + 0.9 * 0.2**2, abs=0.01)
    nothing = draw_dropped(100, 4, FlowOptions(drop_one=0, drop_all=0), torch.Generator().manual_seed(0))
    assert not nothing.any()


def test_what_is_absent_is_replaced_by_null_features():
    network, batch = small_network(), random_batch(3, family=FAMILY)
    assert batch.has_video.tolist() == [True, True, False]
    dropped = torch.zeros(3, 4, dtype=torch.bool)
    dropped[1, 3] = True
    clip, sync, text, t5 = given_features(network, FAMILY.conditions, batch, dropped)
    given = batch.features
    empty = network.empty_features(clip.shape[1], sync.shape[1])
    assert torch.equal(clip[:2], given["clip_features"][:2]) and torch.equal(clip[2], empty[0][0])
    assert torch.equal(sync[:2], given["sync_features"][:2]) and torch.equal(sync[2], empty[1][0])
    assert torch.equal(text, given["text_features"])
    assert torch.equal(t5[[0, 2]], given["t5_features"][[0, 2]]) and torch.equal(t5[1], empty[3][0])


def test_null_features_learn_where_something_is_absent(clips):
    network = small_network()
    learner = FlowLearner(network, FAMILY, FlowOptions(batch=6, drop_one=0.5), clips)
    before = {name: value.clone() for name, value in network.named_parameters() if "empty" in name}
    learner.train_step(0, step_generator(0, 0), Update(1.0))
    after = dict(network.named_parameters())
    assert len(before) == 4  # every clip has texts: their null features learn only from dropped ones
    for name, value in before.items():
        assert not torch.equal(after[name], value), name


def test_every_round_has_every_clip_once_in_another_order():
    order = epoch_order(7, seed=1, start=0, length=21)
    rounds = [order[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(each) for each in rounds] == [list(range(7))] * 3
    assert len({tuple(each) for each in rounds}) == 3
    assert epoch_order(7, seed=2, start=0, length=7) != rounds[0]
    # The list is the same from any start.
    assert epoch_order(7, seed=1, start=5, length=9) == order[5:14]


def test_the_loss_of_one_batch_goes_down(clips):
    learner = FlowLearner(
        small_network(), FAMILY, FlowOptions(batch=6, learning_rate=3e-3, drop_one=0, drop_all=0), clips
    )
    fixed = [learner.train_step(0, step_generator(0, 0), Update(1.0))["loss"] for _ in range(40)]
    assert fixed[-1] < 0.5 * fixed[0]


def test_training_leads_from_noise_to_the_clips(clips):
    """Two clips with different captions: after training each caption leads to its own clip."""
    network = small_network()
    options = FlowOptions(batch=2, learning_rate=3e-3, drop_one=0, drop_all=0)
    first_two = _Some(clips, 2)
    learner = FlowLearner(network, FAMILY, options, first_two)
    for step in range(80):
        learner.train_step(step, step_generator(0, step), Update(1.0))
    batch = first_two.batch([0, 1])
    noise = torch.randn(batch.latent_mean.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        given = given_features(network, FAMILY.conditions, batch)
        found = FAMILY.follow(network, given, noise, 16, 1.0, lambda step: None)
    distance = torch.cdist(found.flatten(1), batch.latent_mean.flatten(1))
    assert distance[0, 0] < 0.6 * distance[0, 1]
    assert distance[1, 1] < 0.6 * distance[1, 0]


class _Some(PreparedClips):
    """The first clips of a folder."""

    def __init__(self, clips: PreparedClips, count: int) -> None:
        super().__init__(clips.folder)
        self.names = self.names[:count]


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_a_step_in_parts_is_the_same_step(clips, parts):
    whole = weights_after_one_step(clips, FlowOptions(batch=6))
    torch.testing.assert_close(weights_after_one_step(clips, FlowOptions(batch=6, parts=parts)), whole)


def test_what_is_computed_again_is_the_same(clips):
    whole = weights_after_one_step(clips, FlowOptions(batch=3))
    assert torch.equal(weights_after_one_step(clips, FlowOptions(batch=3), recompute=True), whole)
    network = small_network(recompute=True)
    assert list(network.state_dict()) == list(small_network().state_dict())


def test_averages_of_recomputing_blocks_are_their_own(clips, tmp_path):
    """A copy of a network whose blocks recompute must not compute with the original's blocks."""
    learner = FlowLearner(network := small_network(recompute=True), FAMILY, FlowOptions(batch=2), clips)
    trainer = Trainer(learner, LoopOptions(steps=1), tmp_path)
    average = trainer.averages["dit"]
    assert isinstance(average, MMDiT)
    batch = random_batch(2, family=FAMILY)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
        conditions = conditions_of(average, batch)
        assert average(batch.latent_mean, torch.ones(2), conditions).abs().max() == 0
        conditions = conditions_of(network, batch)
        assert network(batch.latent_mean, torch.ones(2), conditions).abs().max() > 0


def test_validation_is_the_same_every_time(clips):
    network = small_network()
    learner = FlowLearner(network, FAMILY, FlowOptions(batch=2), clips, clips)
    loss = learner.validate({"dit": network})["loss"]
    assert learner.validate({"dit": network})["loss"] == loss
    alone = FlowLearner(network, FAMILY, FlowOptions(batch=2), clips)
    assert alone.validate({"dit": network}) == {}


def fresh_network() -> MMDiT:
    """A network whose velocity is 0 everywhere, so that its loss is the mean square of the true velocity."""
    network = MMDiT(FAMILY.sizes.mmdit)
    initialise_flow(network, 0)
    return network


def mean_square_velocity(clips: PreparedClips, chosen: list[int], generator: torch.Generator) -> float:
    """The mean square velocity between noise and latents, both drawn in the order of a training step."""
    batch = clips.batch(chosen)
    latent_noise = torch.randn(batch.latent_mean.shape, generator=generator)
    noise = torch.randn(batch.latent_mean.shape, generator=generator)
    latents = batch.latent_mean + (softplus(batch.latent_scale) + 1e-4) * latent_noise
    return (noise - latents).square().mean().item()


def test_a_step_asks_for_the_velocity_between_noise_and_drawn_latents(clips):
    for step in (0, 1):
        options = FlowOptions(batch=5, parts=4)  # in two, two and one
        row = FlowLearner(fresh_network(), FAMILY, options, clips, seed=3).train_step(
            step, step_generator(0, step), Update(1.0)
        )
        chosen = epoch_order(6, 3, 5 * step, 5)
        wanted = mean_square_velocity(clips, chosen, step_generator(0, step))
        assert row["loss"] == pytest.approx(wanted, rel=1e-5)


def test_validation_is_the_mean_over_clips_and_five_times(clips):
    learner = FlowLearner(network := fresh_network(), FAMILY, FlowOptions(batch=4), clips, clips)
    times: list[float] = []

    def record(module: MMDiT, inputs: tuple[torch.Tensor, ...]) -> None:
        times.extend(inputs[1].tolist())

    network.register_forward_pre_hook(record)
    loss = learner.validate({"dit": network})["loss"]
    assert times == pytest.approx(
        [time for count in (4, 2) for time in (0.1, 0.3, 0.5, 0.7, 0.9) for _ in range(count)]
    )
    generator = torch.Generator().manual_seed(0)
    four, two = (mean_square_velocity(clips, chosen, generator) for chosen in ([0, 1, 2, 3], [4, 5]))
    assert loss == pytest.approx((4 * four + 2 * two) / 6, rel=1e-5)


def test_validation_sees_every_condition(clips):
    network = small_network()
    learner = FlowLearner(network, FAMILY, FlowOptions(batch=6), clips, clips)
    loss = learner.validate({"dit": network})["loss"]
    for empty in (network.empty_clip_feat, network.empty_sync_feat):
        with torch.no_grad():
            empty.add_(1)
    # Null features of frames change only the clips without frames.
    assert learner.validate({"dit": network})["loss"] != loss
    learner.validation = _Some(clips, 2)  # both have frames
    loss = learner.validate({"dit": network})["loss"]
    for empty in (network.empty_clip_feat, network.empty_sync_feat):
        with torch.no_grad():
            empty.add_(1)
    assert learner.validate({"dit": network})["loss"] == loss


def test_the_optimizer_has_the_rate_and_betas_that_were_asked_for(clips):
    options = FlowOptions(batch=2, learning_rate=0.125, betas=(0.5, 0.75))
    for group in FlowLearner(small_network(), FAMILY, options, clips).optimizers["dit"].param_groups:
        assert (group["lr"], group["betas"]) == (0.125, (0.5, 0.75))


def test_a_fresh_network_keeps_the_power_of_what_goes_through_it():
    for name, value in fresh_network().named_parameters():
        if "adaLN" in name or name.startswith("final_layer.conv"):
            assert value.abs().max() == 0, name
        elif "empty" in name or name == "sync_pos_emb":
            assert value.std().item() == pytest.approx(0.02, rel=0.3), name
        elif value.dim() == 1:
            assert value.unique().tolist() == [1.0 if name.endswith("norm.weight") else 0.0], name
        else:  # Glorot's: the mean of what keeps the power forwards and backwards
            outputs, inputs, *kernel = value.shape
            size = int(torch.tensor(kernel).prod()) if kernel else 1
            wanted = (2 / ((inputs + outputs) * size)) ** 0.5
            assert value.std().item() == pytest.approx(wanted, rel=0.15), name


def test_products_in_bfloat16_stay_close_and_leave_weights_in_float32(clips):
    whole = weights_after_one_step(clips, FlowOptions(batch=2))
    half = weights_after_one_step(clips, FlowOptions(batch=2, dtype="bfloat16"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    # AdamW's first step has the size of the learning rate, whatever the sign of the gradient.
    torch.testing.assert_close(half, whole, atol=2.1 * 5e-5, rtol=1e-3)


def test_a_fresh_network_gives_no_velocity_and_still_learns(clips):
    network = MMDiT(FAMILY.sizes.mmdit)
    initialise_flow(network, 0)
    batch = random_batch(2, family=FAMILY)
    conditions = conditions_of(network, batch)
    assert network(batch.latent_mean, torch.ones(2), conditions).abs().max() == 0
    learner = FlowLearner(network, FAMILY, FlowOptions(batch=6, learning_rate=3e-3), clips)
    for step in range(30):
        learner.train_step(step, step_generator(0, step), Update(1.0))
    assert learner.validate({"dit": network}) == {}
    learner.validation = clips
    fresh = MMDiT(FAMILY.sizes.mmdit)
    initialise_flow(fresh, 0)
    assert learner.validate({"dit": network})["loss"] < 0.95 * learner.validate({"dit": fresh})["loss"]


def test_weight_decay_shrinks_matrices_and_nothing_else(clips):
    """AdamW multiplies a weight by 1 minus rate times decay, whatever its gradient is."""
    rate, decay = 1e-2, 0.5

    def after(weight_decay: float) -> dict[str, torch.Tensor]:
        options = FlowOptions(batch=2, learning_rate=rate, weight_decay=weight_decay)
        learner = FlowLearner(network := small_network(), FAMILY, options, clips)
        learner.train_step(0, step_generator(0, 0), Update(1.0))
        return dict(network.named_parameters())

    plain, decayed = after(0.0), after(decay)
    for name, start in small_network().named_parameters():
        taken = rate * decay * start if start.dim() > 1 else torch.zeros_like(start)
        torch.testing.assert_close(plain[name] - decayed[name], taken, atol=1e-6, rtol=1e-4, msg=name)


def test_clips_of_another_preset_are_refused(clips):
    for preset in (TINY, LIGHT):
        with pytest.raises(InputError, match="prepare the files again with --preset"):
            clips.check(preset)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("drop_one", 1.0),
        ("drop_all", -0.1),
        ("learning_rate", 0.0),
        ("parts", 9),
        ("betas", (0.9, 1.5)),
        ("weight_decay", -1.0),
    ],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        FlowOptions(**{name: value})
