"""The teacher on several processes, by torch.distributed's own tools; gloo on CPUs, nccl on GPUs.

data      every process has the model and a share of each batch (DistributedDataParallel)
tensor    every process has a share of the heads and hidden units of each block (parallelize_module)
pipeline  every process has a run of blocks; a batch goes through in parts (torch.distributed.pipelining)

All three take the batches that one process would take, in the same order, and give its loss and gradients up
to the rounding of sums.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from streamai.errors import ModelError, SettingsError
from streamai.train import teacher as teachers
from streamai.train.data import Batch, Sequences, epoch, windows
from streamai.train.fit import Recipe, half_precision, noisy, rate_at
from streamai.train.loss import cross_entropy
from streamai.train.model import groups

MODES = ("data", "tensor", "pipeline")
WAIT = timedelta(minutes=10)
"""A process that hears nothing from the others for so long ends with an error."""
PARTS = 4
"""Parts of a batch that are on their way through a pipeline at once."""


@dataclass(frozen=True)
class Job:
    """What every process needs: sizes of the teacher, its sequences, the recipe and how to divide the work.

    steps: end after so many (0: all epochs of the recipe). Everything is picklable: processes are spawned.
    """

    shape: teachers.TeacherShape
    seq: Sequences
    recipe: Recipe
    dropout: float
    time: bool
    nproc: int
    mode: str
    steps: int = 0


def train(job: Job, say: Callable[[str], None] = print) -> tuple[teachers.Teacher, list[dict]]:
    """Train a teacher on job.nproc processes; the model and a record an epoch (loss, events/s, seconds)."""
    check(job)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "teacher"
        if job.nproc == 1:
            _process(0, job, 0, str(out), say)
        else:
            # the processes share the machine's cores; a port nobody listens on is asked for
            torch.multiprocessing.spawn(_spawned, (job, _free_port(), str(out)), nprocs=job.nproc)
        model, facts = teachers.load(out)
    return model, facts["records"]


def check(job: Job) -> None:
    """SettingsError where the work cannot be divided so."""
    if job.mode not in MODES:
        raise SettingsError(f"--parallel {job.mode}: expected one of {', '.join(MODES)}")
    if job.mode == "tensor" and (job.shape.heads % job.nproc or job.shape.mlp % job.nproc):
        raise SettingsError(
            f"--parallel tensor: {job.shape.heads} heads and {job.shape.mlp} hidden units do not divide by "
            f"--nproc {job.nproc}"
        )
    if job.mode == "pipeline" and job.shape.layers < job.nproc:
        raise SettingsError(f"--parallel pipeline: {job.shape.layers} layers for --nproc {job.nproc}")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _spawned(rank: int, job: Job, port: int, out: str) -> None:
    """One of several processes, which ends here: taking gloo and DistributedDataParallel down object by
    object can wait for ever for a process that has ended before (seen twice on a loaded machine)."""
    _process(rank, job, port, out, None)
    sys.stdout.flush()
    os._exit(0)


def _process(rank: int, job: Job, port: int, out: str, say: Callable | None) -> None:
    """One of the processes; number 0 writes the model."""
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= job.nproc
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    torch.set_num_threads(job.recipe.threads)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or _free_port())}
    dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=job.nproc, timeout=WAIT)
    try:
        torch.manual_seed(job.recipe.seed)
        model = teachers.Teacher(job.shape, job.dropout, job.time).to(device)
        model.half = half_precision(job.recipe.precision)
        worker = {"data": Data, "tensor": Tensor, "pipeline": Pipeline}[job.mode](model, job, rank, device)
        records = _epochs(worker, job, say or (print if rank == 0 else lambda text: None))
        worker.gather()
        if rank == 0:
            teachers.save(out, model.cpu(), {"records": records})
        dist.barrier()  # nobody leaves while another still hears from it
    finally:
        dist.destroy_process_group()


def _epochs(worker, job: Job, say: Callable) -> list[dict]:
    recipe, rng = job.recipe, np.random.default_rng(job.recipe.seed)
    first, _ = windows(job.seq, recipe.window, recipe.cover, np.random.default_rng(recipe.seed))
    steps = recipe.epochs * -(-len(first) // recipe.batch)
    optimiser = torch.optim.AdamW(
        groups(worker.model, recipe.weight_decay), lr=recipe.rate, betas=(0.9, 0.98), foreach=False
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_at(s, steps, recipe.warm_up))
    worker.model.train()
    records, done, noise = [], 0, torch.Generator().manual_seed(recipe.seed)
    for number in range(1, recipe.epochs + 1):
        began, total, count = perf_counter(), 0.0, 0
        for b in epoch(job.seq, job.shape.vocabulary, recipe.batch, recipe.window, rng, recipe.cover):
            b = replace(b, token=noisy(b, recipe, job.shape.vocabulary, noise))
            if len(b.target):
                optimiser.zero_grad(set_to_none=True)
                total += worker.step(b) * len(b.target)
                count += len(b.target)
                worker.clip(recipe.clip)
                optimiser.step()
            schedule.step()
            done += 1
            if job.steps and done == job.steps:
                break
        if not math.isfinite(total):
            raise ModelError(f"training diverged in epoch {number}: loss is {total}; lower --rate")
        seconds = perf_counter() - began
        records.append({"epoch": number, "loss": total / max(1, count), "events_per_s": count / seconds})
        records[-1]["seconds"] = seconds
        say(f"epoch {number}  loss {records[-1]['loss']:.4f}  events_per_s {count / seconds:,.0f}")
        if job.steps and done == job.steps:
            break
    return records


def _loss(model: teachers.Teacher, b: Batch, device: torch.device) -> torch.Tensor:
    """Mean next-event loss; on a GPU without the CPU's chunks."""
    q = model(b.token, b.kind, b.gap, b.side).reshape(-1, model.shape.d)[b.at]
    if device.type == "cpu":
        return cross_entropy(q, model.items(), model.bias, b.target, half=model.half)
    return nn.functional.cross_entropy(q @ model.items().t() + model.bias, b.target)


class _Worker:
    """What the three ways share."""

    def __init__(self, model: teachers.Teacher, job: Job, rank: int, device: torch.device) -> None:
        self.model, self.job, self.rank, self.device = model, job, rank, device

    def step(self, b: Batch) -> float:
        """Gradients of the whole batch in the parameters' `grad`; its mean loss."""
        raise NotImplementedError

    def gather(self) -> None:
        """Bring everything that process 0 lacks to it."""

    def clip(self, most: float) -> None:
        """Scale the gradients of all processes down to a common length of at most `most`."""
        mine = torch.zeros((), dtype=torch.float64, device=self.device)
        shared = torch.zeros_like(mine)
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                own = self.own(name, p)
                g = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
                (mine if own else shared).add_(g.double().square().sum())
        dist.all_reduce(mine)
        scale = most / (float((mine + shared).sqrt()) + 1e-6)
        if scale < 1:
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(scale)

    def own(self, name: str, p: nn.Parameter) -> bool:
        """Whether this process alone has this part of the parameters."""
        return isinstance(p, DTensor)

    def move(self, b: Batch) -> Batch:
        return Batch(*(t.to(self.device) for t in vars(b).values()))


class _WithLoss(nn.Module):
    """DistributedDataParallel wants the loss to come out of a forward."""

    def __init__(self, model: teachers.Teacher, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, b: Batch, share: float) -> torch.Tensor:
        return _loss(self.model, b, self.device) * share


class Data(_Worker):
    """A share of the rows of each batch a process; gradients are averaged."""

    def __init__(self, model, job, rank, device) -> None:
        super().__init__(model, job, rank, device)
        # without times or kinds some tables have no part in the loss
        self.wrapped = DistributedDataParallel(_WithLoss(model, device), find_unused_parameters=True)

    def step(self, b: Batch) -> float:
        whole, part = len(b.target), self.move(rows_of(b, self.rank, self.job.nproc))
        # the average over processes of share * mean is the mean over all positions
        share = self.job.nproc * len(part.target) / whole
        if len(part.target):
            loss = self.wrapped(part, share)
            loss.backward()
        else:  # a process without a position still takes part in the sums
            loss = self.wrapped(self.move(rows_of(b, 0, 1)), 0.0)
            loss.backward()
        total = loss.detach().double() / self.job.nproc
        dist.all_reduce(total)
        return float(total)


def rows_of(b: Batch, rank: int, nproc: int) -> Batch:
    """Every nproc-th row of a batch from `rank` on, padded as the batch is."""
    T = b.token.shape[1]
    row = b.at // T
    mine = row % nproc == rank
    at = (row[mine] // nproc) * T + b.at[mine] % T
    cut = slice(rank, None, nproc)
    return Batch(
        b.token[cut], b.kind[cut], b.gap[cut], b.side[cut], b.length[cut], b.target[mine], at, b.event[mine]
    )


class Tensor(_Worker):
    """A share of the heads and hidden units a process; tables are everybody's."""

    PLAN = {
        "q": ColwiseParallel, "k": ColwiseParallel, "v": ColwiseParallel, "out": RowwiseParallel,
        "gate": ColwiseParallel, "up": ColwiseParallel, "down": RowwiseParallel,
    }  # fmt: skip

    def __init__(self, model, job, rank, device) -> None:
        super().__init__(model, job, rank, device)
        mesh = init_device_mesh(device.type, (job.nproc,))
        plan = {f"blocks.{k}.{n}": kind() for k in range(job.shape.layers) for n, kind in self.PLAN.items()}
        parallelize_module(model, mesh, plan)
        for block in model.blocks:
            block.first_head = rank * job.shape.heads // job.nproc

    def step(self, b: Batch) -> float:
        loss = _loss(self.model, self.move(b), self.device)
        loss.backward()
        for block in self.model.blocks:  # each has the gradients of its own heads
            dist.all_reduce(block.position.grad)
            if block.time_bias.grad is not None:
                dist.all_reduce(block.time_bias.grad)
        return float(loss.detach())

    def gather(self) -> None:
        for module in self.model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if isinstance(p, DTensor):
                    setattr(module, name, nn.Parameter(p.full_tensor().detach()))


class _Stage(nn.Module):
    """A run of blocks; the first embeds, the last gives q."""

    def __init__(self, model: teachers.Teacher, blocks: range, first: bool, last: bool) -> None:
        super().__init__()
        self.model, self.run, self.first, self.last = model, blocks, first, last

    def forward(self, x: torch.Tensor, gap: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        if self.first:
            x = self.model.embed(x, kind, gap)
        x = self.model.through(x, gap, [self.model.blocks[k] for k in self.run])
        return teachers.rms(x) * self.model.final_gain if self.last else x


class Pipeline(_Worker):
    """A run of blocks a process; tables are everybody's, and their gradients are added."""

    def __init__(self, model, job, rank, device) -> None:
        super().__init__(model, job, rank, device)
        if job.shape.side:
            raise ModelError("--parallel pipeline: a teacher with side features goes through no pipeline yet")
        ends = [round(k * job.shape.layers / job.nproc) for k in range(job.nproc + 1)]
        self.run, self.last = range(ends[rank], ends[rank + 1]), rank == job.nproc - 1
        self.ends = ends
        stage = PipelineStage(_Stage(model, self.run, rank == 0, self.last), rank, job.nproc, device)
        self.schedule = ScheduleGPipe(stage, PARTS, loss_fn=self._of_part, scale_grads=False)
        self.count = 1

    def _of_part(self, q: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Share in the mean loss of one part; target i8[b, T], -1 where there is none."""
        use = target >= 0
        if not use.any():
            return q.sum() * 0
        half = self.model.half and self.device.type == "cpu"
        loss = cross_entropy(q[use], self.model.items(), self.model.bias, target[use], half=half)
        return loss * (int(use.sum()) / self.count)

    def step(self, b: Batch) -> float:
        token, kind, gap, target = (t.to(self.device) for t in self._padded(b))
        self.count = len(b.target)
        losses: list[torch.Tensor] = []
        if self.rank == 0:
            self.schedule.step(token, gap=gap, kind=kind)
        elif self.last:
            self.schedule.step(gap=gap, kind=kind, target=target, losses=losses)
        else:
            self.schedule.step(gap=gap, kind=kind)
        for p in (self.model.item, self.model.bias, self.model.unknown, self.model.kind_emb,
                  self.model.gap_emb, self.model.final_gain):  # fmt: skip
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
        total = torch.stack(losses).sum().double() if losses else torch.zeros((), dtype=torch.float64)
        dist.all_reduce(total)
        return float(total.detach())

    def _padded(self, b: Batch) -> tuple[torch.Tensor, ...]:
        """Tensors of one size, whatever the batch: a pipeline's stages agree on theirs once."""
        R, T = -(-self.job.recipe.batch // PARTS) * PARTS, self.job.shape.window
        rows, length = b.token.shape
        target = torch.full((rows * length,), -1)
        target[b.at] = b.target
        out = []
        for t, fill in ((b.token, 0), (b.kind, 0), (b.gap, 0), (target.view(rows, length), -1)):
            whole = torch.full((R, T), fill, dtype=torch.long)
            whole[:rows, :length] = t
            out.append(whole)
        return tuple(out)

    def own(self, name: str, p: nn.Parameter) -> bool:
        return name.startswith("blocks.")

    def gather(self) -> None:
        for k, block in enumerate(self.model.blocks):
            owner = next(r for r in range(self.job.nproc) if k < self.ends[r + 1])
            for p in block.parameters():
                dist.broadcast(p.data, owner)

