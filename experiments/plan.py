"""What the reproduction consists of: four scales, and the commands that each of them is, which
experiments/reproduce.py runs, or prints with --list.
"""
import itertools
import re
from pathlib import Path
from typing import NamedTuple

OUT = Path("out")  # of all runs, in the root of the repository

EVALUATE_ONCE = "--eval_interval=1000000"  # at both ends; evaluations don't change the training
CHOICES = ("low", "random", "high")  # of articles by their overlap with a task
SECOND = ", second stage"  # of a model that was also pre-trained on the texts it is to classify


class Scale(NamedTuple):
    name: str
    models: dict  # name: the flags of its architecture
    main_model: str  # the model of claims 2 to 4
    deep_model: str  # the model that a committee is compared with
    main_corpus: str  # the set that all models are pre-trained on; see read_corpus
    pretrain: str  # flags of all pre-trainings
    tasks: dict  # classification set, with or without --n_per_class: flags of its fine-tunings
    sizes: list  # pre-training sets, small to large, for claim 2
    overlap_task: str  # for claim 3: the classification set, and
    overlap_sets: list  # pre-training sets of one size and rising overlap with it
    pool: str  # the set that the articles of these are chosen from; "" where nothing is chosen
    n_committees: int
    n_members: int  # of each committee
    equal_steps: list = []  # sets, small to large, each trained for as many steps
    second: dict = {}  # classification set: flags of a second pre-training, on its texts
    seeds: int = 3  # of every point: each a pre-training and a fine-tuning of its own

    @property
    def folder(self):
        return OUT / f"reproduce-{self.name}"

    @property
    def main_task(self):
        """The classification set of the main comparisons; named after the first results."""
        return next(iter(self.tasks))


class Run(NamedTuple):
    name: str  # of its folder, its log and its row
    kind: str  # pretrain, finetune, committee or bag_of_words: the script
    command: str
    needs: list  # the names of the runs whose files it reads
    facts: dict  # what the tables need: model, corpus, task, seed


# ---- the scales ----------------------------------------------------------------------------------

def shape(n_head, more="", n_layer=1):
    """The flags of a model with heads of 64 features, as the paper's are."""
    return f"--n_layer={n_layer} --n_embd={64 * n_head} --n_head={n_head} {more}".strip()


# Six layers learn the pocket encyclopedia in ten minutes, not in one: the deep model has two.
POCKET = Scale(
    name="pocket",
    models={"BERT-2": "--n_layer=2 --n_embd=128 --n_head=4",
            "BERT-1": "--n_layer=1 --n_embd=128 --n_head=4"},
    main_model="BERT-1", deep_model="BERT-2", main_corpus="pocket",
    pretrain="--epochs=3.75 --lr=0.004 --muon_lr=0.02 --weight_decay=0.3",
    tasks={"pocket-places": "--epochs=10"},
    sizes=["pocket --subset=0.125", "pocket --subset=0.25", "pocket --subset=0.5", "pocket"],
    equal_steps=["pocket --subset=0.125, 30 epochs", "pocket"],
    overlap_task="pocket-places", overlap_sets=["pocket-0", "pocket"], pool="",
    n_committees=1, n_members=3)

# A third of the paper's heads, each as wide as there; its 24 heads would add, by estimate, more
# than half an hour. Few examples a class, where pre-training matters most and which cost seconds;
# the paper uses all of them.
LAPTOP = Scale(
    name="laptop",
    models={"BERT-1": shape(4),
            "BERT-6": shape(4, n_layer=6),
            "BERT-1, 3 heads": shape(3),
            "conv 3,3": shape(4, "--n_conv=2 --conv_channels=8")},
    main_model="BERT-1", deep_model="BERT-6", main_corpus="wikipedia-58000",
    pretrain="--epochs=1 --batch_size=32 --blocks=first",
    tasks={"fewrel --n_per_class=10": "--epochs=30",
           "fewrel-markers --n_per_class=10": "--epochs=30 --pooling=entities",
           "agnews --n_per_class=100": "--epochs=10",
           "dbpedia --n_per_class=10": "--epochs=30"},
    sizes=[*(f"wikipedia-58000 --subset={share}" for share in (0.125, 0.25, 0.5)),
           "wikipedia-58000"],
    equal_steps=[*(f"wikipedia-58000 --subset={1 / n}, {n} epochs" for n in (32, 8)),
                 "wikipedia-58000"],
    overlap_task="fewrel --n_per_class=10", pool="wikipedia-58000",
    overlap_sets=[f"wikipedia-14500-{choice}-fewrel, 4 epochs" for choice in CHOICES],
    n_committees=3, n_members=3)

# The best that two cores can do in a night: up to half an hour of a thread for each BERT-1, by how
# many examples a class it is better than a bag of words, and what six layers add.
NIGHT = Scale(
    name="night",
    models={"BERT-1": "--n_layer=1", "BERT-6": "--n_layer=6"},
    main_model="BERT-1", deep_model="BERT-6", main_corpus="wikipedia-58000",
    pretrain="--epochs=2",
    tasks={"agnews --n_per_class=10": "--epochs=30",
           "agnews --n_per_class=30": "--epochs=20",
           "agnews --n_per_class=100": "--epochs=10",
           "agnews": "--epochs=5",
           "dbpedia --n_per_class=10": "--epochs=30",
           "dbpedia --n_per_class=30": "--epochs=20",
           "dbpedia": "--epochs=10",
           "fewrel --n_per_class=10": "--epochs=30",
           "fewrel --n_per_class=30": "--epochs=20",
           "fewrel --n_per_class=100": "--epochs=10",
           "fewrel": "--epochs=4",
           "fewrel-markers --n_per_class=10": "--epochs=30 --pooling=entities",
           "fewrel-markers --n_per_class=30": "--epochs=20 --pooling=entities",
           "fewrel-markers --n_per_class=100": "--epochs=10 --pooling=entities",
           "fewrel-markers": "--epochs=6 --pooling=entities"},
    sizes=[], overlap_task="fewrel", overlap_sets=[], pool="",
    n_committees=3, n_members=3,
    second={"agnews": "--epochs=10 --batch_size=32 --lr=0.002 --muon_lr=0.007"})

# The paper's widths, articles and label counts (two convolutional layers have 64 channels, the
# default). By estimate an hour of a large GPU with --jobs=4; never run.
PAPER = Scale(
    name="paper",
    models={"BERT-1": shape(12),
            "BERT-6": shape(12, n_layer=6),
            "BERT-1, 8 heads": shape(8),
            "BERT-1, 24 heads": shape(24),
            "conv 3,3": shape(12, "--n_conv=2"),
            "conv 3,3, 8 heads": shape(8, "--n_conv=2"),
            "conv 16,3": shape(12, "--n_conv=2 --conv_kernel 16 3"),
            "conv 3,3,3": shape(12, "--n_conv=3 --conv_channels=32")},
    main_model="BERT-1", deep_model="BERT-6", main_corpus="wikipedia-40000",
    pretrain="--epochs=5 --blocks=first",
    tasks={"fewrel": "--lr=3e-4 --epochs=4",
           "agnews": "--lr=3e-4 --epochs=5",
           "dbpedia": "--lr=3e-4 --epochs=8"},
    sizes=["wikipedia-10000", "wikipedia-20000", "wikipedia-40000", "wikipedia-90000"],
    equal_steps=["wikipedia-10000, 20 epochs", "wikipedia-20000, 10 epochs", "wikipedia-40000"],
    overlap_task="fewrel", pool="wikipedia-90000",
    overlap_sets=[f"wikipedia-20000-{choice}-fewrel" for choice in CHOICES],
    n_committees=3, n_members=5)

SCALES = {scale.name: scale for scale in (POCKET, LAPTOP, NIGHT, PAPER)}


# ---- the data ------------------------------------------------------------------------------------

def read_corpus(name):
    """'news --subset=0.5, 8 epochs' -> 'news', '--subset=0.5', '--epochs=8'; the last two may be
    missing, and are then ''."""
    chosen, _, epochs = name.partition(", ")
    dataset, _, subset = chosen.partition(" ")
    return dataset, subset, f"--epochs={epochs.split()[0]}" if epochs else ""


def data_command(dataset, pool=""):
    """The command (str) that makes a dataset; overlap sets are chosen from the set `pool`."""
    corpus, *parts = dataset.split("-")
    if corpus == "wikipedia" and len(parts) == 3:
        n_articles, choice, task = parts
        return (f"python -m data.overlap --dataset={pool} --with={task} --choose={choice} "
                f"--n_articles={n_articles}")
    if corpus == "wikipedia":
        return f"python -m data.wikipedia --n_articles={parts[0]}"
    if dataset in ("pocket", "pocket-places"):  # made together
        return "python -m data.pocket"
    if dataset == "fewrel-markers":
        return "python -m data.fewrel --markers"
    if corpus == "pocket":
        return f"python -m data.pocket --coverage={parts[0]}"
    return f"python -m data.{dataset}"


def data_commands(scale):
    """-> {dataset: command}, each behind those that it is made from: the overlap sets are chosen
    from the pool, by a task."""
    sets = [*scale.tasks, scale.main_corpus, *scale.sizes, *scale.equal_steps,
            *filter(None, [scale.pool]), *scale.overlap_sets]
    datasets = [read_corpus(name)[0] for name in sets]
    return {dataset: data_command(dataset, scale.pool) for dataset in datasets}


# ---- the runs ------------------------------------------------------------------------------------

def datasets_of(tasks):
    """The datasets of tasks (iterable of str), each once."""
    return list(dict.fromkeys(task.split()[0] for task in tasks))


def slug(text):
    """The name of a model, a set or a task as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", Path(text).name).strip("-").lower()


def run_name(model, corpus, seed, task=""):
    """Of a pre-training, or of its fine-tuning for a task."""
    return ".".join(filter(None, [slug(task), slug(model), slug(corpus), str(seed)]))


def make_run(scale, kind, name, flags, needs=(), **facts):
    script = "-m experiments.bag_of_words" if kind == "bag_of_words" else f"{kind}.py"
    command = " ".join(f"python {script} {flags} --out_dir={scale.folder}/{name}".split())
    return Run(name, kind, command, list(needs), facts)


def finetunings(scale, tasks, stem, init, needs, seed, **facts):
    """-> a fine-tuning of each task, by the flags `init`, named TASK.stem.

    Members of a committee, and the deep model that it is compared with, share the few examples that
    a seed draws: together they would see more of them than one model.
    """
    runs = []
    for task in tasks:
        flags = f"--dataset={task} {scale.tasks[task]} --seed={seed}"
        if "--n_per_class" in task and seed >= scale.seeds:
            flags += f" --example_seed={seed % scale.seeds}"
        runs.append(make_run(scale, "finetune", f"{slug(task)}.{stem}", f"{flags} {init}", needs,
                             task=task, seed=seed, **facts))
    return runs


def second_stages(scale, first, seed):
    """A second pre-training after the run `first` of the main model, and its fine-tunings."""
    runs, model = [], scale.main_model + SECOND
    for dataset, flags in scale.second.items():
        name = f"{first}.then.{slug(dataset)}"
        flags = f"--dataset={dataset} --init_from={scale.folder}/{first} {flags} --seed={seed}"
        runs.append(make_run(scale, "pretrain", name, flags, [first], seed=seed, model=model,
                             corpus=dataset))
        tasks = [task for task in scale.tasks if task.split()[0] == dataset]
        runs += finetunings(scale, tasks, f"{first}.second", f"--init_from={scale.folder}/{name}",
                            [name], seed, model=model, corpus=scale.main_corpus)
    return runs


def model_runs(scale, model, corpus):
    """A model pre-trained on a set, fine-tuned, and from random weights, with every seed."""
    is_main_corpus = corpus == scale.main_corpus
    is_main = is_main_corpus and model == scale.main_model  # the committees' members
    n_seeds = max(scale.seeds, scale.n_committees * scale.n_members if is_main else 0)
    has_all_tasks = is_main_corpus or corpus in [*scale.sizes, *scale.equal_steps]
    tasks = scale.tasks if has_all_tasks else [scale.overlap_task]
    dataset, subset, epochs = read_corpus(corpus)
    recipe = re.sub(r"--epochs=\S+", epochs, scale.pretrain) if epochs else scale.pretrain
    model_flags, facts, runs = scale.models[model], {"model": model, "corpus": corpus}, []
    for seed in range(n_seeds):
        name = run_name(model, corpus, seed)
        flags = (f"--dataset={dataset} {subset} {model_flags} {recipe} {EVALUATE_ONCE} "
                 f"--seed={seed}")
        runs.append(make_run(scale, "pretrain", name, flags, seed=seed, **facts))
        runs += finetunings(scale, tasks, name, f"--init_from={scale.folder}/{name}", [name], seed,
                            **facts)
        if is_main_corpus and seed < scale.seeds:
            runs += finetunings(scale, tasks, f"scratch.{slug(model)}.{seed}",
                                f"--init_from=scratch {model_flags}", [], seed, model=model,
                                corpus=None)
        if is_main and seed < scale.seeds:
            runs += second_stages(scale, name, seed)
    return runs


def control_runs(scale):
    """Committees of the first task whose members share a pre-training, and the fine-tunings for
    them: does it take several pre-trainings, or only several votes?"""
    task, runs = scale.main_task, []
    for number in range(scale.n_committees):
        pretrained = run_name(scale.main_model, scale.main_corpus, number)
        members = [run_name(scale.main_model, scale.main_corpus, number, task)]
        for again in range(1, scale.n_members):
            seed = number + scale.seeds * again
            runs += finetunings(scale, [task], f"{pretrained}.again.{seed}",
                                f"--init_from={scale.folder}/{pretrained}", [pretrained], seed,
                                model=f"{scale.main_model}, again", corpus=scale.main_corpus)
            members.append(runs[-1].name)
        folders = " ".join(f"{scale.folder}/{name}" for name in members)
        runs.append(make_run(scale, "committee", f"{slug(task)}.one-pretraining.{number}",
                             f"{folders} --no-latency", members, task=task, seed=number,
                             one_pretraining=True))
    return runs


def committee_runs(scale):
    """The committees of each task. The last one measures latency, too, and the deep model's."""
    runs, n = [], scale.n_committees
    for task, number in itertools.product(reversed(scale.tasks), reversed(range(n))):
        needs = [run_name(scale.main_model, scale.main_corpus, number + n * i, task)
                 for i in range(scale.n_members)]
        flags = " ".join(f"{scale.folder}/{name}" for name in needs)
        if number == 0 and task == scale.main_task:
            needs.append(run_name(scale.deep_model, scale.main_corpus, number, task))
            flags += f" --deep={scale.folder}/{needs[-1]}"
        else:
            flags += " --no-latency"
        runs.append(make_run(scale, "committee", f"{slug(task)}.committee.{number}", flags, needs,
                             task=task, seed=number))
    return runs


def bag_of_words_runs(scale):
    """A bag of words on each task, with the examples of every seed."""
    return [make_run(scale, "bag_of_words", f"{slug(task)}.bag-of-words.{seed}",
                     f"--dataset={task} --seed={seed}", task=task, seed=seed)
            for task in scale.tasks for seed in range(scale.seeds)]


def plan(scale):
    """-> the runs of a Scale (list of Run), each behind those whose files it needs."""
    runs = []
    for model in scale.models:
        corpora = [scale.main_corpus]
        if model == scale.main_model:
            corpora += [*scale.overlap_sets, *scale.equal_steps]
            corpora += reversed(scale.sizes)  # the longest runs first
        for corpus in dict.fromkeys(corpora):
            runs += model_runs(scale, model, corpus)
    return [*runs, *bag_of_words_runs(scale), *control_runs(scale), *committee_runs(scale)]
