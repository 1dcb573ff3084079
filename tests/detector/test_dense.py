import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import InstanceData

from anomdino.detector import model as model_module
from anomdino.detector.architecture import build_detector
from anomdino.detector.dense import assign_tokens, dense_losses
from tests.detector.conftest import CLASSES, small_config
from tests.detector.test_model import batch_of, total


def grid(rows, columns, side):
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack([x, y, torch.full_like(x, side), torch.full_like(x, side)], -1).view(-1, 4)


def test_objects_take_tokens_that_fit_in_place_and_size():
    fine, coarse = grid(16, 16, 0.05), grid(4, 4, 0.2)
    anchors = torch.cat([fine, coarse])
    boxes = torch.tensor([[0.28, 0.28, 0.05, 0.05], [0.7, 0.6, 0.2, 0.2]])
    owner = assign_tokens(anchors, boxes)
    small, large = (owner == 0).nonzero().flatten(), (owner == 1).nonzero().flatten()
    assert len(small) >= 1
    assert (small < 256).all()
    assert (large >= 256).any()
    for index, members in enumerate((small, large)):
        inside = (anchors[members, :2] - boxes[index, :2]).abs() < boxes[index, 2:] / 2
        assert inside.all()
        assert len(members) <= 6


def test_every_object_has_a_token_and_unusable_tokens_none():
    anchors = grid(4, 4, 0.1)
    anchors[5] = float("inf")
    tiny = torch.tensor([[0.376, 0.376, 0.001, 0.001], [0.99, 0.99, 0.002, 0.002]])
    owner = assign_tokens(anchors, tiny)
    assert owner[5] == -1
    assert {0, 1} <= set(owner.tolist())
    assert (assign_tokens(anchors, torch.zeros(0, 4)) == -1).all()


@pytest.mark.parametrize(
    "boxes", [[[[5, 5, 30, 40], [40, 20, 50, 30]], []], [[], []]], ids=["objects", "no_objects"]
)
def test_dense_losses_replace_those_of_the_proposals(boxes):
    detector = build_detector(small_config(dense_loss=0.5), CLASSES).train()
    images, samples = batch_of([(64, 96), (50, 70)], boxes)
    losses = detector.loss(images, samples)
    assert {"dense_loss_cls", "dense_loss_bbox", "dense_loss_iou"} <= set(losses)
    assert not any(name.startswith("enc_") for name in losses)
    assert all(torch.isfinite(value) for value in losses.values())
    total(losses).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    plain = build_detector(small_config(dense_loss=0.0), CLASSES).train()
    assert not any(name.startswith("dense") for name in plain.loss(images, samples))


def test_dense_losses_are_of_all_proposals_which_are_computed_once(monkeypatch):
    detector = build_detector(small_config(dense_loss=1.0), CLASSES).train()
    images, samples = batch_of([(64, 96), (50, 70)], [[[5, 5, 30, 40], [40, 20, 50, 30]], [[3, 3, 20, 20]]])
    seen = {}
    monkeypatch.setattr(
        model_module, "dense_losses", lambda *given: seen.update(given=given) or dense_losses(*given)
    )
    memories = []
    detector.memory_trans_fc.register_forward_pre_hook(lambda _, inputs: memories.append(inputs[0]))
    detector.loss(images, samples)
    assert len(memories) == 1
    _, logits, boxes, anchors, text_mask, _ = seen["given"]
    last = detector.decoder.num_layers
    features = detector.memory_trans_norm(detector.memory_trans_fc(memories[0]))
    offsets = detector.bbox_head.reg_branches[last](features)
    usable = torch.isfinite(anchors).all(-1)
    assert logits.shape[:2] == boxes.shape[:2] == anchors.shape[:2] == memories[0].shape[:2]
    assert text_mask.any()
    assert 0 < usable.sum() < usable.numel()  # padding and the rim have no anchor
    odds = torch.logit(anchors[usable])
    torch.testing.assert_close(boxes[usable], (offsets[usable] + odds).sigmoid())


def slow_owners(anchors, boxes, count=6):
    """The rule of ``assign_tokens``, object by object and token by token."""
    wishes = {}
    for number, (bx, by, bw, bh) in enumerate(boxes.tolist()):
        ranked = []
        for token, (x, y, w, h) in enumerate(anchors.tolist()):
            if math.isfinite(x):
                distance = max(abs(x - bx) / bw, abs(y - by) / bh)
                ratio = math.sqrt(bw * bh) / math.sqrt(w * h)
                ranked.append((distance + 0.5 * abs(math.log2(ratio)), token, distance))
        for place, (cost, token, distance) in enumerate(sorted(ranked)[:count]):
            if place == 0 or distance < 0.5:
                wishes.setdefault(token, []).append((cost, number))
    return [min(wishes[token])[1] if token in wishes else -1 for token in range(len(anchors))]


def giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    left, right = (max, min), (min, max)
    inner, outer = (
        (
            one[1](ax + aw / 2, bx + bw / 2) - one[0](ax - aw / 2, bx - bw / 2),
            one[1](ay + ah / 2, by + bh / 2) - one[0](ay - ah / 2, by - bh / 2),
        )
        for one in (left, right)
    )
    shared = max(inner[0], 0) * max(inner[1], 0)
    union = aw * ah + bw * bh - shared
    hull = outer[0] * outer[1]
    return shared / union - (hull - union) / hull


@pytest.mark.parametrize("seed", range(4))
def test_dense_losses_equal_a_slow_formulation(seed):
    """Images of unequal sizes, prompts of unequal lengths, tokens without an anchor, objects that want one token."""
    torch.manual_seed(seed)
    head = build_detector(small_config(dense_loss=1.0), CLASSES).bbox_head
    sizes, prompts = [(60, 90), (40, 100)], [5, 3]
    anchors = torch.cat([grid(6, 8, 0.1), grid(3, 4, 0.3)]).expand(2, -1, -1).clone()
    anchors += 1e-3 * torch.rand_like(anchors)  # of equal costs the rule leaves the choice open
    anchors[0, 10:14], anchors[1, -2:] = float("inf"), float("inf")
    boxes, logits = torch.rand(2, 60, 4) * 0.5 + 0.2, torch.randn(2, 60, 64)
    text_mask = torch.arange(5) < torch.tensor(prompts).unsqueeze(1)
    samples, cls, l1, iou, owned = [], [], [], [], 0
    for index, (height, width) in enumerate(sizes):
        low = torch.rand(4, 2) * 0.6
        corners = torch.cat([low, low + 0.05 + torch.rand(4, 2) * 0.3], 1)
        corners[1] = corners[0] + 0.01
        positive = (torch.rand(4, 64) < 0.5).float()
        truth = InstanceData(bboxes=corners * torch.tensor([width, height] * 2), positive_maps=positive)
        samples.append(SimpleNamespace(img_shape=(height, width), gt_instances=truth))
        xywh = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        owners = slow_owners(anchors[index], xywh)
        assert assign_tokens(anchors[index], xywh).tolist() == owners
        for token, owner in enumerate(owners):
            if not torch.isfinite(anchors[index, token]).all():
                continue
            for column in range(prompts[index]):
                wanted = owner >= 0 and bool(positive[owner, column])
                p = 1 / (1 + math.exp(-logits[index, token, column]))
                cls.append(-0.25 * (1 - p) ** 2 * math.log(p) if wanted else -0.75 * p**2 * math.log(1 - p))
            if owner >= 0:
                owned += 1
                l1.append((boxes[index, token] - xywh[owner]).abs().sum().item())
                scale = torch.tensor([width, height] * 2)
                found = giou((boxes[index, token] * scale).tolist(), (xywh[owner] * scale).tolist())
                iou.append(1 - found)
    losses = dense_losses(head, logits, boxes, anchors, text_mask, samples)
    assert owned > 8
    expected = {"dense_loss_cls": sum(cls), "dense_loss_bbox": 5 * sum(l1), "dense_loss_iou": 2 * sum(iou)}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value / owned, rel=1e-4), name
