"""Sessions: charged before the noise, exact without it, and silent about how many examples there are."""

import math
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from fleet.errors import BudgetError, StoreError, TaskError
from fleet.privacy.gaussian import Budget, charge_of
from fleet.privacy.release import clip
from fleet.task import PrivacyUnit, Signature, Task, Training, Windows, layout_of, set_weights, weights_of
from fleet.weights import Flat
from node.buffer import Buffer
from node.learner import Learner, PerExampleGradients
from node.ledger import Ledger
from node.store import open_store
from tests.power_cut import PowerCut

BUDGET = Budget(8.0, 1e-5)
SIGNATURE = Signature("x", (3,), -1.0, 1.0, ("a", "b", "c"))
CLIPPING_NORM = 0.3


class Front(nn.Module):
    """A front without weights to train, then one layer that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.linspace(-1, 1, 12).reshape(3, 4))
        self.frozen = nn.Linear(4, 5).requires_grad_(False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.sin(self.frozen(x @ self.get_buffer("waves"))))
        return logits


class Scaled(Front):
    """Its output is not that of its only trained layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


class Twice(Front):
    """Its only trained layer is asked twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + super().forward(x / 2)


def mlp() -> nn.Module:
    return mlp_of(3)


class Waves(nn.Module):
    """Nothing to train."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x * torch.tensor([1.0, 2.0, 3.0]))


def deep() -> nn.Module:
    """Two trained layers over two that are not."""
    return nn.Sequential(Waves(), nn.Linear(3, 4).requires_grad_(False), mlp_of(4))


def mlp_of(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Hardtanh(), nn.Linear(4, 3))


def task(model: Any = mlp) -> Task:
    torch.manual_seed(1)
    made = model()
    start = made.state_dict()

    def build() -> nn.Module:
        again: nn.Module = model()
        again.load_state_dict(start)
        return again

    return Task("toy", build, SIGNATURE, PrivacyUnit("point"), Training(learning_rate=0.7, examples=10), dict)


def points(count: int, seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    return Windows(rng.uniform(-1, 1, (count, 3)).astype(np.float32), rng.integers(0, 3, count))


class Known:
    """Noise of zero that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
        self.asked.append((size, std))
        return np.zeros(size, np.int64)


class Node:
    """A learner over a store."""

    def __init__(self, path: Path, noise: Known, *, budget: Budget = BUDGET, partition_size: int = 100) -> None:
        self.task = task()
        self.base = weights_of(self.task.model())
        self.store = open_store(path)
        self.ledger = Ledger(self.store, budget)
        self.buffer = Buffer(self.store, SIGNATURE, partition_size=partition_size)
        self.learner = Learner(self.task, self.ledger, self.buffer, noise, clipping_norm=CLIPPING_NORM)

    def learn(self, releases: int = 2, noise_multiplier: float | None = None) -> tuple[Flat, int] | None:
        noise = self.ledger.budget.noise_multiplier(4) if noise_multiplier is None else noise_multiplier
        return self.learner.learn(self.base, releases=releases, noise_multiplier=noise)

    def delta(self, releases: int) -> Flat:
        session = self.learn(releases)
        assert session is not None
        return session[0]


def autograd(model: nn.Module, weights: Flat, examples: Windows) -> npt.NDArray[np.float64]:
    """Per-example gradients the slow way: one example, one backward pass."""
    set_weights(model, weights)
    rows = []
    for x, y in zip(torch.from_numpy(examples.x), torch.from_numpy(examples.y), strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        trained = [p for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([g.ravel() for g in torch.autograd.grad(loss, trained)]).double().numpy())
    return np.array(rows)


class Unbiased(Front):
    """Its head has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3, bias=False)


class FrozenBias(Front):
    """Of its head, only the weight is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.head.bias.requires_grad_(False)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_an_example_that_is_not_finite_spoils_no_other(value: float) -> None:
    toy, examples = task(lambda: nn.Linear(3, 3)), points(7)
    honest = PerExampleGradients(toy).of(examples)(weights_of(toy.model()))
    examples.x[2] = value
    spoiled = PerExampleGradients(toy).of(examples)(weights_of(toy.model()))
    others = np.arange(7) != 2
    np.testing.assert_array_equal(spoiled[others], honest[others])
    assert np.isfinite(clip(spoiled, CLIPPING_NORM)).all()


@pytest.mark.parametrize("model", [mlp, deep, Front, Scaled, Twice, Unbiased, FrozenBias, lambda: nn.Linear(3, 3)])
def test_gradients_are_those_of_each_example_alone(model: Any) -> None:
    toy, examples = task(model), points(7)
    gradients = PerExampleGradients(toy).of(examples)
    layout = layout_of(toy.model())
    for seed in range(3):
        weights = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
        np.testing.assert_allclose(gradients(weights), autograd(toy.model(), weights, examples), atol=1e-6)


@pytest.mark.parametrize("model", [mlp, deep, Front])
def test_a_gradient_is_taken_where_the_graph_clips_a_reading_to(model: Any) -> None:
    toy, inside = task(model), points(7)
    weights = weights_of(toy.model())
    far, clipped = Windows(3 * inside.x, inside.y), Windows((3 * inside.x).clip(-1, 1), inside.y)
    source = PerExampleGradients(toy)
    np.testing.assert_array_equal(source.of(far)(weights), source.of(clipped)(weights))


@pytest.mark.parametrize("model", [mlp, deep])
def test_a_model_that_is_made_for_answering_learns_as_any_other(model: Any) -> None:
    toy, answering = task(model), task(lambda: model().eval())
    weights = weights_of(toy.model())
    found = PerExampleGradients(answering).of(points(7))(weights)
    np.testing.assert_array_equal(found, PerExampleGradients(toy).of(points(7))(weights))


def test_a_model_that_learns_already_is_refused_as_a_second_one() -> None:
    """Its gradients would be those of both."""
    model = mlp()
    cached = Task("toy", lambda: model, SIGNATURE, PrivacyUnit("point"), Training(learning_rate=0.7, examples=10), dict)
    weights = weights_of(model)
    found = PerExampleGradients(cached).of(points(7))(weights)
    with pytest.raises(TaskError, match="toy: the model learns already: make a new one"):
        PerExampleGradients(cached)
    np.testing.assert_allclose(found, autograd(mlp(), weights, points(7)), atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout(0.5, inplace=True)])
def test_what_is_drawn_at_random_is_drawn_at_every_step(layer: nn.Module) -> None:
    toy = task(lambda: nn.Sequential(nn.Flatten(), layer, nn.Linear(3, 3)))
    gradients = PerExampleGradients(toy).of(points(50))
    weights = weights_of(toy.model())
    torch.manual_seed(0)
    first, second, third = gradients(weights), gradients(weights), gradients(weights)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert (third != 0).mean() > 0.5  # a third of it, if the three were drawn on top of one another


@pytest.mark.parametrize(("model", "front", "size"), [(Front, Front, 18), (deep, Waves, 35)])
def test_what_lies_under_all_that_is_trained_is_computed_once(
    model: Any, front: type[nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = task(model)
    source = PerExampleGradients(toy)
    gradients = source.of(points(7))
    monkeypatch.setattr(front, "forward", lambda *_: pytest.fail("the front was computed again"))
    assert gradients(weights_of(toy.model())).shape == (7, size)


def test_the_front_is_computed_again_only_when_its_partition_grew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    of = PerExampleGradients.of

    def counted(self: PerExampleGradients, examples: Windows) -> Any:
        sizes.append(len(examples))
        return of(self, examples)

    monkeypatch.setattr(PerExampleGradients, "of", counted)
    node = Node(tmp_path / "node.db", Known(), partition_size=5)
    for kept in (3, 0, 2, 4, 0):  # the last four begin a partition, which is not learned from before it is full
        node.buffer.keep(points(kept))
        node.learn(releases=1, noise_multiplier=100.0)
    assert sizes == [2] * 5 + [3, 5], "silence is tried once, and one beside four others, before anything"


def test_a_session_without_noise_is_as_many_steps_by_hand(tmp_path: Path) -> None:
    """trained := base + delta."""
    node = Node(tmp_path / "node.db", Known(), budget=Budget(math.inf, 1e-5))
    node.buffer.keep(points(9))
    session = node.learn(releases=5)
    assert session is not None
    weights = node.base.astype(np.float64)
    for _ in range(5):
        gradients = autograd(node.task.model(), weights.astype(np.float32), points(9))
        weights -= 0.7 / 10 * clip(gradients, CLIPPING_NORM).sum(axis=0)
    assert np.abs(session[0]).max() > 0.01
    np.testing.assert_allclose(node.base + session[0], weights, atol=1e-5)
    assert session[0].dtype == np.float32
    assert session[1] == 5 * charge_of(0.0)


def test_without_examples_there_is_nothing_to_learn_and_nothing_to_pay(tmp_path: Path) -> None:
    noise = Known()
    node = Node(tmp_path / "node.db", noise)
    assert node.learn() is None
    assert (node.ledger.head().seq, noise.asked) == (0, [])


def test_I4_a_session_is_charged_durably_before_the_first_noise_is_drawn(tmp_path: Path) -> None:
    """The charge is durable before the first noise is drawn."""

    class Checking(Known):
        def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
            other = sqlite3.connect(tmp_path / "node.db")
            self.charged = other.execute("select partition, mu2 from charge").fetchall()
            other.close()
            return super().integers(size, std)

    noise = Checking()
    node = Node(tmp_path / "node.db", noise)
    node.buffer.keep(points(9))
    session = node.learn(releases=3)
    assert session is not None
    assert noise.charged == [("train/0", session[1])]
    assert len(noise.asked) == 3


@pytest.mark.parametrize("step", [0, 1])
def test_I4_a_crash_in_the_noise_leaves_the_charge(tmp_path: Path, step: int) -> None:
    """A crash in between loses budget, never privacy."""

    class Cut(Known):
        def integers(self, size: int, std: float) -> npt.NDArray[np.int64]:
            if len(self.asked) == step:
                raise PowerCut
            return super().integers(size, std)

    node = Node(tmp_path / "node.db", Cut())
    node.buffer.keep(points(9))
    with pytest.raises(PowerCut):
        node.learn(releases=2)
    again = Node(tmp_path / "node.db", Known())
    assert again.ledger.spent_mu2("train/0") == 2 * charge_of(BUDGET.noise_multiplier(4))
    assert again.learn(releases=2) is not None
    with pytest.raises(BudgetError):
        again.learn(releases=2)


def test_a_spent_node_draws_no_noise_and_releases_nothing(tmp_path: Path) -> None:
    noise = Known()
    node = Node(tmp_path / "node.db", noise)
    node.buffer.keep(points(9))
    assert node.learn(releases=4) is not None
    drawn, head = len(noise.asked), node.ledger.head()
    with pytest.raises(BudgetError, match=r"train/0: epsilon .* of 8 is spent"):
        node.learn(releases=1)
    assert (len(noise.asked), node.ledger.head()) == (drawn, head)
    assert node.ledger.epsilon() <= 8.0


def test_new_data_is_learned_from_first_and_old_data_with_what_it_has_left(tmp_path: Path) -> None:
    node = Node(tmp_path / "node.db", Known(), partition_size=5)
    node.buffer.keep(points(5))
    deltas = [node.delta(releases=2)]
    node.buffer.keep(points(5, seed=1))
    deltas += [node.delta(releases=2) for _ in range(3)]
    charged = [row[0] for row in node.store.execute("select partition from charge order by seq")]
    assert charged == ["train/0", "train/1", "train/1", "train/0"]
    for delta, number in zip(deltas, charged, strict=True):  # what is charged is what was learned from
        np.testing.assert_array_equal(delta, deltas[charged.index(number)])
    assert not np.array_equal(deltas[0], deltas[1])


@pytest.mark.parametrize("begun", [1, 4])
def test_a_partition_that_has_just_begun_does_not_spend_its_budget_while_a_full_one_can_pay(
    tmp_path: Path, begun: int
) -> None:
    node = Node(tmp_path / "node.db", Known(), partition_size=5)
    node.buffer.keep(points(5 + begun))
    for _ in range(3):
        node.learn(releases=2)
    charged = [row[0] for row in node.store.execute("select partition from charge order by seq")]
    assert charged == ["train/0", "train/0", "train/1"]


def test_the_noise_is_the_same_for_n_and_n_plus_one_examples(tmp_path: Path) -> None:
    """The noise does not depend on how many examples there are."""
    asked = []
    for count in (1, 9, 10, 90):
        noise = Known()
        node = Node(tmp_path / f"{count}.db", noise)
        node.buffer.keep(points(count))
        node.learn()
        asked.append(noise.asked)
    assert asked[0] == asked[1] == asked[2] == asked[3]
    assert asked[0][0][1] > 0


def test_a_step_is_divided_by_a_public_constant_whatever_the_number_of_examples(tmp_path: Path) -> None:
    """``examples`` is a public constant; the true number stays private."""
    deltas = []
    for copies in (1, 2):
        node = Node(tmp_path / f"{copies}.db", Known(), budget=Budget(math.inf, 1e-5))
        for _ in range(copies):
            node.buffer.keep(points(9))
        session = node.learn(releases=1)
        assert session is not None
        deltas.append(session[0])
    np.testing.assert_allclose(deltas[1], 2 * deltas[0], rtol=1e-4, atol=1e-7)


def test_learning_warns_about_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path / "node.db", Known())
    node.buffer.keep(points(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert node.learn() is not None


@pytest.mark.parametrize(("noise_multiplier", "whole"), [(0.0, 1.0), (13.0, 1.0), (26.0, 0.5), (130.0, 0.1)])
def test_beyond_the_limit_a_step_is_shortened_so_that_its_noise_moves_no_further(
    noise_multiplier: float, whole: float
) -> None:
    training = Training(learning_rate=3.0, examples=10, noise_limit=13.0)
    assert training.step_length(noise_multiplier) == pytest.approx(0.3 * whole)
    assert training.step_length(noise_multiplier) * noise_multiplier <= 0.3 * 13.0 * (1 + 1e-12)


@pytest.mark.parametrize("noise_multiplier", [2.0, 52.0])
def test_a_session_takes_steps_of_that_length(tmp_path: Path, noise_multiplier: float) -> None:
    node = Node(tmp_path / "node.db", Known(), budget=Budget(math.inf, 1e-5))
    node.buffer.keep(points(9))
    session = node.learner.learn(node.base, releases=1, noise_multiplier=noise_multiplier)
    assert session is not None
    total = clip(autograd(node.task.model(), node.base, points(9)), CLIPPING_NORM).sum(axis=0)
    step = 0.7 / 10 * min(1.0, 13.0 / noise_multiplier)
    np.testing.assert_allclose(session[0], -step * total, atol=1e-6)


def test_a_base_of_another_model_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    node = Node(tmp_path / "node.db", Known())
    node.buffer.keep(points(5))
    node.base = np.zeros(len(node.base) + 1, np.float32)
    with pytest.raises(TaskError, match="31 weights here, and the base has 32: install the task's code"):
        node.learn()
    assert node.ledger.epsilon() == 0


class Moody(nn.Module):
    """In training it raises at more than so many examples, and as late as asked."""

    def __init__(self, error: Exception, *, most: int = 3, patience: int = 0) -> None:
        super().__init__()
        self.error, self.most, self.patience = error, most, patience

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(x) > self.most:
            self.patience -= 1
        if self.patience < 0:
            raise self.error
        return x


def moody_node(path: Path, mood: Callable[[], Moody]) -> Node:
    """A node with five examples and a model with this mood."""
    node = Node(path / "node.db", Known())
    node.buffer.keep(points(5))
    model = task(lambda: nn.Sequential(nn.Linear(3, 4), mood(), nn.Linear(4, 3)))
    node.learner = Learner(model, node.ledger, node.buffer, Known(), clipping_norm=CLIPPING_NORM)
    return node


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_a_model_that_fails_in_training_is_an_error_of_the_task(tmp_path: Path, patience: int) -> None:
    node = moody_node(tmp_path, lambda: Moody(RuntimeError("no more\nof this"), patience=patience))
    with pytest.raises(TaskError, match=r"^toy: the model fails in training: RuntimeError: no more$"):
        node.learn(releases=4)
    assert node.ledger.epsilon() > 0, "it was charged before it saw an example"


def test_a_model_that_fails_whatever_it_sees_costs_nothing(tmp_path: Path) -> None:
    node = moody_node(tmp_path, lambda: Moody(RuntimeError("broken"), most=0))
    with pytest.raises(TaskError, match="fails in training"):
        node.learn()
    assert node.ledger.epsilon() == 0


class Loudest(nn.Module):
    """As loud as the loudest of the batch is one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.abs().max().clamp(min=1e-3)


def frozen_norm() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.BatchNorm1d(1, affine=False), nn.Flatten())


@pytest.mark.parametrize("above", [lambda: nn.Linear(3, 3), lambda: mlp_of(3)], ids=["one layer", "two layers"])
@pytest.mark.parametrize("mixing", [frozen_norm, Loudest])
@pytest.mark.parametrize("sure", [0.0, 20.0], ids=["of nothing", "of the class"])
def test_I4_a_model_that_mixes_examples_is_charged_nothing_and_learns_nothing(
    tmp_path: Path, mixing: Callable[[], nn.Module], above: Callable[[], nn.Module], sure: float
) -> None:
    noise = Known()
    node = Node(tmp_path / "node.db", noise)
    node.buffer.keep(points(9))
    model = task(lambda: nn.Sequential(mixing(), above()))
    node.base = weights_of(model.model())
    node.base[-3] = sure  # the bias of class 0
    node.learner = Learner(model, node.ledger, node.buffer, noise, clipping_norm=CLIPPING_NORM)
    with pytest.raises(TaskError, match="mixes the examples of a batch"):
        node.learn()
    assert (node.ledger.head().seq, noise.asked) == (0, [])


class Slip(nn.Module):
    """No memory the first time there are more than three examples, and then there is."""

    slipped = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 3 and not self.slipped:
            self.slipped = True
            raise MemoryError
        return x


def test_a_pass_that_was_broken_off_spoils_no_other() -> None:
    slipping = task(lambda: nn.Sequential(nn.Linear(3, 4), Slip(), nn.Linear(4, 3)))
    weights = weights_of(slipping.model())
    source = PerExampleGradients(slipping)
    with pytest.raises(StoreError, match="no memory"):
        source.of(points(5))(weights)
    for count in (5, 3, 9):
        found = source.of(points(count))(weights)
        np.testing.assert_allclose(found, autograd(slipping.model(), weights, points(count)), atol=1e-6)


def test_no_memory_is_no_fault_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no memory"):
        moody_node(tmp_path, lambda: Moody(MemoryError())).learn()


def test_a_model_that_cannot_be_made_is_an_error_of_the_task() -> None:
    def build() -> nn.Module:
        raise KeyError("weights")

    broken = Task("toy", build, SIGNATURE, PrivacyUnit("point"), Training(learning_rate=0.7, examples=10), dict)
    with pytest.raises(TaskError, match="KeyError: 'weights'"):
        PerExampleGradients(broken)
