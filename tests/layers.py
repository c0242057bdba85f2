"""Every layer that PyTorch has, each in the middle of a small model: what all derivatives must be right for."""

import torch
import torch.nn.functional as F
from torch import nn

from fimoda_lib.tasks import Task, parameters_of, squared_error

VECTOR, SERIES, PICTURE, VOLUME, SENTENCE = (6,), (2, 8), (2, 4, 4), (2, 4, 4, 4), (3, 4)  # shapes of one instance
BY_DIMENSION = {"1d": SERIES, "2d": PICTURE, "3d": VOLUME}


class Called(nn.Module):
    """A layer that is not called with one tensor, or gives more than one."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def pair(layer):
    return Called(layer, lambda f, x: f(x, x.flip(1).tanh()))


def evaluated(layer):
    """As when a model is evaluated, with statistics of what it has seen."""
    for name, buffer in layer.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + (0.5 if "var" in name else 0.0))
    return layer.eval()


class Reader(nn.Module):
    """The usual encoder of texts: of tokens [n, L], some of which are padding, vectors [n, L, 4]."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.encoder = nn.TransformerEncoder(transformer("Encoder"), 2, nn.LayerNorm(4))

    def forward(self, tokens):
        padding = (tokens == 0) & (torch.arange(tokens.shape[1]) > 0)
        return self.encoder(self.embedding(tokens), src_key_padding_mask=padding) * ~padding[..., None]


def transformer(kind, **options):
    return getattr(nn, f"Transformer{kind}Layer")(4, 2, 5, dropout=0.0, batch_first=True, **options)


SIMPLE = {  # constructed with these arguments, on instances of this shape
    **{name: (VECTOR, ()) for name in (
        "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 "
        "SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Dropout AlphaDropout FeatureAlphaDropout"
    ).split()},
    **{name: (VECTOR, (1,)) for name in ("Softmax", "LogSoftmax", "Softmin", "GLU")},
    "Threshold": (VECTOR, (0.1, -0.2)),
    "Linear": (VECTOR, (6, 4)),
    "LayerNorm": (VECTOR, (6,)),
    "RMSNorm": (VECTOR, (6,)),
    "RReLU": (VECTOR, ()),
    "Softmax2d": (PICTURE, ()),
    "ChannelShuffle": (PICTURE, (2,)),
    "PixelShuffle": ((4, 2, 2), (2,)),
    "PixelUnshuffle": (PICTURE, (2,)),
    "Unfold": (PICTURE, (2,)),
    "Fold": ((8, 9), ((4, 4), 2)),
    "Flatten": (PICTURE, ()),
    "Unflatten": (VECTOR, (1, (2, 3))),
    "Upsample": (PICTURE, (None, 2)),
    "UpsamplingNearest2d": (PICTURE, (None, 2)),
    "UpsamplingBilinear2d": (PICTURE, (None, 2)),
    "LocalResponseNorm": (PICTURE, (2,)),
    "GroupNorm": (PICTURE, (2, 2)),
    "SyncBatchNorm": (PICTURE, (2,)),
    **{
        name + d: (shape, arguments)
        for d, shape in BY_DIMENSION.items()
        for name, arguments in {
            "Conv": (2, 3, 2), "ConvTranspose": (2, 3, 2), "MaxPool": (2,), "AvgPool": (2,), "LPPool": (2, 2),
            "AdaptiveAvgPool": (2,), "AdaptiveMaxPool": (2,), "BatchNorm": (2,), "InstanceNorm": (2,),
            "ZeroPad": (1,), "ConstantPad": (1, 0.3), "ReflectionPad": (1,), "ReplicationPad": (1,),
            "CircularPad": (1,), "Dropout": (),
        }.items()
    },
}  # fmt: skip

LAYERS = {  # name: (shape of one instance where the layer gets it, what makes the layer)
    **{name: (shape, lambda name=name, a=a: evaluated(getattr(nn, name)(*a))) for name, (shape, a) in SIMPLE.items()},
    "GELU tanh": (VECTOR, lambda: nn.GELU("tanh")),
    "LayerNorm plain": (VECTOR, lambda: nn.LayerNorm(6, elementwise_affine=False)),
    "LayerNorm without bias": (VECTOR, lambda: nn.LayerNorm(6, bias=False)),
    "LayerNorm of two": (SENTENCE, lambda: nn.LayerNorm((3, 4))),
    "LayerNorm of sentences": (SENTENCE, lambda: nn.LayerNorm(4)),
    "RMSNorm plain": (VECTOR, lambda: nn.RMSNorm(6, elementwise_affine=False)),
    "GroupNorm plain": (PICTURE, lambda: nn.GroupNorm(1, 2, affine=False)),
    "GroupNorm of vectors": (VECTOR, lambda: nn.GroupNorm(2, 6)),
    "InstanceNorm2d affine": (PICTURE, lambda: nn.InstanceNorm2d(2, affine=True)),
    "BatchNorm1d plain": (SERIES, lambda: evaluated(nn.BatchNorm1d(2, affine=False))),
    "Conv2d all options": (PICTURE, lambda: nn.Conv2d(2, 4, 3, 2, 1, 2, 2, padding_mode="circular")),
    "ConvTranspose2d all options": (PICTURE, lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, 2, dilation=2)),
    "MaxPool2d all options": (PICTURE, lambda: nn.MaxPool2d(3, 1, 1)),
    "AvgPool2d all options": (PICTURE, lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "Upsample bicubic": (PICTURE, lambda: nn.Upsample(scale_factor=2, mode="bicubic")),
    "MaxUnpool2d": (
        PICTURE,
        lambda: Called(nn.MaxUnpool2d(2), lambda f, x: f(*F.max_pool2d(x, 2, return_indices=True))),
    ),
    "Bilinear": (VECTOR, lambda: pair(nn.Bilinear(6, 6, 3))),
    "CosineSimilarity": (VECTOR, lambda: Called(nn.CosineSimilarity(), lambda f, x: f(x, x.flip(1).tanh())[:, None])),
    "PairwiseDistance": (VECTOR, lambda: Called(nn.PairwiseDistance(), lambda f, x: f(x, x.flip(1).tanh())[:, None])),
    "MultiheadAttention": (
        SENTENCE,
        lambda: Called(nn.MultiheadAttention(4, 2, batch_first=True), lambda f, x: f(x, x, x, need_weights=False)[0]),
    ),
    "MultiheadAttention with weights": (
        SENTENCE,
        lambda: Called(nn.MultiheadAttention(4, 2, batch_first=True), lambda f, x: torch.cat(f(x, x, x), 2)),
    ),
    "TransformerEncoderLayer": (SENTENCE, lambda: transformer("Encoder")),
    "TransformerEncoderLayer norm first": (SENTENCE, lambda: transformer("Encoder", norm_first=True)),
    "TransformerEncoder": (SENTENCE, lambda: nn.TransformerEncoder(transformer("Encoder"), 2, nn.LayerNorm(4))),
    "TransformerDecoderLayer": (SENTENCE, lambda: pair(transformer("Decoder"))),
    "TransformerDecoder": (SENTENCE, lambda: pair(nn.TransformerDecoder(transformer("Decoder"), 1))),
    "Transformer": (SENTENCE, lambda: pair(nn.Transformer(4, 2, 1, 1, 5, 0.0, batch_first=True))),
}  # fmt: skip
TOKENS = {  # the same for layers that get whole numbers, of which 7 kinds
    "Embedding": lambda: nn.Embedding(7, 4),
    "Embedding with padding": lambda: nn.Embedding(7, 4, padding_idx=0),
    "EmbeddingBag": lambda: nn.EmbeddingBag(7, 4),
    "EmbeddingBag sum": lambda: nn.EmbeddingBag(7, 4, mode="sum"),
    "TransformerEncoder with padding": Reader,
}


def problem(name, *, n=7, n_test=2):
    """A task around one layer, and its parameters, in float64."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        if name in TOKENS:
            front, layer = [], TOKENS[name]()
            inputs, test = torch.randint(7, (n, 3)), torch.randint(7, (n_test, 3))
        else:
            shape, make = LAYERS[name]
            width = torch.Size(shape).numel()
            front, layer = [nn.Linear(5, width), nn.Unflatten(1, shape)], make()
            inputs, test = torch.randn(n, 5).double(), torch.randn(n_test, 5).double()
        model = nn.Sequential(*front, layer, nn.Flatten(), nn.LazyLinear(2)).double()
        model(inputs[:1])  # makes the last layer
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))  # no weight of exactly one, no bias of exactly zero
        targets, test_targets = torch.randn(n, 2).double(), torch.randn(n_test, 2).double()
    return Task("layer", model, squared_error, (inputs, targets), (test, test_targets)), parameters_of(model)
