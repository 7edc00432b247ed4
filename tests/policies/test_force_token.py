"""SmolVLA with a token of force: nothing changes when it is added, it is seen by the actions, and it learns."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching

from lerobot_ext.errors import UserError
from lerobot_ext.features import OBS_FORCE
from lerobot_ext.modality.selection import ForceSelection, Selection
from lerobot_ext.modality.training import check_selection
from lerobot_ext.policies.force_token import ForceFlowMatching

IMAGE = "observation.images.side"
HISTORY, CHANNELS, CHUNK, JOINTS = 4, 3, 5, 2
PREFIX = 10  # one image token, eight words, the state


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm

    return make_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture
def make(vlm):
    """Makes a SmolVLA of random weights; equal seeds give equal weights where the models are the same."""

    def make(force=(HISTORY, CHANNELS), seed=0, **changes):
        torch.manual_seed(seed)
        return get_policy_class("smolvla")(make_config(vlm, force, **changes)).eval()

    return make


def make_config(vlm, force, **changes):
    from lerobot_ext.virtual.tiny_vlm import smolvla_overrides

    options = smolvla_overrides(vlm, chunk_size=CHUNK)
    kind = options.pop("type")
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
        IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    if force is not None:
        inputs[OBS_FORCE] = PolicyFeature(FeatureType.FORCE, force)
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))}
    return make_policy_config(
        kind, input_features=inputs, output_features=outputs, **{**options, "num_steps": 2, **changes}
    )


def make_batch(size=3, seed=0):
    """Images, tasks of different lengths, force; noise and time that both kinds of model are given."""
    random = torch.Generator().manual_seed(seed)
    words = torch.arange(8) < torch.tensor([8, 5, 3]).repeat(size)[:size, None]
    return {
        IMAGE: torch.rand(size, 3, 64, 64, generator=random),
        "observation.state": torch.randn(size, JOINTS, generator=random),
        OBS_FORCE: torch.randn(size, HISTORY, CHANNELS, generator=random),
        "observation.language.tokens": torch.randint(0, 200, (size, 8), generator=random),
        "observation.language.attention_mask": words,
        "action": torch.randn(size, CHUNK, JOINTS, generator=random),
    }


def noise_and_time(size=3, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, CHUNK, 32, generator=random), torch.rand(size, generator=random)


def losses(policy, batch):
    noise, time = noise_and_time(len(batch["action"]))
    return policy.forward(dict(batch), noise=noise, time=time, reduction="none")[0]


def chunk(policy, batch, **options):
    return policy.predict_action_chunk(dict(batch), noise=noise_and_time(len(batch["action"]))[0], **options)


def wake(policy, seed=5):
    """Give the token values as training does; a fresh one changes nothing."""
    torch.manual_seed(seed)
    for value in policy.model.force_token.values.values():
        torch.nn.init.normal_(value.weight, std=0.3)
    return policy


# --- who gets it ---


@pytest.mark.parametrize("force", [None, (CHANNELS,)])
def test_without_a_window_of_force_the_model_is_lerobots(make, force):
    policy = make(force)
    assert type(policy.model) is VLAFlowMatching
    assert len(losses(policy, make_batch())) == 3


def test_the_token_adds_parameters_under_its_own_name_and_changes_no_other(make):
    plain, policy = make(None).state_dict(), make().state_dict()
    assert {key for key in policy if not key.startswith("model.force_token.")} == set(plain)
    assert all(torch.equal(policy[key], plain[key]) for key in plain)
    assert isinstance(make().model, ForceFlowMatching)


def test_models_with_and_without_the_token_can_be_copied(make):
    for policy in (make(None), wake(make())):
        copied = copy.deepcopy(policy)
        assert type(copied.model) is type(policy.model)
        assert torch.equal(losses(copied, make_batch()), losses(policy, make_batch()))


def test_a_model_whose_actions_never_see_each_other_cannot_see_a_token(make):
    with pytest.raises(UserError, match="self_attn_every_n_layers 0 .* modality.force.fusion: state"):
        make(self_attn_every_n_layers=0)


# --- as if it were absent ---

LAYOUTS = {
    "every second layer": {},
    "every layer": {"self_attn_every_n_layers": 1},
    "one after the other": {"attention_mode": "self_attn"},
    "padded prefix": {"prefix_length": 40},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_fresh_token_changes_neither_losses_nor_actions(make, layout):
    plain, policy, batch = make(None, **layout), make(**layout), make_batch()
    torch.testing.assert_close(losses(policy, batch), losses(plain, batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(chunk(policy, batch), chunk(plain, batch), rtol=1e-5, atol=1e-5)


def test_a_fresh_token_changes_nothing_in_half_precision(make):
    plain, policy, batch = make(None), make(), make_batch()
    for one in (plain, policy):
        one.model.vlm_with_expert.to(torch.bfloat16)
    torch.testing.assert_close(losses(policy, batch), losses(plain, batch), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(chunk(policy, batch), chunk(plain, batch), rtol=2e-2, atol=2e-2)


def test_a_fresh_token_changes_nothing_in_real_time_chunking(make):
    batch, left = make_batch(1), torch.ones(1, 4, JOINTS)
    rtc = {"rtc_config": RTCConfig(enabled=True, execution_horizon=4)}
    given = {"inference_delay": 1, "prev_chunk_left_over": left, "execution_horizon": 4}
    plain, policy = make(None, **rtc), make(**rtc)
    torch.testing.assert_close(chunk(policy, batch, **given), chunk(plain, batch, **given))
    assert not torch.allclose(chunk(wake(policy), batch, **given), chunk(plain, batch, **given))


# --- who sees it ---


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_action_depends_on_every_sample_and_the_prefix_on_none(make, layout):
    policy, batch = wake(make(**layout)), make_batch(1)
    prefixes = []
    norm = policy.model.vlm_with_expert.get_vlm_model().text_model.norm
    norm.register_forward_hook(lambda *call: prefixes.append(call[2][:, :PREFIX]))
    before = chunk(policy, batch)
    losses(policy, batch)
    for sample in range(HISTORY):
        other = {**batch, OBS_FORCE: batch[OBS_FORCE].clone()}
        other[OBS_FORCE][0, sample] += 3
        assert ((chunk(policy, other) - before).abs().amax(-1) > 1e-6).all()
        losses(policy, other)
    assert len(prefixes) > HISTORY
    assert all(torch.equal(prefix, prefixes[i % 2]) for i, prefix in enumerate(prefixes))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_training_and_sampling_compute_the_same(make, layout):
    policy, batch = wake(make(**layout, num_steps=1)), make_batch()
    velocities = []
    policy.model.action_out_proj.register_forward_hook(lambda *call: velocities.append(call[2]))
    noise, _ = noise_and_time()
    with torch.no_grad():
        policy.forward(dict(batch), noise=noise, time=torch.ones(3))
    chunk(policy, batch)
    torch.testing.assert_close(velocities[0], velocities[1], rtol=1e-4, atol=1e-5)


def test_each_row_of_a_batch_has_its_own_force(make):
    policy, batch = wake(make()), make_batch()
    together = losses(policy, batch)
    noise, time = noise_and_time()
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        one, _ = policy.forward(alone, noise=noise[row : row + 1], time=time[row : row + 1], reduction="none")
        torch.testing.assert_close(one[0], together[row], rtol=1e-4, atol=1e-5)


def test_actions_taken_one_by_one_are_those_of_the_chunk(make):
    policy, batch = wake(make()), make_batch()
    expected = chunk(policy, batch)
    noise, _ = noise_and_time()
    taken = [policy.select_action(dict(batch), noise=noise) for _ in range(CHUNK)]
    assert torch.equal(torch.stack(taken, dim=1), expected)


def test_a_batch_without_its_window_is_an_error_that_says_what_is_missing(make):
    policy, batch = make(), make_batch()
    force = batch.pop(OBS_FORCE)
    with pytest.raises(ValueError, match="last 4 samples of 3 numbers"):
        chunk(policy, batch)
    with pytest.raises(ValueError, match=r"shape \(3, 3\), the policy's force token takes \(3, 4, 3\)"):
        chunk(policy, batch | {OBS_FORCE: force[:, -1]})


# --- training ---


def test_what_is_frozen_stays_frozen_and_the_token_is_trained(make):
    policy = make(train_expert_only=True, freeze_vision_encoder=True, train_state_proj=False)
    assert all(parameter.requires_grad for parameter in policy.model.force_token.parameters())
    assert not any(p.requires_grad for p in policy.model.vlm_with_expert.vlm.parameters())
    trained = {id(parameter) for parameter in policy.get_optim_params()}
    assert {id(parameter) for parameter in policy.model.force_token.parameters()} <= trained


def test_an_adapter_trains_the_token_whole(make):
    assert make()._get_default_peft_targets()["modules_to_save"] == ["force_token"]
    assert make(None)._get_default_peft_targets()["modules_to_save"] == []


@pytest.mark.parametrize("half", [False, True])
def test_a_fresh_token_has_gradients_from_the_first_step(make, half):
    policy, batch = make(self_attn_every_n_layers=1).train(), make_batch()
    if half:
        policy.model.vlm_with_expert.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-4)
    losses(policy, batch).mean().backward()
    values = policy.model.force_token.values
    assert len(values) == 2 and all(value.weight.grad.abs().max() > 1e-6 for value in values.values())
    optimizer.step()
    optimizer.zero_grad()
    losses(policy, batch).mean().backward()
    gradients = [parameter.grad for parameter in policy.model.force_token.embed.parameters()]
    assert all(torch.isfinite(gradient).all() and gradient.abs().max() > 0 for gradient in gradients)


def felt(seed, size=16):
    """A batch whose actions only force tells: they go one way or the other as the force's sign says."""
    batch = make_batch(size, seed)
    sign = batch[OBS_FORCE].mean(dim=(1, 2), keepdim=True).sign()
    return batch | {
        IMAGE: torch.zeros(size, 3, 64, 64),
        OBS_FORCE: batch[OBS_FORCE] * 0.3 + sign,
        "action": sign * torch.tensor([1.0, -1.0]) * torch.ones(CHUNK, 1),
    }


def test_at_smolvlas_learning_rate_sixty_steps_learn_what_only_force_tells(make):
    found = {}
    for force in (None, (HISTORY, CHANNELS)):
        policy = make(force).train()
        preset = policy.config.get_optimizer_preset()
        optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=preset.lr, betas=preset.betas)
        for step in range(1, 61):
            losses(policy, felt(step)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        policy.eval()
        test = felt(0)
        found[force is not None] = losses(policy, test).mean()
    assert preset.lr == 1e-4
    assert found[True] < 0.8 * found[False]
    assert losses(policy, test | {OBS_FORCE: -test[OBS_FORCE]}).mean() > 2 * found[True]


# --- checkpoints ---


def test_a_checkpoint_without_the_token_keeps_its_weights_and_the_log_says_so_once(
    make, vlm, tmp_path, caplog
):
    plain = make(None, seed=7)
    plain.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.input_features[OBS_FORCE] = PolicyFeature(FeatureType.FORCE, (HISTORY, CHANNELS))
    with caplog.at_level(logging.INFO):
        policy = get_policy_class("smolvla").from_pretrained(tmp_path, config=config, strict=True)
    assert [r.message for r in caplog.records if "force token" in r.message.lower()] == [
        "The checkpoint has no force token: its weights are kept, and the token starts anew."
    ]
    assert "Missing key" not in caplog.text
    loaded = policy.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in plain.state_dict().items())
    batch = make_batch()
    torch.testing.assert_close(chunk(policy, batch), chunk(plain, batch), rtol=1e-5, atol=1e-5)


def test_a_checkpoint_with_the_token_comes_back_bit_by_bit(make, tmp_path, caplog):
    policy, batch = wake(make()), make_batch()
    policy.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = get_policy_class("smolvla").from_pretrained(tmp_path, strict=True)
    assert loaded.config.input_features[OBS_FORCE] == PolicyFeature(FeatureType.FORCE, (HISTORY, CHANNELS))
    assert all(torch.equal(loaded.state_dict()[k], value) for k, value in policy.state_dict().items())
    assert torch.equal(chunk(loaded, batch), chunk(policy, batch))
    assert "force token" not in caplog.text


def test_a_token_of_another_window_is_refused(make, tmp_path):
    make().save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.input_features[OBS_FORCE] = PolicyFeature(FeatureType.FORCE, (HISTORY + 1, CHANNELS))
    with pytest.raises(UserError, match="takes 12 numbers .* asks for 15"):
        get_policy_class("smolvla").from_pretrained(tmp_path, config=config)


def test_a_token_with_a_part_missing_is_not_taken_for_a_fresh_one(make):
    state = make().state_dict()
    del state["model.force_token.embed.0.weight"]
    with pytest.raises(RuntimeError, match="force_token.embed.0.weight"):
        make().load_state_dict(state)


def test_a_new_run_may_add_a_token_to_a_checkpoint_and_nothing_else(tmp_path):
    step = {"registry_name": "lerobot_ext_modality", "config": {"selection": Selection().to_dict()}}
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    token = ForceSelection("token")
    check_selection(tmp_path, Selection(force=token), resume=False)
    with pytest.raises(UserError, match="force: on, off"):
        check_selection(tmp_path, Selection(force=token), resume=True)
    with pytest.raises(UserError, match="force: on, off"):
        check_selection(tmp_path, Selection(force=ForceSelection("state")), resume=False)
    with pytest.raises(UserError, match="here and there: language_tip: True, False. Train"):
        check_selection(tmp_path, Selection(force=token, language_tip=True), resume=False)
