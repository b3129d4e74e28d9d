import json
import pickle
from pathlib import Path

import pytest
import torch
from harmful import Harmful
from safetensors.torch import load_file, save_file

from debias_ssl.methods import DebiasPL
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import remove_unfinished
from debias_ssl.training.checkpoint import base_of, checkpoints, load_checkpoint, save_checkpoint
from debias_ssl.training.learner import Learner
from debias_ssl.training.optim import OptimConfig, make_optimizer


def debiaspl(problem) -> DebiasPL:
    return DebiasPL(problem, threshold=0.4, momentum=0.5)


def train(learner, optimizer, batches) -> None:
    for k, batch in enumerate(batches):
        torch.stack([*learner(batch, 0.0).losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(k)


def assert_same(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.fixture
def trained(make_learner, make_batch) -> tuple[Learner, torch.optim.Optimizer]:
    """A learner and its optimizer after two steps."""
    learner = make_learner(debiaspl)
    optimizer = make_optimizer(learner, OptimConfig())
    train(learner, optimizer, [make_batch(seed=k) for k in range(2)])
    return learner, optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "lamb", "adafactorbv"])
def test_training_goes_on_bit_for_bit(make_learner, make_batch, tmp_path, name):
    config = OptimConfig(name=name, lr=0.01)
    batches = [make_batch(seed=k) for k in range(4)]
    learner = make_learner(debiaspl)
    optimizer = make_optimizer(learner, config)
    train(learner, optimizer, batches[:2])
    scaler = {"scale": 65536.0, "_growth_tracker": 3}
    save_checkpoint(tmp_path, 2, learner, optimizer, scaler, keep=1)

    resumed = make_learner(debiaspl, seed=1)
    resumed_optimizer = make_optimizer(resumed, config)
    state = load_checkpoint(tmp_path / "step_00000002", resumed, resumed_optimizer)
    assert (state["step"], state["scaler"]) == (2, scaler)
    assert_same(resumed.state_dict(), learner.state_dict())
    assert_same(resumed_optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    assert len(optimizer.state_dict()["state"]) == len([*learner.raw.parameters()])

    for each in ((learner, optimizer), (resumed, resumed_optimizer)):
        train(*each, batches[2:])
    assert_same(resumed.state_dict(), learner.state_dict())


def test_a_checkpoint_before_the_first_step_has_no_optimizer_state(make_learner, tmp_path):
    learner = make_learner(debiaspl)
    save_checkpoint(tmp_path, 0, learner, make_optimizer(learner, OptimConfig()), {}, keep=1)
    other = make_learner(debiaspl, seed=1)
    assert load_checkpoint(tmp_path / "step_00000000", other, make_optimizer(other, OptimConfig()))["step"] == 0
    assert_same(other.state_dict(), learner.state_dict())


def test_marginals_and_averages_are_in_it(trained, tmp_path):
    learner, optimizer = trained
    save_checkpoint(tmp_path, 2, learner, optimizer, {}, keep=1)
    saved = load_file(tmp_path / "step_00000002" / "learner.safetensors")
    assert saved["marginal.value"].equal(learner.marginal.value)
    assert saved["raw.method.marginal.value"].equal(learner.raw.method.marginal.value)
    assert saved["ema.model.net.fc.weight"].equal(learner.ema.model.net.fc.weight)


def test_the_newest_are_kept(trained, tmp_path):
    for step in (5, 10, 99_999_999, 100_000_000):  # longer than the eight digits of a name
        save_checkpoint(tmp_path, step, *trained, scaler={}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_99999999", "step_100000000"]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("step_100000000", "step_99999999", "step_00000003"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000003", "step_99999999", "step_100000000"]


def test_a_checkpoint_that_was_not_finished_is_ignored_and_replaced(trained, tmp_path):
    save_checkpoint(tmp_path, 1, *trained, scaler={}, keep=5)
    aside = tmp_path / ".step_00000002.debias_ssl.tmp"
    aside.mkdir()
    (aside / "learner.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000001"]
    # As the next job does that is given the folder.
    remove_unfinished(tmp_path)
    save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_an_old_one_is_never_half_gone(trained, tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, *trained, scaler={}, keep=2)

    def dying(path, **settings):
        # As when it is killed between two files.
        if Path(path).exists():
            next(iter(Path(path).iterdir())).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("debias_ssl.training.checkpoint.shutil.rmtree", dying)
        save_checkpoint(tmp_path, 3, *trained, scaler={}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    remove_unfinished(tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_saving_a_step_again_replaces_it(trained, tmp_path):
    learner, optimizer = trained
    save_checkpoint(tmp_path, 2, learner, optimizer, {}, keep=2)
    with torch.no_grad():
        learner.raw.model.net.fc.bias.fill_(7.0)
    save_checkpoint(tmp_path, 2, learner, optimizer, {}, keep=2)
    saved = load_file(tmp_path / "step_00000002" / "learner.safetensors")
    assert saved["raw.model.net.fc.bias"].tolist() == [7] * 4


def test_a_failure_while_saving_leaves_what_was_there(trained, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, *trained, scaler={}, keep=1)
    monkeypatch.setattr("debias_ssl.training.checkpoint.os.fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000001"]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def nulled(path: Path) -> None:
    path.write_bytes(b"null")


@pytest.mark.parametrize("damage", [truncated, emptied, nulled, Path.unlink])
@pytest.mark.parametrize("file", ["learner.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(trained, tmp_path, file, damage):
    save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=1)
    damage(tmp_path / "step_00000002" / file)
    with pytest.raises(InputError, match=r"checkpoint '.*step_00000002' cannot be loaded \(.+\): remove it"):
        load_checkpoint(tmp_path / "step_00000002", *trained)


def test_a_state_without_a_key_is_damaged(trained, tmp_path):
    save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=1)
    path = tmp_path / "step_00000002" / "state.json"
    state = json.loads(path.read_text())
    del state["step"]
    path.write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"step_00000002' cannot be loaded \('step'\)"):
        load_checkpoint(path.parent, *trained)


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path, make_learner):
    save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=1)
    other = make_learner(debiaspl, norm="group")
    with pytest.raises(InputError, match="step_00000002' cannot be loaded"):
        load_checkpoint(tmp_path / "step_00000002", other, make_optimizer(other, OptimConfig()))


# -- frozen weights

NETWORKS = [{"freeze": "backbone"}, {"adapter": "lora", "adapter_rank": 2}]


@pytest.mark.parametrize("network", NETWORKS, ids=["frozen", "lora"])
@pytest.mark.parametrize("is_found_again", [False, True])
def test_frozen_weights_are_in_it_once_or_where_they_are_found_again_not_at_all(
    make_learner, make_batch, tmp_path, network, is_found_again
):
    learner = make_learner(debiaspl, network=network)
    optimizer = make_optimizer(learner, OptimConfig())
    train(learner, optimizer, [make_batch(seed=k) for k in range(2)])
    base = base_of(learner, is_found_again=is_found_again)
    save_checkpoint(tmp_path, 2, learner, optimizer, {}, keep=1, base=base)
    saved = load_file(tmp_path / "step_00000002" / "learner.safetensors").keys()
    trained = {name for name, weight in learner.raw.named_parameters() if weight.requires_grad}
    frozen = {name for name, _ in learner.raw.named_parameters()} - trained
    assert {f"{model}.{name}" for name in trained for model in ("raw", "ema")} <= saved
    assert not {f"ema.{name}" for name in frozen} & saved
    assert {f"raw.{name}" for name in frozen} & saved == (set() if is_found_again else {f"raw.{n}" for n in frozen})
    # Whoever goes on has the weights of the file, or other initial ones.
    resumed = make_learner(debiaspl, network=network, seed=0 if is_found_again else 1)
    resumed_optimizer = make_optimizer(resumed, OptimConfig())
    base = base_of(resumed, is_found_again=is_found_again)
    load_checkpoint(tmp_path / "step_00000002", resumed, resumed_optimizer, base)
    for each in ((learner, optimizer), (resumed, resumed_optimizer)):
        train(*each, [make_batch(seed=2)])
    assert_same(resumed.state_dict(), learner.state_dict())


def test_other_frozen_weights_than_those_it_was_trained_beside_are_told(make_learner, tmp_path):
    learners = [make_learner(debiaspl, network=NETWORKS[1], seed=seed) for seed in (0, 1)]
    optimizers = [make_optimizer(learner, OptimConfig()) for learner in learners]
    bases = [base_of(learner, is_found_again=True) for learner in learners]
    save_checkpoint(tmp_path, 2, learners[0], optimizers[0], {}, keep=1, base=bases[0])
    path = tmp_path / "step_00000002"
    load_checkpoint(path, learners[0], optimizers[0], bases[0])
    with pytest.raises(InputError, match=r"belongs to other frozen weights.*the file that the run started with"):
        load_checkpoint(path, learners[1], optimizers[1], bases[1])


def test_one_of_an_older_version_that_holds_all_weights_is_read(make_learner, tmp_path):
    learner, resumed = (make_learner(debiaspl, network=NETWORKS[0], seed=seed) for seed in (0, 1))
    optimizers = [make_optimizer(each, OptimConfig()) for each in (learner, resumed)]
    save_checkpoint(tmp_path, 2, learner, optimizers[0], {}, keep=1, base=base_of(learner, is_found_again=False))
    path = tmp_path / "step_00000002"
    save_file({name: value.clone() for name, value in learner.state_dict().items()}, path / "learner.safetensors")
    state = json.loads((path / "state.json").read_text())
    del state["base"]
    (path / "state.json").write_text(json.dumps(state))
    load_checkpoint(path, resumed, optimizers[1], base_of(resumed, is_found_again=True))
    assert_same(resumed.state_dict(), learner.state_dict())


@pytest.mark.parametrize("dump", [pickle.dumps, "torch"])
@pytest.mark.parametrize("file", ["learner.safetensors", "optimizer.safetensors", "state.json"])
def test_code_in_a_checkpoint_is_not_executed(trained, tmp_path, file, dump):
    save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=1)
    harmful, path = Harmful(tmp_path / "was_here"), tmp_path / "step_00000002" / file
    if dump == "torch":
        torch.save(harmful, path)
    else:
        path.write_bytes(dump(harmful))
    with pytest.raises(InputError, match="step_00000002' cannot be loaded"):
        load_checkpoint(path.parent, *trained)
    assert not harmful.trace.exists()


def test_a_checkpoint_holds_tensors_and_json_only(trained, tmp_path):
    save_checkpoint(tmp_path, 2, *trained, scaler={}, keep=1)
    names = sorted(path.name for path in (tmp_path / "step_00000002").iterdir())
    assert names == ["learner.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((tmp_path / "step_00000002" / "state.json").read_text())["machine"]["processes"] == 1


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "lamb", "adafactorbv"])
def test_restored_momentum_moves_the_weights_that_it_is_of(name, tmp_path):
    """Also where weights lie in memory in another order than files hold them, which a fused kernel does not see."""
    learners = [torch.nn.Conv2d(3, 4, 3) for _ in range(2)]
    learners = [learner.to(memory_format=torch.channels_last) for learner in learners]
    optimizers = [make_optimizer(learner, OptimConfig(name=name)) for learner in learners]

    def step(number: int) -> None:
        torch.manual_seed(7)
        learners[number](torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizers[number].step()
        optimizers[number].zero_grad()

    step(0)
    save_checkpoint(tmp_path, 1, learners[0], optimizers[0], {}, 1)
    load_checkpoint(tmp_path / "step_00000001", learners[1], optimizers[1])
    for number in range(2):
        step(number)
    for unbroken, resumed in zip(*(learner.parameters() for learner in learners), strict=True):
        assert torch.equal(unbroken, resumed)
