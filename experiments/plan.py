"""What the reproduction consists of: three scales, and the commands that each of them is.

    python -m experiments.reproduce --scale=laptop --list

prints the commands of a scale in the order in which they are run; experiments/reproduce.py runs
them.
"""
import re
from pathlib import Path
from typing import NamedTuple

OUT = Path("out")  # of all runs, in the root of the repository

# The published code changes the learning rate once an epoch, the first of which warms up: --warmup
# is 1 / epochs.
PAPER_RECIPE = ("--optimizer=adamw --lr=5e-5 --weight_decay=0.01 --grad_clip=0 --batch_size=32 "
                "--mask_prob=0.15 --dropout=0.1 --pos=learned --pad_to=128 --lr_per_epoch "
                "--sampled_words=0")


class Scale(NamedTuple):
    name: str
    models: dict  # name: the flags of its architecture
    main: str  # the model of claims 2 to 4
    deep: str  # the model that a committee is compared with
    home: str  # the set that all models are pre-trained on: a dataset, with or without --subset
    pretrain: str  # flags of all pre-trainings by our recipe
    tasks: dict  # classification set: flags of its fine-tunings
    sizes: list  # pre-training sets, small to large, for claim 2
    overlap_task: str  # for claim 3: the classification set, and
    overlap_sets: list  # pre-training sets of one size and rising overlap with it
    pool: str  # what the articles of these are chosen from; "" where nothing is chosen
    n_committees: int
    n_members: int  # of each committee
    paper_epochs: str = ""  # flags of the run by PAPER_RECIPE; "": there is none
    curve: str = ""  # flags of our runs that are compared with it, in which evaluations are dense
    seeds: int = 3  # of every point: each a pre-training and a fine-tuning of its own

    @property
    def folder(self):
        return OUT / f"reproduce-{self.name}"


class Run(NamedTuple):
    name: str  # of its folder, its log and its row
    kind: str  # pretrain, finetune or committee: the script
    command: str
    needs: list  # the names of the runs whose files it reads
    facts: dict  # what the tables want to know of it: model, corpus, task, seed
    alone: bool = False  # it measures time: nothing may run beside it


# ---- the scales ----------------------------------------------------------------------------------

def paper_models(head_size, channels, channels_of_three):
    """The paper's models, with heads of `head_size` features and so many channels (flags)."""
    def model(n_head, more="", n_layer=1):
        return f"--n_layer={n_layer} --n_embd={n_head * head_size} --n_head={n_head} {more}".strip()

    return {
        "BERT-1": model(12),
        "BERT-6": model(12, n_layer=6),
        "BERT-1, 8 heads": model(8),
        "BERT-1, 24 heads": model(24),
        "conv 3,3": model(12, f"--n_conv=2 {channels}"),
        "conv 3,3, 8 heads": model(8, f"--n_conv=2 {channels}"),
        "conv 16,3": model(12, f"--n_conv=2 --conv_kernel 16 3 {channels}"),
        "conv 3,3,3": model(12, f"--n_conv=3 {channels_of_three}"),
    }


def overlap_sets(n_articles):
    return [f"wikipedia-{n_articles}-{choice}-fewrel" for choice in ("low", "random", "high")]


# Six layers learn the pocket encyclopedia in ten minutes, not in one: the deep model has two.
POCKET = Scale(
    name="pocket",
    models={"BERT-2": "--n_layer=2 --n_embd=128 --n_head=4",
            "BERT-1": "--n_layer=1 --n_embd=128 --n_head=4"},
    main="BERT-1", deep="BERT-2", home="pocket",
    pretrain="--epochs=3.75 --lr=0.004 --muon_lr=0.02 --weight_decay=0.3 --eval_interval=1000000",
    tasks={"pocket-places": "--epochs=10"},
    sizes=["pocket --subset=0.125", "pocket --subset=0.25", "pocket --subset=0.5", "pocket"],
    overlap_task="pocket-places", overlap_sets=["pocket-0", "pocket"], pool="",
    n_committees=1, n_members=3)

# A quarter of the paper's widths, an eighth of its channels. Few examples a class, where
# pre-training matters most and which cost seconds; the paper uses all of them.
LAPTOP = Scale(
    name="laptop",
    models=paper_models(16, "--conv_channels=8", "--conv_channels=4"),
    main="BERT-1", deep="BERT-6", home="wikipedia-20000",
    pretrain="--epochs=1 --batch_size=16 --eval_interval=500",
    tasks={"fewrel": "--n_per_class=10 --epochs=30",
           "agnews": "--n_per_class=30 --epochs=30",
           "dbpedia": "--n_per_class=10 --epochs=30"},
    sizes=["wikipedia-2500", "wikipedia-5000", "wikipedia-10000", "wikipedia-20000"],
    overlap_task="fewrel", overlap_sets=overlap_sets(10000), pool="wikipedia-40000",
    n_committees=3, n_members=4,
    paper_epochs="--epochs=20 --warmup=0.05", curve="--eval_interval=25")

# The paper's widths, articles and label counts (two convolutional layers have 64 channels, the
# default). By estimate an hour of a large GPU with --jobs=4; never run.
PAPER = Scale(
    name="paper",
    models=paper_models(64, "", "--conv_channels=32"),
    main="BERT-1", deep="BERT-6", home="wikipedia-40000",
    pretrain="--epochs=5",
    tasks={"fewrel": "--lr=3e-4 --epochs=4",
           "agnews": "--lr=3e-4 --epochs=5",
           "dbpedia": "--lr=3e-4 --epochs=8"},
    sizes=["wikipedia-10000", "wikipedia-20000", "wikipedia-40000", "wikipedia-90000"],
    overlap_task="fewrel", overlap_sets=overlap_sets(20000), pool="wikipedia-90000",
    n_committees=3, n_members=5,
    paper_epochs="--epochs=50 --warmup=0.02", curve="--eval_interval=50")

SCALES = {scale.name: scale for scale in (POCKET, LAPTOP, PAPER)}


# ---- the data ------------------------------------------------------------------------------------

def data_command(dataset, pool=""):
    """The command (str) that makes a dataset, the overlap sets from the prepared set `pool`."""
    corpus, *parts = dataset.split("-")
    if corpus == "wikipedia" and len(parts) == 3:
        n_articles, choice, task = parts
        return (f"python -m data.overlap --dataset={pool} --with={task} --choose={choice} "
                f"--n_articles={n_articles}")
    if corpus == "wikipedia":
        return f"python -m data.wikipedia --n_articles={parts[0]}"
    if dataset in ("pocket", "pocket-places"):  # made together
        return "python -m data.pocket"
    if corpus == "pocket":
        return f"python -m data.pocket --coverage={parts[0]}"
    return f"python -m data.{dataset}"


def data_commands(scale):
    """-> {dataset: command}, in an order in which each finds what it reads: the overlap sets are
    chosen by a task, from the pool."""
    corpora = [corpus.split()[0] for corpus in [scale.home, *scale.sizes]]
    pools = [scale.pool] if scale.pool else []
    datasets = [*scale.tasks, *corpora, *pools, *scale.overlap_sets]
    return {dataset: data_command(dataset, scale.pool) for dataset in datasets}


# ---- the runs ------------------------------------------------------------------------------------

def slug(text):
    """A model's, a set's or a task's name as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", Path(text).name).strip("-").lower()


def pretraining_name(model, corpus, seed):
    return f"{slug(model)}.{slug(corpus)}.{seed}"


def finetuning_name(task, start):
    return f"{slug(task)}.{start}"


def make_run(scale, kind, name, flags, needs=(), alone=False, **facts):
    command = " ".join(f"python {kind}.py {flags} --out_dir={scale.folder}/{name}".split())
    return Run(name, kind, command, list(needs), facts, alone)


def pretraining(scale, name, model, corpus, flags, seed, **facts):
    return make_run(scale, "pretrain", name, f"--dataset={corpus} {flags} --seed={seed}",
                    model=model, corpus=corpus, seed=seed, **facts)


def finetunings(scale, tasks, start, model, corpus, seed, pretrained=None):
    """-> a fine-tuning for each task, of the run `pretrained` (name) or from random weights.

    Members of a committee, and the deep model that it is compared with, share the few examples that
    a seed draws: together they would see more of them than one model.
    """
    runs = []
    for task in tasks:
        flags = f"--dataset={task} {scale.tasks[task]} --seed={seed}"
        if "--n_per_class" in flags and seed >= scale.seeds:
            flags += f" --example_seed={seed % scale.seeds}"
        if pretrained:
            flags += f" --init_from={scale.folder}/{pretrained}"
        else:
            flags += f" --init_from=scratch {scale.models[model]}"
        runs.append(make_run(scale, "finetune", finetuning_name(task, start), flags,
                             [pretrained] if pretrained else [],
                             task=task, model=model, corpus=corpus, seed=seed))
    return runs


def paper_recipe_runs(scale):
    """One pre-training by the paper's recipe, fine-tuned with every seed."""
    name, model = "recipe-of-the-paper", f"{scale.main}, the paper's recipe"
    flags = f"{scale.models[scale.main]} {PAPER_RECIPE} {scale.paper_epochs}"
    runs = [pretraining(scale, name, model, scale.home, flags, seed=0, recipe="paper")]
    for seed in range(scale.seeds):
        runs += finetunings(scale, scale.tasks, f"{name}.{seed}", model, scale.home, seed, name)
    return runs


def model_runs(scale, model, corpus):
    """A model pre-trained on a set, fine-tuned, and from random weights, with every seed."""
    at_home = corpus == scale.home
    is_source_of_members = at_home and model == scale.main
    n_members = scale.n_committees * scale.n_members if is_source_of_members else 0
    is_for_all_tasks = at_home or corpus in scale.sizes
    tasks = list(scale.tasks) if is_for_all_tasks else [scale.overlap_task]
    runs = []
    for seed in range(max(scale.seeds, n_members)):
        flags, facts = f"{scale.models[model]} {scale.pretrain}", {}
        if scale.paper_epochs and is_source_of_members and seed < scale.seeds:
            flags, facts = f"{flags} {scale.curve}", {"recipe": "ours"}
        name = pretraining_name(model, corpus, seed)
        runs.append(pretraining(scale, name, model, corpus, flags, seed, **facts))
        runs += finetunings(scale, tasks, name, model, corpus, seed, name)
        if at_home and seed < scale.seeds:
            runs += finetunings(scale, tasks, f"scratch.{slug(model)}.{seed}", model, None, seed)
    return runs


def committee_runs(scale):
    """The committees of each task. The last one, with nothing beside it, measures latency too."""
    runs = []
    for task in reversed(scale.tasks):
        for number in reversed(range(scale.n_committees)):
            seeds = [number + scale.n_committees * i for i in range(scale.n_members)]
            starts = [pretraining_name(scale.main, scale.home, seed) for seed in seeds]
            starts.append(pretraining_name(scale.deep, scale.home, number))
            needs = [finetuning_name(task, start) for start in starts]
            *members, deep = [f"{scale.folder}/{name}" for name in needs]
            timed = number == 0 and task == next(iter(scale.tasks))
            flags = f"{' '.join(members)} --deep={deep} {'' if timed else '--no-latency'}"
            runs.append(make_run(scale, "committee", f"{slug(task)}.committee.{number}", flags,
                                 needs, timed, task=task, seed=number))
    return runs


def plan(scale):
    """-> the runs of a Scale (list of Run), each behind those whose files it needs."""
    runs = paper_recipe_runs(scale) if scale.paper_epochs else []  # first: it may take longest
    for model in scale.models:
        corpora = [scale.home]
        if model == scale.main:
            corpora += [*scale.overlap_sets, *reversed(scale.sizes)]  # the longest runs first
        for corpus in dict.fromkeys(corpora):
            runs += model_runs(scale, model, corpus)
    return runs + committee_runs(scale)
