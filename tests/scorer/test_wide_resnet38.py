"""The full-size network against a slow formulation of its specification written from the state_dict alone."""

import pytest
import torch
from torch.nn import functional as F

from anomdino.errors import ConfigError
from anomdino.scorer.base import ScorerSpec, anomaly_score, build_scorer
from anomdino.scorer.wide_resnet38 import WideResNet38Scorer
from tests.scorer.watching import frozen_state

# name, blocks, kernels, stride of the first block, dilation: the published table, copied by hand
REFERENCE_TRUNK = [
    ("mod2", 3, (3, 3), 1, 1),
    ("mod3", 3, (3, 3), 1, 1),
    ("mod4", 6, (3, 3), 2, 1),
    ("mod5", 3, (3, 3), 1, 2),
    ("mod6", 1, (1, 3, 1), 1, 4),
    ("mod7", 1, (1, 3, 1), 1, 4),
]


class SlowReference:
    """The specification as a plain function of the state_dict, in float64."""

    def __init__(self, state):
        self.state = {name.removeprefix("branch1."): value.double() for name, value in state.items()}

    def conv(self, x, name, stride=1, dilation=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)

    def norm_relu(self, x, name):
        def column(key):
            return self.state[f"{name}.{key}"][None, :, None, None]

        scaled = (x - column("running_mean")) / torch.sqrt(column("running_var") + 1e-5)
        return torch.clamp(scaled * column("weight") + column("bias"), min=0)

    def resize(self, x, size):
        """Bilinear, aligned corners, by explicit interpolation weights."""
        for axis, length in ((2, size[0]), (3, size[1])):
            old = x.shape[axis]
            position = torch.arange(length).double() * ((old - 1) / (length - 1) if length > 1 else 0.0)
            low = position.floor().long().clamp(max=old - 1)
            high = (low + 1).clamp(max=old - 1)
            share = (position - low).view(-1, *[1] * (3 - axis))
            x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
        return x

    def block(self, x, name, kernels, stride, dilation):
        hidden = self.norm_relu(x, f"{name}.bn1.0")
        projecting = f"{name}.proj_conv.weight" in self.state
        shortcut = self.conv(hidden, f"{name}.proj_conv", stride) if projecting else x
        for number in range(1, len(kernels) + 1):
            if number > 1:
                hidden = self.norm_relu(hidden, f"{name}.convs.bn{number}.0")
            hidden = self.conv(hidden, f"{name}.convs.conv{number}", stride if number == 1 else 1, dilation)
        return hidden + shortcut

    def aspp(self, z, name):
        pooled = self.conv(z.mean((2, 3), keepdim=True), f"{name}.img_conv.0")
        pooled = self.norm_relu(pooled, f"{name}.img_conv.1").expand(-1, -1, *z.shape[2:])
        branches = [pooled]
        for index, dilation in enumerate((1, 12, 24, 36)):
            branch = self.conv(z, f"{name}.features.{index}.0", dilation=dilation)
            branches.append(self.norm_relu(branch, f"{name}.features.{index}.1"))
        return torch.cat(branches, 1)

    def final(self, d):
        d = self.norm_relu(self.conv(d, "final.0"), "final.1")
        return self.conv(self.norm_relu(self.conv(d, "final.3"), "final.4"), "final.6")

    def __call__(self, image):
        x = self.conv(image.double(), "mod1.conv1")
        for name, blocks, kernels, stride, dilation in REFERENCE_TRUNK:
            if name in {"mod2", "mod3"}:
                x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2)
            for number in range(1, blocks + 1):
                x = self.block(x, f"{name}.block{number}", kernels, stride if number == 1 else 1, dilation)
            if name == "mod2":
                m2 = x
        size, block = m2.shape[2:], "residual_block"
        d = torch.cat(
            [self.conv(m2, "bot_fine"), self.resize(self.conv(self.aspp(x, "aspp"), "bot_aspp"), size)], 1
        )
        attention = self.conv(self.aspp(x, f"{block}.atten_aspp"), f"{block}.bot_atten_aspp")
        q = self.resize(attention, size)
        r = self.conv(q, f"{block}.atten_aspp_final")
        projection = self.conv(q, f"{block}.proj_head.proj.0")
        projection = projection + self.state[f"{block}.proj_head.proj.0.bias"][None, :, None, None]
        full = image.shape[2:]
        return self.resize(self.final(d), full), self.resize(self.final(d + r), full), projection


def randomised(divisor=16, seed=0):
    """Build a narrow network whose batch norms are not the identity, with activations of order one."""
    torch.manual_seed(seed)
    network = WideResNet38Scorer(channel_divisor=divisor).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.6, 1.4)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.6, 1.5)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.nn.init.normal_(network.branch1.final[6].weight, std=0.01)
    return network


@pytest.fixture(scope="module")
def network():
    return randomised()


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (33, 50), (1, 1), (7, 300)])
def test_forward_agrees_with_the_specification_at_odd_sizes_too(network, size):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    closed, residual, _ = SlowReference(network.state_dict())(image)
    with torch.inference_mode():
        output = network(image)
    assert output.logits.shape == output.residual_logits.shape == (2, 19, *size)
    for ours, reference in ((output.logits, closed), (output.residual_logits, residual)):
        error = (ours.double() - reference).abs().max() / reference.abs().max()
        assert error < 1e-4
    assert output.projection is None


def test_projection_in_training_mode_of_the_block_alone(network):
    network.train_residual()
    image = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    projection = network(image).projection
    assert projection is not None
    assert projection.shape == (2, 19, 24, 32)
    network.eval()
    assert network(image).projection is None


def test_counts_of_the_published_network():
    with torch.device("meta"):
        network = WideResNet38Scorer()
    assert len(network.state_dict()) == 302
    assert all(name.startswith("branch1.") for name in network.state_dict())
    assert sum(p.numel() for p in network.parameters()) == 167_998_832
    assert sum(b.numel() for b in network.buffers()) == 45_744
    assert len(list(network.parameters())) == 158
    assert len(network.residual_parameters()) == 19
    assert sum(p.numel() for p in network.residual_parameters()) == 30_894_896
    sizes = {
        name: sum(p.numel() for p in child.parameters()) for name, child in network.branch1.named_children()
    }
    assert list(sizes.items()) == [
        ("mod1", 1_728), ("mod2", 820_608), ("mod3", 3_279_616), ("mod4", 27_274_752), ("mod5", 26_484_736),
        ("mod6", 9_442_304), ("mod7", 37_758_976), ("residual_block", 30_894_896), ("aspp", 30_411_264),
        ("bot_fine", 6_144), ("bot_aspp", 327_680), ("final", 1_296_128),
    ]  # fmt: skip
    projecting = {
        name.removesuffix(".proj_conv.weight") for name in network.state_dict() if "proj_conv" in name
    }
    assert projecting == {f"branch1.mod{number}.block1" for number in range(2, 8)}


def test_trap_aspp_order_starts_with_image_pooling(network):
    aspp = network.branch1.aspp
    z = torch.randn(1, 256, 9, 13, generator=torch.Generator().manual_seed(3))
    output = aspp(z)
    width = output.shape[1] // 5
    assert torch.equal(output[:, :width], aspp.img_conv(z.mean((2, 3), keepdim=True)).expand(-1, -1, 9, 13))
    for index in range(4):
        assert torch.equal(output[:, (index + 1) * width : (index + 2) * width], aspp.features[index](z))


def test_trap_resizing_aligns_corners_everywhere(network):
    from anomdino.scorer.base import resize

    maps = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(8))
    large = resize(maps, (10, 9))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert torch.allclose(large[..., row, column], maps[..., row, column])
    assert torch.allclose(large[..., ::3, ::4], maps, atol=1e-6)
    seen = []
    original = F.interpolate

    def spy(*arguments, **options):
        seen.append((options["mode"], options["align_corners"]))
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(F, "interpolate", spy)
        network(torch.zeros(1, 3, 40, 56))
    assert len(seen) == 6
    assert set(seen) == {("bilinear", True)}


def test_trap_shortcut_is_raw_input_or_projection_of_the_activation(network):
    projecting, identity = network.branch1.mod4.block1, network.branch1.mod4.block2
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        activated = F.relu(projecting.bn1[0](x))
        assert torch.allclose(
            projecting(x), projecting.convs(activated) + projecting.proj_conv(activated), atol=1e-5
        )
        y = projecting(x)
        raw = y.clone()
        assert torch.allclose(identity(y), identity.convs(F.relu(identity.bn1[0](raw))) + raw, atol=1e-5)
        assert torch.equal(y, raw), "in-place activations must not touch the shortcut"


def test_trap_residual_changes_the_second_output_alone():
    network = randomised(seed=5)
    image = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        before = network(image)
        network.residual_module().atten_aspp_final.weight.mul_(-2)
        after = network(image)
        network.residual_module().atten_aspp_final.weight.zero_()
        silent = network(image)
    assert torch.equal(before.logits, after.logits)
    assert not torch.allclose(before.residual_logits, after.residual_logits, atol=1e-3)
    assert torch.allclose(silent.residual_logits, silent.logits, atol=1e-5)


def test_trap_energy_sign_and_default_logits(network):
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        output = network(image)
        score = anomaly_score(output, blur=False)
    expected = -torch.log(torch.exp(output.residual_logits.double()).sum(1))
    assert torch.allclose(score.double(), expected, atol=1e-4)


def test_dropout_acts_in_training_only_and_on_whole_channels():
    with torch.device("meta"):
        network = WideResNet38Scorer(channel_divisor=16)
    dropouts = {
        name: module.p for name, module in network.named_modules() if isinstance(module, torch.nn.Dropout2d)
    }
    assert dropouts == {"branch1.mod6.block1.convs.dropout": 0.3, "branch1.mod7.block1.convs.dropout": 0.5}


def test_residual_training_leaves_the_rest_frozen():
    network = randomised(seed=7)
    network.train_residual()
    frozen = {name: tensor.clone() for name, tensor in frozen_state(network).items()}
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    network(image).residual_logits.square().mean().backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in frozen_state(network).items())
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 19
    assert all("residual_block" in name for name in trained)


def test_built_by_its_name_and_refuses_other_divisors():
    network = build_scorer(ScorerSpec("wide_resnet38", 11, {"channel_divisor": 16})).eval()
    assert network(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 11, 16, 16)
    with pytest.raises(ConfigError, match="channel_divisor"):
        WideResNet38Scorer(channel_divisor=3)
