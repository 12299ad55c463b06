"""Memory, in fresh processes: statistics that do not grow with the prompts, adapter pairs that hold one copy, and a
store on disk that is written, summarised, read and reported in chunks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import in_fresh_process, peak, reset_peak, resident

HERE = __name__


def measure(*, quick: bool, threads: int) -> dict[str, Any]:
    """All three measurements; ``quick`` takes fewer prompts and a smaller model."""
    few, many = (100, 1000) if quick else (100, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        return {
            "statistics": statistics(few, many, threads),
            "adapter pair": adapter_pair(Path(folder), width=512 if quick else 1024),
            "store on disk": store_on_disk(Path(folder), tokens=32_768 if quick else 1_048_576, threads=threads),
        }


def statistics(few: int, many: int, threads: int) -> dict[str, Any]:
    """Peak resident memory of record(store=None) on ``few`` and on ``many`` prompts; 1.05 is the bar."""
    figures = {n: in_fresh_process(HERE, "stream", prompts=n, threads=threads) for n in (few, many)}
    return {
        "prompts": [few, many],
        "peak_mb": [round(figures[n]["peak"], 1) for n in (few, many)],
        "above_start_mb": [round(figures[n]["peak"] - figures[n]["start"], 1) for n in (few, many)],
        "rows_mb_if_kept": [round(figures[n]["rows_mb"], 1) for n in (few, many)],
        "ratio": round(figures[many]["peak"] / figures[few]["peak"], 4),
        "python_peak_mb": [round(figures[n]["python"], 1) for n in (few, many)],
    }


def stream(prompts: int, threads: int) -> dict[str, float]:
    """In a fresh process: statistics of a pair at every token."""
    import tracemalloc

    from benchmarks.record_models import llama, pair_of, prompts_for
    from workbench.recording.record_pair import record

    torch.set_num_threads(threads)
    model = llama(layers=4, width=256)
    pair = pair_of(model)
    texts = prompts_for(model, prompts, length=16)
    record(pair, texts[:32], ["z", "resid_post"], positions="all", batch_size=16, store=None)  # lazy imports
    start = reset_peak()
    rec = record(pair, texts, ["z", "resid_post"], positions="all", batch_size=16, store=None)
    most = peak()
    tracemalloc.start()
    record(pair, texts[: min(prompts, 1000)], ["z"], layers=0, positions="all", batch_size=16, store=None)
    python = tracemalloc.get_traced_memory()[1] / 1e6
    return {"start": start, "peak": most, "rows_mb": len(rec) * 256 * 4 * 2 * 4 * 2 / 1e6, "python": python}


def adapter_pair(folder: Path, width: int) -> dict[str, Any]:
    """Resident memory of a base with its adapter over that of the base alone, both used once; 1.05 is the bar."""
    import peft

    from benchmarks.record_models import llama

    model = llama(width=width)
    model.hf.save_pretrained(folder / "base")
    model.tokenizer.save_pretrained(folder / "base")
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model.hf, config).save_pretrained(str(folder / "adapter"))
    base_run, two = (in_fresh_process(HERE, "load", folder=str(folder), adapter=adapter) for adapter in (False, True))
    return {
        "weights_mb": round(base_run["weights"], 1),
        "base_mb": round(base_run["resident"], 1),
        "pair_mb": round(two["resident"], 1),
        "ratio": round(two["resident"] / base_run["resident"], 4),
        "peak_while_loading_ratio": round(two["peak"] / base_run["peak"], 4),
    }


def store_on_disk(folder: Path, tokens: int, threads: int) -> dict[str, Any]:
    """Peak resident memory of ``tunescope record`` of 1,024 numbers a token, and of the report; 1,500 MB is the bar."""
    from benchmarks.record_models import llama, pair_of

    pair = pair_of(llama(layers=1, width=1024))
    for role, model in pair.models.items():
        model.hf.save_pretrained(folder / role)
        model.tokenizer.save_pretrained(folder / role)
    run = str(folder / "run")
    recorded = in_fresh_process(HERE, "store", folder=str(folder), run=run, tokens=tokens, threads=threads)
    reported = in_fresh_process(HERE, "read", run=run)
    size = sum(file.stat().st_size for file in Path(run).rglob("*") if file.is_file()) / 1e6
    return {
        "rows": tokens,
        "store_mb": round(size, 1),
        **{key: round(mb, 1) for key, mb in (recorded | reported).items()},
    }


def store(folder: str, run: str, tokens: int, threads: int) -> dict[str, float]:
    """In a fresh process: one site of both models to disk, with the summary of the run."""
    from benchmarks.record_models import llama, prompts_for
    from workbench.recording.job import record_run

    torch.set_num_threads(threads)
    texts = prompts_for(llama(layers=1, width=64), tokens // 128, length=128)
    start = reset_peak()
    base, tuned = Path(folder) / "base", Path(folder) / "tuned"
    record_run(base, tuned, texts, sites=["resid_post"], positions="all", batch_size=8, out=run)
    return {"start_mb": start, "record_peak_mb": peak()}


def read(run: str) -> dict[str, float]:
    """In a fresh process: the store checked and opened, its differences, and the report."""
    from dashboards.report.write import write_report
    from workbench.recording.job import difference_table
    from workbench.recording.recording import Recording

    start = reset_peak()
    difference_table(Recording.load(Path(run) / "activations"))
    opened = peak()
    write_report(run)
    return {"read_start_mb": start, "open_peak_mb": opened, "report_peak_mb": peak()}


def load(folder: str, adapter: bool) -> dict[str, float]:
    """In a fresh process: what a base alone, or the pair, adds to the memory after all imports."""
    import peft
    import transformers.models.llama.modeling_llama  # noqa: F401

    from workbench.models.pair import load_one, load_pair

    torch.set_num_threads(1)
    _ = peft.PeftModel, peft.LoraConfig
    in_use = resident()
    reset_peak()
    base = Path(folder) / "base"
    pair = load_pair(base, Path(folder) / "adapter") if adapter else None
    models = [pair.base, pair.tuned] if pair is not None else [load_one(base)]
    ids = torch.arange(4, 20)[None]
    for model in models:
        model.forward(ids)
    weights = sum(p.numel() * p.element_size() for p in models[0].inner.parameters()) / 1e6
    return {"resident": resident() - in_use, "peak": peak() - in_use, "weights": weights}
