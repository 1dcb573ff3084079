import pytest
import torch

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
