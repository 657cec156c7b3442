"""`streamai train --teacher`: the teacher of a click flow, and its answers for students to learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import torch
from rich.console import Console
from torch import nn

from streamai.errors import ModelError, SettingsError
from streamai.flow import Flow
from streamai.model import weights
from streamai.train import parallel
from streamai.train import teacher as teachers
from streamai.train.checkpoint import Checkpoint
from streamai.train.data import Sequences
from streamai.train.distil import digest, store
from streamai.train.fit import Recipe, fit
from streamai.train.model import EventLM
from streamai.train.ranking import leave_one_out
from streamai.train.student import validation_of

HEADS_WIDTH = 32
"""Width of an attention head."""
HEAD_RATE = 0.1
"""Learning rate of fine-tuning the output layer, as a share of the recipe's."""


def teach(flow: Flow, table: pl.DataFrame, out: str | Path, options, console: Console) -> dict:
    """Train a teacher on the events that a student would learn from; write it to `out` and its answers to
    `options.answers`; return the figures."""
    from streamai.train.recommend import learnt_from  # it imports the student's side

    if options.of:
        return ask(flow, table, options, console)
    data = learnt_from(flow, table, options)
    shape = teachers.TeacherShape(
        len(data.vocab), options.d, options.layers, max(1, options.d // HEADS_WIDTH), 4 * options.d,
        window=options.recipe.window,
    )  # fmt: skip
    if options.nproc > 1:
        job = parallel.Job(
            shape, data.lm, options.recipe, options.dropout, options.time, options.nproc, options.parallel
        )
        model, records = parallel.train(job, console.print)
    else:
        model, records = _alone(shape, data, options, console)
    validate = validation_of(model, data.places)
    figures = {"epochs": len(records), "seconds": sum(r["seconds"] for r in records)}
    figures |= tune_head(model, data.lm, options, validate, console)
    figures |= {"parameters": model.body_parameters(), **data.places.figures(model)}
    if options.protocol == "leave-one-out":
        figures["last_event"] = leave_one_out(model, data.everything, 1, seen=not options.hide_seen)
    teachers.save(out, model, figures)
    if options.answers:
        store([model], data.lm, options.answers, figures, console)
    return {"model": str(out), "path": str(out), "teacher": figures}


def _alone(shape: teachers.TeacherShape, data, options, console: Console):
    """A teacher trained in this process, and a record an epoch."""
    torch.manual_seed(options.recipe.seed)
    model = teachers.Teacher(shape, options.dropout, options.time)
    sizes = f"{model.body_parameters():,} parameters beside the tables"
    console.print(f"teacher: {data.lm.events:,} events, {sizes}")
    run = f"{digest(data.lm)} {shape} {options.recipe} {options.dropout}"
    checkpoint = Checkpoint(options.checkpoint, run) if options.checkpoint else None
    validate = validation_of(model, data.places)
    return model, fit(model, data.lm, options.recipe, validate, console, checkpoint, title="teacher")


def ask(flow: Flow, table: pl.DataFrame, options, console: Console) -> dict:
    """The answers of models that are there already, averaged: teachers, or LMs of weights files."""
    from streamai.train.recommend import learnt_from

    if not options.answers:
        raise SettingsError("--of: give --answers FOLDER, what is to be made of them")
    data, models, figures = learnt_from(flow, table, options), [], {}
    for path in options.of:
        if str(path).endswith(".weights"):
            file = weights.read(path)
            if file.vocabulary != data.vocab:
                raise ModelError(
                    f"{path}: trained on other items than these events; its answers would be of them"
                )
            model = EventLM.of(file)
            model.int8 = file.int8
        else:
            model, _ = teachers.load(path)
            if model.shape.vocabulary != len(data.vocab):
                raise ModelError(
                    f"{path}: a teacher of {model.shape.vocabulary} items, not {len(data.vocab)}"
                )
        models.append(model.eval())
        figures[str(path)] = data.places.figures(model)
    store(models, data.lm, options.answers, figures, console)
    return {"model": "answers", "path": options.answers, "teacher": figures}


def tune_head(model, seq: Sequences, options, validate, console: Console) -> dict:
    """Fine-tune what turns the body's output into scores (item table, biases, gain) at a low rate; kept only
    where validation is better for it."""
    if not options.compression.tune_epochs:
        return {}
    before = validate().get("ndcg@10", 0.0)
    kept = {k: v.detach().clone() for k, v in model.state_dict().items()}
    epochs, rate = options.compression.tune_epochs, options.recipe.rate * HEAD_RATE
    recipe: Recipe = replace(options.recipe, epochs=epochs, rate=rate, warm_up=20)
    frozen = [p for n, p in model.named_parameters() if n not in ("item", "bias", "final_gain")]
    _learn(frozen, False)
    try:
        fit(model, seq, recipe, validate, console, title="teacher's head")
    finally:
        _learn(frozen, True)
    after = validate().get("ndcg@10", 0.0)
    if after <= before:
        model.load_state_dict(kept)
    return {"ndcg@10_before_tuning_the_head": before, "ndcg@10_after": after}


def _learn(parameters: list[nn.Parameter], on: bool) -> None:
    for p in parameters:
        p.requires_grad_(on)
