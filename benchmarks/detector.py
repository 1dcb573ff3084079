"""Speed of the detector against mmdet's own GroundingDINO, on the same weights, image and machine, batch 1.

Usage: python benchmarks/detector.py [--size 768 1344] [--repeat 5] [--device cpu|cuda] [--weights FILE]

Stock is mmdet's GroundingDINO in float32 with mmcv's grid_sample operator, text encoded at every call, as published.
Ours runs OUAFS on all three maps and the score. With its gates at zero its boxes must equal the stock's. Prints one
line a variant: median milliseconds, ratio to stock, and the share of its best boxes that agree with the float32 ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch

warnings.filterwarnings("ignore")


def main() -> None:  # noqa: PLR0915
    options = parse()
    torch.manual_seed(0)
    device = torch.device(options.device)
    from anomdino.config.detector import DetectorConfig, FusionConfig
    from anomdino.detector.architecture import build_detector, describe_grounding_dino
    from anomdino.detector.lean import LeanPredictor
    from anomdino.detector.mmdet_parts import MODELS, ConfigDict, DetDataSample
    from anomdino.detector.weights import load_pretrained

    config = DetectorConfig(
        backbone=options.backbone, embed_dims=256, fusion_dims=1024, feedforward=2048, queries=900, levels=4, heads=8,
        points=4, encoder_layers=6, decoder_layers=6, fusion=FusionConfig(gate_init=0.0, heads=8),
    )  # fmt: skip
    detector = build_detector(config, 19).eval()
    if options.weights:
        load_pretrained(detector, options.weights)
    stock = MODELS.build(ConfigDict(type="GroundingDINO", **describe_grounding_dino(config), _scope_="mmdet"))
    stock.load_state_dict({k: v for k, v in detector.state_dict().items() if not k.startswith("ouafs.")})
    detector, stock = detector.to(device), stock.eval().to(device)
    height, width = options.size
    image = torch.randn(1, 3, height, width, device=device)
    maps = torch.rand(1, 22, -(-height // 8), -(-width // 8), device=device)
    meta = {"img_shape": (height, width), "batch_input_shape": (height, width), "ori_shape": (height, width),
            "scale_factor": (1.0, 1.0), "text": "ood-object", "custom_entities": True}  # fmt: skip

    def run_stock():
        use_stock_operator(True)
        stock.language_model.forget()
        with torch.no_grad():
            found = stock.predict(image, [DetDataSample(metainfo=dict(meta))])[0].pred_instances
        use_stock_operator(False)
        return found.scores, found.bboxes

    def lean(half, graphs):
        predictor = LeanPredictor(detector, half=half, graphs=graphs)

        def run():
            scores, boxes, _ = predictor(image, maps, ("ood-object",))
            scores, order = scores[:, 0].topk(config.queries)
            boxes = boxes[order]
            xyxy = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
            limit = torch.tensor([width, height, width, height], device=device)
            return scores, torch.minimum((xyxy * limit).clamp(min=0), limit.float())

        return run

    variants = {"stock, float32": run_stock, "ours, float32": lean(False, False)}
    if device.type == "cuda":
        variants |= {
            "ours, float32, graphs": lean(False, True),
            "ours, half": lean(True, False),
            "ours, half, graphs": lean(True, True),
        }
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"{options.backbone}, {height} x {width}, {where}, torch {torch.__version__}, median of {options.repeat}"
    )
    times, outputs = {}, {}
    for name, function in variants.items():
        try:
            outputs[name] = function()
            times[name] = measure(function, options.repeat, device)
        except RuntimeError as error:
            print(f"{name:24s} failed: {str(error).splitlines()[0]}")
            if name.endswith(", float32"):
                raise SystemExit("nothing to compare with; --size needs room for 900 queries") from error
            continue
        ratio = times[name] / times["stock, float32"]
        share = agreement(outputs["stock, float32"], outputs[name], options.best)
        print(
            f"{name:24s} {times[name] * 1000:9.1f} ms   ratio {ratio:5.2f}   agreeing boxes {share:6.1%}",
            flush=True,
        )
    exact = outputs["stock, float32"], outputs["ours, float32"]
    difference = (exact[0][0] - exact[1][0]).abs().max().item()
    print(f"largest difference of the sorted scores, stock against ours in float32: {difference:.1e}")


def use_stock_operator(wanted: bool) -> None:
    """Switch mmcv's module between its own grid_sample operator and ours."""
    from mmcv.ops import multi_scale_deform_attn as module

    from anomdino.detector.deformable_attention import deformable_attention

    operator = module.plain_multi_scale_deformable_attn if wanted else deformable_attention
    module.multi_scale_deformable_attn_pytorch = operator


def measure(function, repeat: int, device: torch.device) -> float:
    times = []
    for _ in range(repeat + 1):
        wait(device)
        started = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def agreement(reference, other, best: int) -> float:
    """Share of the reference's boxes (score > 0.3, or the best) with a partner within 1 px and 0.01 of score."""
    scores, boxes = (part.float().cpu() for part in reference)
    others, places = (part.float().cpu() for part in other)
    wanted = (
        (scores > 0.3).nonzero().flatten()
        if (scores > 0.3).any()
        else scores.topk(min(best, len(scores))).indices
    )
    near = (boxes[wanted, None] - places[None]).abs().amax(-1) <= 1.0
    close = (scores[wanted, None] - others[None]).abs() <= 0.01
    return (near & close).any(1).float().mean().item()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(768, 1344))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", default="", help="a published checkpoint; random weights otherwise")
    parser.add_argument("--backbone", default="swin_t")
    parser.add_argument("--best", type=int, default=100, help="boxes compared where none scores above 0.3")
    return parser.parse_args()


if __name__ == "__main__":
    main()
