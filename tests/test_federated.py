# SPDX-License-Identifier: Apache-2.0
"""A packed bundle in federated learning: MONAI's client, two rounds in one process, without NVFlare."""

import csv

import pytest
import torch
from ignite.engine import Engine, Events
from monai.fl.client.monai_algo import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from bundles import BUNDLES, TINY_TRAINING, write_balls
from monai_unetpp import UNetPlusPlus
from monai_unetpp.bundle import pack_bundle
from monai_unetpp.handlers import EarlyStop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("_path_as_before"),
    pytest.mark.filterwarnings("ignore:.*(federated|provisioned|_target_):UserWarning"),  # bundles are code
]

NET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": (16, 32, 64, 128), "strides": 2}
EPOCHS = 2  # of a round


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """After two rounds of two epochs: the client, and (epoch, seed, learning rate) as each epoch began."""
    root = tmp_path_factory.mktemp("federated")
    torch.manual_seed(0)
    torch.save(UNetPlusPlus(**NET).state_dict(), root / "model.pt")
    bundle = pack_bundle(BUNDLES / "liver", root / "model.pt", root / "liver_fl")
    settings = {**TINY_TRAINING, "channels": list(NET["channels"]), "bundle_root": str(bundle), "patience": 1}
    client = MonaiAlgo(
        str(bundle),
        local_epochs=EPOCHS,
        train_kwargs={**settings, "dataset_dir": str(write_balls(root / "data"))},
        config_evaluate_filename=None,
    )
    client.initialize({ExtraItems.CLIENT_NAME: "site"})
    trainer, began = client.trainer, []

    @trainer.on(Events.EPOCH_STARTED)
    def _(engine):
        began.append((engine.state.epoch, torch.initial_seed(), engine.optimizer.param_groups[0]["lr"]))

    weights = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    for _ in range(2):
        client.train(ExchangeObject(weights=weights), {})
        made = client.get_weights()
        assert made.weight_type == WeightType.WEIGHT_DIFF
        weights = {key: value + made.weights[key] for key, value in weights.items()}
    return client, bundle, began, weights


def test_epochs_count_on_and_each_has_a_seed_of_its_own(rounds):
    _, bundle, began, _ = rounds
    assert [epoch for epoch, _, _ in began] == [1, 2, 3, 4][: len(began)]
    assert len(began) > EPOCHS
    assert len({seed for _, seed, _ in began}) == len(began)
    with (bundle / "runs" / "epochs.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [epoch for epoch, _, _ in began]


def test_learning_rate_decays_anew_in_each_round(rounds):
    _, _, began, _ = rounds
    first, second = TINY_TRAINING["learning_rate"], TINY_TRAINING["learning_rate"] * 0.5**0.9
    assert [rate for _, _, rate in began] == pytest.approx([first, second, first, second][: len(began)])


def test_patience_is_counted_anew_in_each_round():
    evaluator, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.state.key_metric_name, evaluator.state.metrics = "dice", {"dice": 0.5}  # never better
    EarlyStop(evaluator, interval=1, patience=2).attach(trainer)
    ends = []
    for _ in range(2):
        trainer.state.max_epochs = trainer.state.epoch + 9
        trainer.run([0], max_epochs=trainer.state.max_epochs)
        ends.append(trainer.state.epoch)
    assert ends == [3, 5]  # the first round has a first validation, which is the best


def test_weights_of_the_last_round_are_those_of_the_network(rounds):
    client, *_, weights = rounds
    for key, value in client.trainer.network.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-6)
