"""Networks that read two seconds of a smartwatch's motion: fixed fronts, with little to train above them."""

from collections import OrderedDict
from itertools import pairwise
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from fleet.task import Signature, Windows
from simulations import spar

SIGNATURE = Signature(
    input="x",
    shape=(spar.CHANNELS, spar.SAMPLES),
    low=-35.0,  # what the sensors can say: 35 rad/s (2000 °/s); 16 g lies well inside
    high=35.0,
    classes=spar.CLASSES,
)

FEATURES = 147
_SCALE = (1.0, 1.0, 1.0, 2.5, 2.5, 2.5)  # g and rad/s to about one: public constants
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BANDS = (0, 1, 2, 3, 4, 6, 9, 14, 22, 51)  # edges in bins of 0.5 Hz
_LAGS = (5, 12)  # samples of 20 ms
_FRAME, _HOP, _FRAMES = 20, 10, 9  # samples, samples, and how many fit a window
_UNITS = 32
_REACH = 2.5  # standard deviations of the donor's frames: eight bits are finer over less
_WIDEST = 4.0  # standard deviations of the donor; what lies beyond counts as this


def feature_constants(public: Windows) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of every feature, ``(147,)`` each, over public windows."""
    with torch.no_grad():
        features = Statistics()(torch.from_numpy(public.x))
    return features.mean(0), features.std(0) + 1e-3


def frame_constants(public: Windows) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of every number of a frame, ``(42,)`` each, over public windows."""
    with torch.no_grad():
        frames = Frames()(torch.from_numpy(public.x))
    return frames.mean((0, 2)), frames.std((0, 2)) + 1e-3


def feature_model(mean: Tensor, deviation: Tensor) -> nn.Sequential:
    """Fixed features, standardised by public data, under a linear head: 1036 weights to train.

    ``mean`` and ``deviation`` are ``(147,)``. The head's input is no longer than 4 whatever comes in, and so is bounded
    what one example can change.
    """
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(FEATURES, len(SIGNATURE.classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    standardise = Standardise(mean, deviation * sqrt(FEATURES), reach=_WIDEST / sqrt(FEATURES))
    return nn.Sequential(OrderedDict(front=Statistics(), standardise=standardise, head=head))


class Statistics(nn.Module):
    """The classic features of human activity recognition, and which channel moves before which.

    Finite for every window, silence and constants included; it has nothing to train.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor(_SCALE).reciprocal().reshape(-1, 1))
        self.register_buffer("fourier", _fourier())
        self.register_buffer("bands", _bands())
        self.register_buffer("quantiles", _quantiles())
        pairs = [i * spar.CHANNELS + j for i in range(spar.CHANNELS) for j in range(i + 1, spar.CHANNELS)]
        self.register_buffer("pairs", torch.tensor(pairs))
        partners = [1 / (spar.SAMPLES - lag) for lag in _LAGS]
        self.register_buffer("partners", torch.tensor(partners).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The features ``(batch, 147)`` of windows ``(batch, 6, 100)``."""
        w = x.clamp(SIGNATURE.low, SIGNATURE.high) * self.get_buffer("unit")
        mean = w.mean(-1)
        centred = w - mean.unsqueeze(-1)
        variance = (centred * centred).mean(-1)
        spread = variance.sqrt()
        common = spread.unsqueeze(2) * spread.unsqueeze(1) + 0.05
        quantiles = w.sort(-1).values @ self.get_buffer("quantiles")
        parts = [
            mean,
            spread,
            quantiles.transpose(1, 2).flatten(1),
            self._correlations(centred, common),
            self._energies(centred),
            self._leads(centred, common),
            3 * _deviation(w[..., 1:] - w[..., :-1]),
        ]
        return torch.cat(parts, 1)

    def _correlations(self, centred: Tensor, common: Tensor) -> Tensor:
        correlation = centred @ centred.transpose(1, 2) / spar.SAMPLES / common
        return correlation.flatten(1).index_select(1, self.get_buffer("pairs"))

    def _leads(self, centred: Tensor, common: Tensor) -> Tensor:
        """How much more one channel follows another at each lag than the other way round: the turn of a movement."""
        beyond = nn.functional.pad(centred, (0, max(_LAGS)))
        later = torch.stack([beyond[..., lag : lag + spar.SAMPLES] for lag in _LAGS], 1)
        follows = centred.unsqueeze(1) @ later.transpose(2, 3) * self.get_buffer("partners")
        lead = (follows - follows.transpose(2, 3)) / common.unsqueeze(1)
        return lead.flatten(2).index_select(2, self.get_buffer("pairs")).flatten(1)

    def _energies(self, centred: Tensor) -> Tensor:
        waves = centred @ self.get_buffer("fourier")
        cosine, sine = waves.chunk(2, -1)
        energies = (cosine * cosine + sine * sine) @ self.get_buffer("bands")
        return torch.log10(energies + 1e-3).transpose(1, 2).flatten(1)


class Frames(nn.Module):
    """What each channel does in overlapping frames of 0.4 s, and which two go together, or one before the other.

    Finite for every window, silence and constants included; it has nothing to train.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor(_SCALE).reciprocal().reshape(-1, 1))
        first, second = torch.triu_indices(spar.CHANNELS, spar.CHANNELS, 1)
        self.register_buffer("first", first)
        self.register_buffer("second", second)

    def forward(self, x: Tensor) -> Tensor:
        """Frames ``(batch, 42, 9)`` of windows ``(batch, 6, 100)``.

        Six means, six logarithms of energy, and for each of fifteen pairs of channels their product, then how much
        more the second follows the first after 0.1 s than the other way round; both over what is usual in the window.
        """
        w = x.clamp(SIGNATURE.low, SIGNATURE.high) * self.get_buffer("unit")
        centred = w - w.mean(-1, keepdim=True)
        squares = centred * centred
        power = squares.mean(-1, keepdim=True)
        common = (self._first(power) * self._second(power) + 0.003).sqrt()
        now, later = centred[..., : -_LAGS[0]], centred[..., _LAGS[0] :]
        leads = self._first(now) * self._second(later) - self._second(now) * self._first(later)
        parts = [
            _framed(w),
            torch.log10(_framed(squares) + 1e-2),
            _framed(self._first(centred) * self._second(centred)) / common,
            _framed(nn.functional.pad(leads, (0, _LAGS[0]))) / common,
        ]
        return torch.cat(parts, 1)

    def _first(self, channels: Tensor) -> Tensor:
        return channels.index_select(1, self.get_buffer("first"))

    def _second(self, channels: Tensor) -> Tensor:
        return channels.index_select(1, self.get_buffer("second"))


class Standardise(nn.Module):
    """What comes in, less its mean and over its deviation, both public, and no further from zero than ``reach``."""

    def __init__(self, mean: Tensor, deviation: Tensor, reach: float) -> None:
        """``mean`` and ``deviation`` have the shape of one example, or one that is broadcast to it."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / deviation)
        self.clip = nn.Hardtanh(-reach, reach)

    def forward(self, values: Tensor) -> Tensor:
        """The same shape."""
        standardised: Tensor = self.clip((values - self.get_buffer("mean")) * self.get_buffer("scale"))
        return standardised


def cnn_model(mean: Tensor, deviation: Tensor) -> nn.Sequential:
    """A convolution over fixed frames, averaged over time: 935 weights to train.

    ``mean`` and ``deviation``, both ``(42,)``, come from public data. The convolution is one frame wide, for the
    frames overlap and hold the turns already, and in two groups: the fewer numbers a unit adds up, the less it feels
    that its weights have seven bits.
    """
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv1d(len(mean), _UNITS, 1, groups=2)
        head = nn.Linear(_UNITS, len(SIGNATURE.classes))
    layers = OrderedDict(
        front=Frames(),
        standardise=Standardise(mean.unsqueeze(1), deviation.unsqueeze(1), reach=_REACH),
        convolution=convolution,
        bound=nn.Hardtanh(),
        average=nn.AvgPool1d(_FRAMES),
        flatten=nn.Flatten(),
        head=head,
    )
    model = nn.Sequential(layers)
    _initialise(model)
    return model


def _framed(values: Tensor) -> Tensor:
    """Means over the nine frames: ``(batch, channels, 9)`` of ``(batch, channels, 100)``."""
    return nn.functional.avg_pool1d(values, _FRAME, _HOP)


def _initialise(model: nn.Module) -> None:
    """The same weights every time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)


def _deviation(values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    return (centred * centred).mean(-1).sqrt()


def _fourier() -> Tensor:
    """The real Fourier transform under a Hann window as a matrix ``(100, 102)``: cosines, then sines."""
    n = np.arange(spar.SAMPLES)
    angles = 2 * np.pi * np.outer(n, np.arange(spar.SAMPLES // 2 + 1)) / spar.SAMPLES
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * np.hanning(spar.SAMPLES)[:, None]
    return torch.from_numpy((waves / np.sqrt(spar.SAMPLES)).astype(np.float32))


def _bands() -> Tensor:
    """Sums bins ``(51,)`` into bands ``(9,)``."""
    bins = torch.arange(spar.SAMPLES // 2 + 1)
    return torch.stack([((bins >= low) & (bins < high)).float() for low, high in pairwise(_BANDS)], 1)


def _quantiles() -> Tensor:
    """Interpolates linearly between sorted samples: ``(100, 5)``."""
    places = torch.tensor(_QUANTILES, dtype=torch.float64) * (spar.SAMPLES - 1)
    distance = (torch.arange(spar.SAMPLES, dtype=torch.float64).unsqueeze(1) - places).abs()
    return (1 - distance).clamp(min=0).float()
